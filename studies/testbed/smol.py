"""Train `embedded-smol`: ``python -m studies.testbed.smol --out runs/smol`` (also ``--evaluate``).

SmolLM2-135M-Instruct learns to see through the testbed's tower, in four steps that resume and follow the seed:

1. *memory*: what it says to prompts of its own making, before anything is learned, to be kept;
2. *sight*: the tower and the projector learn to put each patch in SmolLM2's words for what it shows, "dog" where a dog
   is, "beach" where there is only beach;
3. *speech*: low-rank adapters and the projector learn from captions, lists, questions and refusals, the tower frozen;
4. *looking*: the same, every other step on scenes most of whose objects their type does not expect: what a scene
   usually has tells little there. Two steps of three have captions and lists alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sightline.testbed.kinds import KINDS
from sightline.testbed.smol import END, FILE, assemble, build_config, processor_of
from sightline.testbed.sprites import CATEGORIES
from torch import nn

from . import align, smol_packs, tower
from .adapter import adapt, tensors
from .checkpoint import load_state
from .loop import StageConfig, autocast, run_stage, stands
from .train import begun, options

STAGES = ("memory", "sight", "speech", "looking")
SIGHT = StageConfig(steps=1500, batch=32, lr=8e-4, warmup=60, floor=0.02)
SPEECH = StageConfig(
    steps=1000, batch=3, lr=1.5e-3, warmup=20, weight_decay=0.0, floor=0.02, decay="linear", log_every=10
)
LOOKING = replace(SPEECH, steps=700, batch=5, lr=6e-4)
SIGHT_SCENES, SPEECH_SCENES, LOOKING_SCENES = 500_000, 200_000, 270_000  # where the training scenes begin


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides its seed and its language model; `told`: prompts to remember."""

    sight: StageConfig = SIGHT
    speech: StageConfig = SPEECH
    looking: StageConfig = LOOKING
    unexpected: float = 0.65  # share of objects that their scene does not expect, every other step of `looking`
    rank: int = 16
    told: int = 96
    asked_tokens: int = 40
    told_tokens: int = 72
    vision_hidden: int = 192
    vision_layers: int = 4

    def tiny(self, steps: int = 4) -> Recipe:
        """The same stages on toy sizes, to test the trainer itself."""
        short = {"steps": steps, "batch": 2, "warmup": 2, "log_every": 1}
        small = {"told": 4, "asked_tokens": 6, "told_tokens": 6, "rank": 2, "vision_hidden": 32, "vision_layers": 1}
        stages = {name: replace(getattr(self, name), **short) for name in STAGES[1:]}
        return replace(self, **stages, **small)


class Sight(nn.Module):
    """The tower, a linear reading of its patches, and the projector into a language model's words."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.labeller = tower.PatchLabeller(llava.config.vision_config)
        self.labeller.tower = llava.model.vision_tower
        self.projector = llava.model.multi_modal_projector


class Learned(nn.Module):
    """What the last two stages train: the projector and the adapters."""

    def __init__(self, llava: Any, adapters: nn.ModuleDict) -> None:
        super().__init__()
        self.projector, self.adapters = llava.model.multi_modal_projector, adapters


def words(embedding: torch.Tensor, encode: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(C, D) and (K, D): mean input embeddings of the words of each object and of each scene type."""

    def mean(names: Any) -> torch.Tensor:
        return torch.stack([embedding[list(encode(f" {name}"))].mean(0) for name in names])

    return mean(CATEGORIES), mean(KINDS)


