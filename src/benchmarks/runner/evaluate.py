"""`sightline eval`: a benchmark, plain and under configurations, on any number of processes, resumable, one result.

Processes share nothing but the output folder: process r of n (as torchrun or accelerate numbers them) takes every n-th
batch and appends its replies to its own file; the last one to finish merges. Started again, they do what is missing, on
as many processes as there are then.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import ConfigError
from ...common.files import config_hash, provenance, replacing, write_json, write_text
from ...common.readers import Notes
from ...models.loading import check_whole
from ...models.samples import Reply, Sample
from ...plugin.config import Config
from ..benchmark import Benchmark
from .plan import ANSWERS, PLAIN, RunPlan, plans
from .run import Done, Run, ask_in_turn, batches, results
from .store import Row, Store, one_at_a_time

RESULT, SAMPLES, SUMMARY, PICTURES = "result.json", "samples.jsonl", "summary.md", "pictures"


@dataclass(frozen=True)
class ReplySettings:
    """How replies are made: longest reply in tokens (None: the benchmark's), rows of a batch, bootstrap seed.

    equal: whether the plain model is also asked what comparing at equal recall, or at an equal share of yes, needs.
    least: tokens before which no reply ends.
    """

    new_tokens: int | None = None
    batch: int = 8
    seed: int = 0
    equal: bool = True
    least: int = 0


@dataclass(frozen=True)
class Place:
    """This process among all, from the environment that torchrun and accelerate set."""

    rank: int = 0
    processes: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Place:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, processes, local = (
            int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True)
        )
        return cls(rank, processes, local)


def evaluate(
    benchmark: Benchmark,
    model: Any,
    processor: Any,
    configs: Mapping[str, Config],
    out: Path,
    *,
    calibration: Path | None = None,
    settings: ReplySettings | None = None,
    place: Place | None = None,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> dict[str, Any] | None:
    """Do this process's share of a benchmark, and merge if nothing is left.

    Args:
        benchmark: what to ask.
        model: in eval mode.
        processor: the model's processor or tokenizer.
        configs: run name -> configuration; the plain model always runs, too.
        out: the folder of this evaluation: a folder for each run, and the merged files.
        calibration: instead of the configurations' or the shipped one.
        settings: how replies are made.
        place: which process this is; by default as the environment says.
        advance: called after each batch of a run with the run's name and the number of all batches of this process.

    Returns:
        The merged result, or None where other processes are not done yet, or have merged it.

    Raises:
        SightlineError: a configuration does not fit the model, or the folder belongs to another evaluation.
    """
    settings, place = settings or ReplySettings(), place or Place.here()
    check_whole(model, place.processes)
    new_tokens = settings.new_tokens or benchmark.new_tokens
    chosen = plans(configs, model, processor, calibration=calibration)
    hashes = {"model": fingerprint(model), "data": benchmark.data_hash()}
    yardstick = benchmark.yardstick() if configs and settings.equal else []
    made = {"new_tokens": new_tokens, "batch": settings.batch, "dtype": str(model.dtype)}
    made |= {"least": settings.least} if settings.least else {}
    shared = {"benchmark": benchmark.name, **hashes, **made, "samples": len(benchmark.samples)}
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(Store(out / name, {**shared, **plan.identity}, place.rank))
            for name, plan in chosen.items()
        }
        known = {name: store.done().keys() for name, store in stores.items()}
        cuts, more = batches(benchmark.samples, settings.batch), batches(yardstick, settings.batch)
        mine, others = (some[place.rank :: place.processes] for some in (cuts, more))
        total, worked = len(mine) * len(chosen) + len(others), False
        for samples, asking, its in ((benchmark.samples, chosen, mine), (yardstick, {PLAIN: chosen[PLAIN]}, others)):
            wanted = lambda name, number: samples[number].id not in known[name]  # noqa: E731, B023
            for done in ask_in_turn(model, processor, samples, asking, its, new_tokens, wanted, settings.least):
                if done.numbers:
                    stores[done.run].append(_rows(samples, done))
                    worked = True
                advance(done.run, total)
    for name, plan in list(chosen.items())[1:]:
        hashes |= {f"config {name}": config_hash(plan.identity["config"])}
        hashes |= {f"calibration {name}": known for known in [plan.identity["calibration"]] if known}
    with one_at_a_time(out):
        notes = Notes(benchmark.notes)
        rows = {name: store.done(notes) for name, store in stores.items()}
        if any(sample.id not in done for done in rows.values() for sample in benchmark.samples):
            return None
        if any(sample.id not in rows[PLAIN] for sample in yardstick):
            return None
        if _merged(out, stores.values()) and (worked or place.rank != 0):
            return None
        if any(plan.needs_image for plan in chosen.values()):
            unseen = sum(sample.image is None for sample in benchmark.samples)
            notes.add(
                "a question without a picture went to the plain model: the configuration works on pictures", unseen
            )
        runs = [_gathered(benchmark, name, plan, rows[name], cuts) for name, plan in chosen.items()]
        runs[0].yardstick[benchmark.name] = [rows[PLAIN][sample.id]["reply"] for sample in yardstick]
        used = {plan.identity["calibration"]: plan.calibration for plan in chosen.values() if plan.calibration}
        maps = {digest: {"model": one.model, "head_tables": one.head_tables()} for digest, one in used.items()}
        made |= {"seed": settings.seed}
        return merge(benchmark, runs, out, hashes, notes, settings=made, calibrations=maps)


def score_answers(benchmark: Benchmark, paths: Sequence[Path], out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Score replies that were made elsewhere, without a model; of several files, the others against the first.

    Raises:
        DataError: replies do not fit the questions.
        ConfigError: two files have one name.
    """
    made: list[Run] = []
    for path in paths:
        name = ANSWERS if len(paths) == 1 else path.stem
        if any(name == run.name for run in made):
            raise ConfigError(f"two runs would be called {name!r}: rename the file of one")
        made.append(Run(name, {}, {benchmark.name: list(benchmark.answers(path))}, {benchmark.name: []}))
    return merge(benchmark, made, out, {"data": benchmark.data_hash()}, benchmark.notes, settings={"seed": seed})


def merge(
    benchmark: Benchmark,
    runs: Sequence[Run],
    out: Path,
    hashes: Mapping[str, str],
    notes: Notes,
    *,
    settings: Mapping[str, Any],
    calibrations: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score complete runs, the first of which the others are compared with, and write the merged files into `out`.

    `calibrations`: what to show of the calibration files, by their hashes.
    """
    from .tables import markdown

    replies = {run.name: run.replies[benchmark.name] for run in runs}
    notes.add("an empty reply", sum(said == "" for one in replies.values() for said in one))
    entries = results(runs, [benchmark], seed=int(settings["seed"]))
    result: dict[str, Any] = {"benchmark": benchmark.name, "runs": entries, "n": len(benchmark.samples)}
    result |= {"notes": notes.lines(), "settings": dict(settings), "calibrations": dict(calibrations or {})}
    result |= provenance(hashes)
    write_samples(benchmark, replies, out)
    result["files"] = [path.relative_to(out).as_posix() for path in benchmark.export(out, replies)]
    write_text(out / SUMMARY, markdown(result, benchmark))
    write_json(out / RESULT, result)  # last: who finds it finds the others
    return result


def write_samples(benchmark: Benchmark, replies: Mapping[str, Sequence[Reply]], out: Path) -> None:
    """Write `samples.jsonl`: every sample with its truth and what each run's reply amounts to.

    Pictures that no file holds are saved beside it.
    """
    lines, pictures = [], PictureFolder(out)
    for number, sample in enumerate(benchmark.samples):
        row: dict[str, Any] = {"id": sample.id, "text": sample.text}
        row |= {} if sample.image is None else {"image": pictures.place(sample.image)}
        row |= {"truth": benchmark.truth(number)}
        row |= {"runs": {name: benchmark.detail(number, said[number]) for name, said in replies.items()}}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(out / SAMPLES, "".join(lines))


class PictureFolder:
    """Where pictures lie: files stay where they are, others are saved in the folder, each once."""

    def __init__(self, out: Path):
        self.out, self.saved = out, dict[int, str]()

    def place(self, image: Any) -> str:
        """The path of a file, or that of a saved picture relative to the folder."""
        if isinstance(image, Path):
            return str(image.absolute())
        if id(image) not in self.saved:
            name = self.saved[id(image)] = f"{PICTURES}/{len(self.saved)}.png"
            with replacing(self.out / name) as new:
                image.convert("RGB").save(new, "PNG")
        return self.saved[id(image)]


def fingerprint(model: Any) -> str:
    """SHA-256 over names, shapes and types of all weights and a sample of their values: quick on any size of model."""
    from accelerate.utils import align_module_device

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:  # it lies in memory or on disk until its module runs
            owner, _, own_name = name.rpartition(".")
            with align_module_device(model.get_submodule(owner), "cpu"):
                tensor = getattr(model.get_submodule(owner), own_name).clone()
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 4096)].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + some.tobytes())
    return digest.hexdigest()


def _rows(samples: Sequence[Sample], done: Done) -> list[Row]:
    """A batch as lines of its run's store; the heads are of all of it, so they stand in its first line."""
    seconds = done.seconds / len(done.numbers)
    rows: list[Row] = [
        {"id": samples[number].id, "reply": reply, "seconds": seconds}
        for number, reply in zip(done.numbers, done.replies, strict=True)
    ]
    if done.heads:
        rows[0]["heads"] = {method: _counts(grid * len(rows)) for method, grid in done.heads.items()}
    return rows


def _gathered(
    benchmark: Benchmark, name: str, plan: RunPlan, rows: Mapping[str, Row], cuts: Sequence[Sequence[int]]
) -> Run:
    """A run from its finished samples, the seconds batch by batch."""
    mine = [rows[sample.id] for sample in benchmark.samples]
    seconds = [sum(mine[number].get("seconds", 0.0) for number in cut) for cut in cuts]
    run = Run(name, plan.settings, {benchmark.name: [row["reply"] for row in mine]}, {benchmark.name: seconds})
    for row in mine:
        for method, counts in row.get("heads", {}).items():
            grid = run.head_maps.setdefault(method, np.zeros(counts["shape"]))
            for layer, head, times in counts["chosen"]:
                grid[layer, head] += times / len(mine)
    return run


def _counts(grid: np.ndarray) -> dict[str, Any]:
    """A layer x head map in short: its shape, and (layer, head, value) where it is not zero."""
    chosen = [[int(layer), int(head), round(float(grid[layer, head]), 3)] for layer, head in np.argwhere(grid)]
    return {"shape": list(grid.shape), "chosen": chosen}


def _merged(out: Path, stores: Iterable[Store]) -> bool:
    """Whether another process has merged since the last sample was done."""
    result = out / RESULT
    written = [path.stat() for store in stores for path in store.folder.glob("rank-*.jsonl")]
    return result.exists() and result.stat().st_mtime_ns >= max(one.st_mtime_ns for one in written if one.st_size)
