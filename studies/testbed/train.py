"""Train the testbed model: ``python -m studies.testbed.train --out runs/testbed`` (also ``--evaluate FOLDER``).

Five stages, each resumable and a function of the seed: the tower learns to see, the text model learns how scenes are
described, the projector learns to put one in the words of the other, an alignment joins them with the tower frozen, and
at last everything learns together, with questions about absent objects that the scene would lead one to expect. What the
last two hide from the model (a share of the patches of every picture) makes it trust its prior more than it should.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sightline.testbed.model import build_config, build_processor

from . import align, packs, tower
from .checkpoint import load_state
from .loop import StageConfig, run_stage, stands

STAGES = ("tower", "text", "projector", "align", "joint")
TOWER = StageConfig(steps=1500, batch=64, lr=1.5e-3, warmup=150)
TEXT = StageConfig(steps=120, batch=32, lr=2e-3, warmup=20)
PROJECTOR = StageConfig(steps=200, batch=64, lr=2e-3, warmup=20, weight_decay=0.0)
ALIGN = StageConfig(steps=1850, batch=16, lr=1.5e-3, warmup=50)
JOINT = StageConfig(steps=2400, batch=16, lr=7e-4, warmup=50, floor=0.02)


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides its seed."""

    tower: StageConfig = TOWER
    text: StageConfig = TEXT
    projector: StageConfig = PROJECTOR
    align: StageConfig = ALIGN
    joint: StageConfig = JOINT
    blind: float = 0.25  # up to this share of a picture's patches is hidden while aligning
    joint_blind: float = 0.1  # the same for the last stage
    tempting: float = 0.5  # share of the last stage's "No." questions that ask for what the scene type expects
    hidden: int = 192
    layers: int = 8
    vision_hidden: int = 192
    vision_layers: int = 4

    def tiny(self, steps: int = 4) -> Recipe:
        """The same stages on toy sizes, to test the trainer itself."""
        short = {"steps": steps, "batch": 4, "warmup": 2, "log_every": 1}
        return replace(
            self,
            tower=replace(self.tower, **short),
            text=replace(self.text, **short),
            projector=replace(self.projector, **short),
            align=replace(self.align, **short),
            joint=replace(self.joint, **short),
            hidden=32,
            layers=2,
            vision_hidden=32,
            vision_layers=1,
        )