def sight_loss(
    sight: Sight, objects: torch.Tensor, kinds: torch.Tensor, payload: dict[str, Any], device: torch.device
) -> tuple[torch.Tensor, dict[str, float]]:
    """How badly each patch is named, and how far it is projected from the words of what it shows.

    The distance is relative to how far the words lie apart: 1 is as bad as their mean.
    """
    target = tower.targets(payload["coverage"], device)
    kind = torch.tensor([list(KINDS).index(name) for name, _ in payload["scenes"]], device=device)
    aim = target[..., :-1] @ objects + target[..., -1:] * kinds[kind][:, None]
    with autocast(device):
        pixels = tower.to_pixels(payload["pixels"], device)
        features = sight.labeller.tower(pixels, output_hidden_states=True).hidden_states[-1]
        logits = sight.labeller.reading(sight.labeller.norm(features)).float()
        image = sight.projector(features).float()
    label, parts = tower.labelling(logits, target)
    apart = (objects - objects.mean(0)).square().sum(-1).mean()
    distance = ((image - aim).square().sum(-1) * tower.emphasis(target)).mean() / apart
    return label + distance, {"label": float(label.detach()), "distance": float(distance.detach()), **parts}


def remember(language: Any, tokenizer: Any, recipe: Recipe, seed: int) -> list[tuple[list[int], int]]:
    """Chats that the language model makes up, both sides: the tokens of each and how many of them ask."""
    torch.manual_seed(seed)
    template = tokenizer.apply_chat_template([{"role": "user", "content": "@"}], tokenize=False).split("@")[0]
    before = tokenizer(template, add_special_tokens=False)["input_ids"]
    between = tokenizer("\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids(END)
    pad = tokenizer.unk_token_id

    def sample(rows: list[list[int]], new: int, **how: Any) -> list[list[int]]:
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=language.device)
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=language.device)
        with torch.inference_mode():
            out = language.generate(
                input_ids=ids,
                attention_mask=seen,
                max_new_tokens=new,
                do_sample=True,
                eos_token_id=end,
                pad_token_id=pad,
                **how,
            )
        said = [row.tolist() for row in out[:, width:]]
        return [row[: row.index(end) + 1] if end in row else row for row in said]

    questions = [row for row in sample([before] * recipe.told, recipe.asked_tokens, top_p=0.9) if len(row) > 4]
    questions = [row if row[-1] == end else [*row, end] for row in questions]
    asked = [[*before, *row, *between] for row in questions]
    answers = sample(asked, recipe.told_tokens, temperature=0.7, top_p=0.95)
    return [(row + said, len(row)) for row, said in zip(asked, answers, strict=True)]


