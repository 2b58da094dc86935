"""CARVE on the embedded model: `python -m studies.carving --out DIR` writes carve.md and carve.json.

POPE's questions about test scenes, answered plain and with what CARVE shows: its defaults, its variants, and the setting
that answered most questions about calibration scenes right. Scenes know where each object is, so the page also says how
much of the object in question the kept region covers, against a region of that size put anywhere.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sightline.benchmarks.public.object_questions import PopeBenchmark
from sightline.benchmarks.runner.plan import PLAIN
from sightline.benchmarks.runner.run import Run, results
from sightline.common.files import model_hash, provenance, write_json, write_text
from sightline.common.statistics import Ratio, interval
from sightline.models.prompting import encoded, turn
from sightline.preprocessing.carve import Carve, CarveSettings, Carving, ContrastMap, carved, carved_inputs

BATCH = 30
NEW_TOKENS = 3
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "mask": {"refine": "mask"},
    "crop": {"refine": "crop"},
    "both pictures": {"pictures": "both"},
    "one step": {"steps": 1},
}
LOOKS = [
    {"layers": layers, "steps": steps} for layers in ([3, 4], [5, 6], [0, 1, 2, 3, 4, 5, 6, 7]) for steps in (1, 32)
]
SHAPES: list[dict[str, Any]] = [
    {"top": top, "refine": refine, "pictures": pictures}
    for top in (0.2, 0.4, 0.6)
    for refine, pictures in (
        ("mask and crop", "refined"),
        ("mask", "refined"),
        ("crop", "refined"),
        ("mask and crop", "both"),
    )
]


class SceneQuestions:
    """Questions about scenes: pictures, words and the boxes of the object in question (none where it is absent)."""

    def __init__(self, split: str, number: int, seed: int):
        from sightline import testbed

        self.scenes = list(testbed.scenes(split, number, seed=seed))
        self.pope = PopeBenchmark.of_scenes(self.scenes, seed=seed)
        self.images: list[Any] = [sample.image for sample in self.pope.samples]
        self.words = [sample.text for sample in self.pope.samples]
        items = [item for asked in self.pope.splits.values() for item in asked]
        self.scene = {item.sample: item.image for item in items}

    def batches(self) -> Iterator[slice]:
        return (slice(start, start + BATCH) for start in range(0, len(self.words), BATCH))

    def boxes(self, number: int) -> list[tuple[int, int, int, int]]:
        from sightline import testbed

        shown = self.scenes[self.scene[number]].objects
        return [item.box for item in shown if testbed.question(item.name) == self.words[number]]


def answered(model: Any, processor: Any, inputs: Any) -> list[str]:
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False).cpu()
    replies = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def choose(
    model: Any, processor: Any, asked: SceneQuestions, advance: Callable[[], None]
) -> list[tuple[dict[str, Any], float]]:
    """What was tried and the mean accuracy over the splits, best first.

    Tried is every shape with the default look, then every look with the best shape.
    """
    from sightline.plugin.core.host import host_of

    facts = host_of(model).facts(None)

    def look(chosen: Mapping[str, Any]) -> list[ContrastMap]:
        method = Carve(CarveSettings(**chosen), facts)
        parts = (method.maps(model, processor, asked.images[part], asked.words[part]) for part in asked.batches())
        return [one for found in parts for one in found]

    def accuracy(settings: Mapping[str, Any], found: Sequence[ContrastMap]) -> float:
        replies, chosen = [], CarveSettings(**settings)
        for part in asked.batches():
            new = map(carved, itertools.repeat(chosen), asked.images[part], asked.words[part], found[part])
            replies += answered(model, processor, carved_inputs(model, processor, list(new)))
        advance()
        return float(asked.pope.score(replies)["mean"].ratios["accuracy"].value)

    usual = look({})
    tried = [(shape, accuracy(shape, usual)) for shape in SHAPES]
    best = max(tried, key=lambda row: row[1])[0]
    tried += [({**best, **one}, accuracy({**best, **one}, look(one))) for one in LOOKS]
    return sorted(tried, key=lambda row: -row[1])


def measure(
    model: Any,
    processor: Any,
    asked: SceneQuestions,
    variants: Mapping[str, Mapping[str, Any]],
    advance: Callable[[], None],
) -> tuple[list[Run], dict[str, dict[str, Any]]]:
    """Replies and seconds of plain and of every variant, batch by batch in turn, and how well each region fits.

    A look that variants share is taken once, and its seconds count for each of them.
    """
    from sightline.plugin.core.host import host_of

    facts = host_of(model).facts(None)
    runs = [Run(PLAIN, {}), *(Run(name, settings) for name, settings in variants.items())]
    fits: dict[str, list[tuple[int, list[float]]]] = {name: [] for name in variants}
    for part in asked.batches():
        images, words = asked.images[part], asked.words[part]
        looks: dict[str, tuple[list[ContrastMap], float]] = {}
        for run in runs:
            if run.name == PLAIN:
                start, new = time.perf_counter(), []
                inputs = encoded(
                    model, processor, [turn(processor, one, 1) for one in words], [[one] for one in images]
                )
            else:
                settings = CarveSettings(**run.config)
                key = repr((settings.layers, settings.steps))
                if key not in looks:
                    start = time.perf_counter()
                    found = Carve(settings, facts).maps(model, processor, images, words)
                    looks[key] = found, time.perf_counter() - start
                start = time.perf_counter() - looks[key][1]
                new = [carved(settings, *one) for one in zip(images, words, looks[key][0], strict=True)]
                inputs = carved_inputs(model, processor, new)
            replies = answered(model, processor, inputs)
            run.seconds.setdefault("pope", []).append(time.perf_counter() - start)
            run.replies.setdefault("pope", []).extend(replies)
            for number, one in enumerate(new, start=part.start):
                boxes = asked.boxes(number)
                if boxes:
                    fits[run.name].append((asked.scene[number], fit(one, boxes)))
            advance()
    return runs, {name: _fits(rows, len(asked.scenes)) for name, rows in fits.items()}


def fit(found: Carving, boxes: Sequence[tuple[int, int, int, int]]) -> list[float]:
    """How well a carving fits an object's boxes, in five shares.

    The share of the boxes that the kept pixels cover, the share of the picture that they are (which is what they would
    cover by chance), the same two for the cut-out box, and how often a pixel of the object is hotter than another one
    (a half by chance).
    """
    inside = np.zeros(found.mask.shape, dtype=bool)
    for left, top, right, bottom in boxes:
        inside[top:bottom, left:right] = True
    cut = np.zeros_like(inside)
    left, top, right, bottom = found.box
    cut[top:bottom, left:right] = True
    order = np.sort(found.heat[~inside])
    below, upto = (np.searchsorted(order, found.heat[inside], side=side) for side in ("left", "right"))
    hotter = float((below + upto).mean() / 2 / max(1, len(order)))
    return [*(float(share) for kept in (found.mask, cut) for share in (kept[inside].mean(), kept.mean())), hotter]


def _fits(rows: Sequence[tuple[int, list[float]]], scenes: int) -> dict[str, Any]:
    """Means over questions, with intervals over scenes; `mask` and `box` are what they cover beyond chance."""
    values = np.array([row for _, row in rows])
    where = [image for image, _ in rows]
    count = np.bincount(where, minlength=scenes)
    found: dict[str, Any] = {"n": len(rows)}

    def mean(column: Any) -> dict[str, Any]:
        ratio = Ratio.of(np.bincount(where, column, scenes), count)
        return {"value": ratio.value, "interval": interval(ratio)}

    found |= {name: mean(values[:, i]) for i, name in enumerate(FITS[:5])}
    found |= {"mask_gain": mean(values[:, 0] - values[:, 1]), "box_gain": mean(values[:, 2] - values[:, 3])}
    return found


def page(result: Mapping[str, Any]) -> str:
    """The Markdown page."""
    runs = result["runs"]
    tried = result["calibration"]

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]) + "\n"

    def rate(value: float, between: Sequence[float]) -> str:
        return f"{100 * value:.1f} ({100 * between[0]:.1f}–{100 * between[1]:.1f})"

    def change(one: Mapping[str, Any]) -> str:
        low, high = one["interval"]
        return f"{100 * one['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"

    scores, changes = [], []
    for split in runs[0]["pope"]:
        for run in runs:
            cells = [rate(run["pope"][split][key], run["intervals"]["pope"][split][key]) for key in KEYS]
            scores.append([split, run["name"], *cells, f"{run['time_ratio']:.2f}"])
            if run is not runs[0]:
                found = run["differences"]["pope"][split]
                test = found.get("mcnemar")  # the mean of the splits has none
                odds = f"+{test['gained']} -{test['lost']}, p = {test['p']:.2g}" if test else ""
                changes.append([split, run["name"], *(change(found[key]) for key in KEYS), odds])
    fits = []
    for name in ("default", "one step", "chosen"):  # the others keep the default's pixels
        one = result["fits"][name]
        shares = (rate(one[key]["value"], one[key]["interval"]) for key in FITS[:5])
        fits.append([name, *shares, *(change(one[key]) for key in FITS[5:])])
    best = [[f"`{settings}`", f"{100 * accuracy:.1f}"] for settings, accuracy in [*tried[:5], tried[-1]]]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"""# CARVE on the embedded model