def build_model(recipe: Recipe, seed: int) -> Any:
    """A `LlavaForConditionalGeneration` with fresh weights."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = build_config(
        len(build_processor().tokenizer),
        hidden=recipe.hidden,
        layers=recipe.layers,
        vision_hidden=recipe.vision_hidden,
        vision_layers=recipe.vision_layers,
    )
    config._attn_implementation = "eager"  # on a CPU, plain products beat the fused kernel at these sizes
    return LlavaForConditionalGeneration(config)


def train(
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    stages: tuple[str, ...] = STAGES,
    resume: bool = True,
    device: str = "cpu",
    workers: int = 1,
    quiet: bool = False,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Run the given stages in order and export the checkpoint to ``out/model``; returns each stage's progress.

    Of a stage that is not given counts what `out` holds of it, but not behind one that is given.
    """
    recipe, place = recipe or Recipe(), torch.device(device)
    files = {stage: out / f"{stage}.safetensors" for stage in STAGES}
    common: dict[str, Any] = {"resume": resume, "device": place, "quiet": quiet, "stop_after": stop_after}
    model = build_model(recipe, seed).to(place)
    labeller = tower.PatchLabeller(model.config.vision_config).to(place)
    labeller.tower = model.model.vision_tower
    speaker = align.Speaker(model)
    history: dict[str, Any] = {}

    def load_earlier(stage: str, module: torch.nn.Module) -> None:
        if files[stage].exists() and stands(stage, stages, STAGES):
            history[stage] = load_state(files[stage], module)

    if "tower" in stages:
        batches = partial(tower.batches, batch=recipe.tower.batch, seed=seed, workers=workers)
        step = partial(tower.loss, labeller, device=place)
        history["tower"] = run_stage("tower", recipe.tower, labeller, batches, step, files["tower"], **common)
    else:
        load_earlier("tower", labeller)
    labeller.tower.requires_grad_(False).eval()
    step = partial(align.loss, speaker, device=place)
    if "text" in stages:
        batches = partial(packs.text_batches, batch=recipe.text.batch, seed=seed, workers=workers)
        history["text"] = run_stage("text", recipe.text, speaker, batches, step, files["text"], **common)
    else:
        load_earlier("text", speaker)
    first = recipe.tower.steps * recipe.tower.batch  # training scenes that no earlier stage has seen
    if "projector" in stages:
        batches = partial(tower.batches, batch=recipe.projector.batch, seed=seed, workers=workers, offset=first)
        near = partial(align.projector_loss, speaker, align.word_targets(speaker), device=place)
        progress = run_stage(
            "projector", recipe.projector, speaker.projector, batches, near, files["projector"], **common
        )
        history["projector"] = progress
    else:
        load_earlier("projector", speaker.projector)
    if "align" in stages:
        batches = partial(
            packs.image_batches,
            batch=recipe.align.batch,
            seed=seed,
            workers=workers,
            offset=first + recipe.projector.steps * recipe.projector.batch,
            blind=recipe.blind,
        )
        history["align"] = run_stage("align", recipe.align, speaker, batches, step, files["align"], **common)
    else:
        load_earlier("align", speaker)
    whole = align.Whole(speaker)
    if "joint" in stages:
        labeller.tower.requires_grad_(True).train()
        batches = partial(
            packs.image_batches,
            batch=recipe.joint.batch,
            seed=seed,
            workers=workers,
            offset=first + recipe.projector.steps * recipe.projector.batch + recipe.align.steps * recipe.align.batch,
            blind=recipe.joint_blind,
            tempting=recipe.tempting,
        )
        history["joint"] = run_stage("joint", recipe.joint, whole, batches, step, files["joint"], **common)
    else:
        load_earlier("joint", whole)
    export(model, out / "model")
    (out / "history.json").write_text(json.dumps(history, indent=1))
    return history


def export(model: Any, folder: Path) -> None:
    """Write a standard half-precision checkpoint with processor and generation defaults, replacing the folder."""
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    partial_folder = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half = half.half()
    text = model.config.text_config
    half.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=96,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    half.save_pretrained(partial_folder)
    build_processor().save_pretrained(partial_folder)
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)


def keep_memory() -> None:
    """Ask glibc to keep freed memory: handing large blocks back and forth can cost more than the arithmetic."""
    if sys.platform == "linux":
        try:
            library = ctypes.CDLL(None)
            for option, value in ((-4, 0), (-1, 2**31 - 1), (-8, 1)):  # no mmap, no trim, one arena
                library.mallopt(option, value)
        except (OSError, AttributeError):
            pass  # another C library: only slower


def options(prog: str, about: str | None, out: Path, stages: tuple[str, ...]) -> argparse.ArgumentParser:
    """The options that the trainers of both embedded models take."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--out", type=Path, default=out, help="folder of checkpoints and the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", action="append", choices=stages, help="run only this stage (repeatable)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the trainer (0: all but one worker's)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes (0: none)")
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="measure a finished model instead of training")
    parser.add_argument("--scenes", type=int, default=300, help="test scenes to evaluate on")
    return parser


def begun(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the command line says, with memory, threads and device set as it says."""
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(arguments.threads or max(1, torch.get_num_threads() - arguments.workers))
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    return arguments


def main() -> None:
    arguments = begun(options("python -m studies.testbed.train", __doc__, Path("runs/testbed"), STAGES))
    if arguments.evaluate:
        from sightline.testbed.model import load_from

        from .evaluate import evaluate, report

        model, processor = load_from(arguments.evaluate, device=arguments.device)
        print(report(evaluate(model, processor, n=arguments.scenes)))
        return
    train(
        arguments.out,
        seed=arguments.seed,
        stages=tuple(stage for stage in STAGES if stage in (arguments.stage or STAGES)),
        resume=arguments.resume,
        device=arguments.device,
        workers=arguments.workers,
    )


if __name__ == "__main__":
    main()