def build(language: Any, image_token: int, recipe: Recipe, seed: int) -> tuple[Any, nn.ModuleDict]:
    """A LLaVA with a language model's weights, all frozen, and the adapters it got; tower and projector start afresh."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = build_config(language.config, image_token, hidden=recipe.vision_hidden, layers=recipe.vision_layers)
    config._attn_implementation = "sdpa"
    llava = LlavaForConditionalGeneration(config)
    llava.model.language_model.load_state_dict(language.model.state_dict())
    llava.lm_head.load_state_dict(language.lm_head.state_dict())
    llava.requires_grad_(False)
    return llava, adapt(llava.model.language_model, recipe.rank)


def train(
    out: Path,
    language: Any,
    tokenizer: Any,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    stages: tuple[str, ...] = STAGES,
    first_tower: dict[str, torch.Tensor] | None = None,
    resume: bool = True,
    device: str = "cpu",
    workers: int = 1,
    quiet: bool = False,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Run the given stages in order and export what was learned to ``out/model``; returns each stage's progress.

    `first_tower`: weights the tower starts from. `out` can be exported at any moment: a stage that was cut short counts
    for as far as it came. Of a stage that is not given counts what `out` holds of it, but not behind one that is given.
    """
    recipe, place = recipe or Recipe(), torch.device(device)
    out.mkdir(parents=True, exist_ok=True)
    processor = processor_of(tokenizer)
    processor.tokenizer.backend_tokenizer.save(str(out / smol_packs.TOKENIZER))
    if "memory" in stages and not (resume and (out / smol_packs.MEMORY).exists()):
        told = remember(language, tokenizer, recipe, seed)
        (out / smol_packs.MEMORY).write_text(json.dumps(told))
    files = {stage: out / f"{stage}.safetensors" for stage in STAGES[1:]}
    common: dict[str, Any] = {"resume": resume, "device": place, "quiet": quiet, "stop_after": stop_after}
    dialect = smol_packs.saved(out)
    llava, adapters = build(language, dialect.image, recipe, seed)
    llava.to(place)
    sight, learned, speaker = Sight(llava).to(place), Learned(llava, adapters), align.Speaker(llava)
    if first_tower is not None:
        llava.model.vision_tower.load_state_dict(first_tower)
    history: dict[str, Any] = {}
    if "sight" in stages:
        sight.requires_grad_(True)
        objects, kinds = words(llava.get_input_embeddings().weight.detach(), dialect.encode)
        step = partial(sight_loss, sight, objects, kinds, device=place)
        draw = partial(tower.batches, batch=recipe.sight.batch, seed=seed, workers=workers, offset=SIGHT_SCENES)
        history["sight"] = run_stage("sight", recipe.sight, sight, draw, step, files["sight"], **common)
    elif files["sight"].exists():
        history["sight"] = load_state(files["sight"], sight)
    sight.requires_grad_(False)
    learned.requires_grad_(True)
    step = partial(align.loss, speaker, device=place)
    packs = partial(smol_packs.batches, folder=out, seed=seed, workers=workers)
    for stage, config, shown in (
        ("speech", recipe.speech, {"offset": SPEECH_SCENES}),
        ("looking", recipe.looking, {"offset": LOOKING_SCENES, "unexpected": recipe.unexpected}),
    ):
        if stage in stages:
            draw = partial(packs, batch=config.batch, **shown)
            history[stage] = run_stage(stage, config, learned, draw, step, files[stage], **common)
        elif files[stage].exists() and stands(stage, stages, STAGES[1:]):
            history[stage] = load_state(files[stage], learned)
    export(llava, adapters, out / "model")
    (out / "history.json").write_text(json.dumps(history, indent=1))
    return history


def export(llava: Any, adapters: nn.ModuleDict, folder: Path) -> None:
    """Write what was learned in half precision: tower, projector and adapter, without the language model."""
    rooms = {"vision_tower": llava.model.vision_tower, "multi_modal_projector": llava.model.multi_modal_projector}
    found = {f"{room}.{name}": value for room, module in rooms.items() for name, value in module.state_dict().items()}
    found |= {f"language_model.{name}": value for name, value in tensors(adapters).items()}
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in found.items()}
    save_file(half, folder / FILE, metadata={"format": "pt"})


def main() -> None:
    from sightline import testbed
    from sightline.models.loading import load_model
    from sightline.models.naming import SMOLLM2

    parser = options("python -m studies.testbed.smol", __doc__, Path("runs/smol"), STAGES)
    parser.add_argument(
        "--minutes", type=float, help="let the schedule of each of the last two stages run over so much time, not steps"
    )
    arguments = begun(parser)
    language, tokenizer = load_model(SMOLLM2, device=arguments.device)
    if arguments.evaluate:
        from .evaluate import evaluate, report

        model, processor = assemble(language, tokenizer, arguments.evaluate)
        dialect = smol_packs.smollm2(processor.tokenizer.backend_tokenizer)
        print(report(evaluate(model.to(arguments.device), processor, n=arguments.scenes, dialect=dialect)))
        return
    recipe = Recipe()
    if arguments.minutes:
        timed = {"minutes": arguments.minutes, "steps": 10**9}
        recipe = replace(recipe, speech=replace(recipe.speech, **timed), looking=replace(recipe.looking, **timed))
    train(
        arguments.out,
        language,
        tokenizer,
        recipe=recipe,
        seed=arguments.seed,
        stages=tuple(stage for stage in STAGES if stage in (arguments.stage or STAGES)),
        first_tower=testbed.load()[0].model.vision_tower.state_dict(),
        resume=arguments.resume,
        device=arguments.device,
        workers=arguments.workers,
    )


if __name__ == "__main__":
    main()