`{result["command"]}`

{result["scenes"]} test scenes, {result["questions"]} different questions; the model is the embedded testbed model (8 layers, 64
image tokens, pictures of 96 pixels), so what helps here need not help elsewhere, and the other way round. `chosen` is the
best of {len(tried)} settings on {result["calibration_scenes"]} calibration scenes: `{tried[0][0]}`. Rates in percent, in
brackets 95 % bootstrap intervals over scenes; differences to plain are paired, in points. time: all seconds, CARVE's
looks included, against plain; each variant pays for its look, also where several share it.

## POPE

{table(["split", "run", *KEYS.values(), "time"], scores)}
{table(["split", "run", *KEYS.values(), "McNemar"], changes)}
## Where it looks

Of the boxes of the object in question, where it is there ({next(iter(result["fits"].values()))["n"]} questions): how much of
them the kept pixels and the box around these cover, how much of the picture these are, which is what they would cover by
chance, how often a pixel of the object is hotter than one elsewhere (50 by chance), and what is covered beyond chance.

{table(["run", "kept covers", "kept", "box covers", "box", "hotter", "kept - chance", "box - chance"], fits)}
## Settings on the calibration scenes

Mean accuracy over the splits; plain {100 * result["calibration_plain"]:.1f}. The five best and the worst:

{table(["settings", "accuracy"], best)}
{versions}, model `{result["hashes"]["model"]}`
"""


KEYS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "yes_ratio": "yes"}
FITS = ("mask_covers", "mask_chance", "box_covers", "box_chance", "hotter", "mask_gain", "box_gain")


def main(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the page and its numbers.")],
    scenes: Annotated[int, typer.Option(min=1, help="Test scenes.")] = 150,
    calibration: Annotated[int, typer.Option(min=1, help="Calibration scenes that settings are chosen on.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Draws scenes and questions.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure CARVE on the embedded model."""
    from rich.progress import Progress
    from sightline import testbed
    from sightline.common.files import check_writable
    from sightline.models.loading import cpu_threads, quiet

    quiet()
    check_writable(out=out / "carve.md")
    with cpu_threads(threads), Progress() as bar:
        model, processor = testbed.load()
        known, asked = SceneQuestions("calibration", calibration, seed), SceneQuestions("test", scenes, seed)
        job = bar.add_task("settings", total=len(LOOKS) + len(SHAPES))
        tried = choose(model, processor, known, lambda: bar.advance(job))
        plain = measure(model, processor, known, {}, lambda: None)[0][0]
        job = bar.add_task("test scenes", total=len(list(asked.batches())) * (2 + len(VARIANTS)))
        runs, fits = measure(model, processor, asked, {**VARIANTS, "chosen": tried[0][0]}, lambda: bar.advance(job))
    result = {
        "runs": results(runs, [asked.pope], seed=seed),
        "fits": fits,
        "calibration": tried,
        "calibration_plain": float(known.pope.score(plain.replies["pope"])["mean"].ratios["accuracy"].value),
        "calibration_scenes": calibration,
        "scenes": scenes,
        "questions": len(asked.words),
        **provenance({"model": model_hash(model)}),
        "command": " ".join(["python -m studies.carving", *sys.argv[1:]]),
    }
    write_json(out / "carve.json", result)
    write_text(out / "carve.md", page(result))


if __name__ == "__main__":
    typer.run(main)
