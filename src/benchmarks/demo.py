"""`sightline demo`: an embedded model on scenes it has never seen, plain and under every configuration of a suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import SightlineError
from ..common.files import config_hash, images_hash, model_hash, provenance, read_suite, write_json
from ..common.progress import progress_bar
from ..models.loading import cpu_threads, load_model
from ..models.naming import EMBEDDED, EMBEDDED_SMOL
from ..plugin.calibration.files import calibration_hash, find_shipped, found_at
from ..plugin.config import named_configs
from .benchmark import Benchmark
from .public.captions import PROMPT, ChairBenchmark
from .public.object_questions import PopeBenchmark
from .public.pope import SPLITS
from .public.scenes import SPLIT
from .runner.evaluate import RESULT, SAMPLES, write_samples
from .runner.plan import plans
from .runner.run import Run, calls, results, run
from .runner.tables import TIME, relative

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

LABELS = {
    EMBEDDED: "embedded testbed model, generated scenes",
    EMBEDDED_SMOL: "SmolLM2-135M that sees (embedded-smol), generated scenes",
}
SUITES = {EMBEDDED: "demo.yaml", EMBEDDED_SMOL: "demo-smol.yaml"}
ABOUT = (
    "A small vision-language model, trained for this project on generated scenes with strong co-occurrence habits, "
    "describes scenes it has never seen and answers questions about them: plain, then with Sightline attached. No weight "
    "is changed. Greedy decoding, {scenes} scenes of the {split} split, seed {seed}. The numbers speak of this model only."
)
BATCH = {"chair": 20, "pope": 60}
"""Rows of a batch; a question is short."""


@dataclass
class Demo:
    """What a demo measured: the JSON-ready result, the captions' benchmark, and the runs with every caption."""

    result: dict[str, Any]
    captions: ChairBenchmark
    runs: list[Run]


def demo(*, name: str = EMBEDDED, scenes: int = 60, seed: int = 0, suite: Path | None = None, threads: int = 1) -> Demo:
    """Run an embedded model plain and under each configuration of the suite.

    Args:
        name: a key of `LABELS`: only these models know the scenes.
        scenes: how many scenes of the split.
        seed: chooses the scenes, the questions and the bootstrap draws.
        suite: a YAML file of named configurations instead of the shipped one of `SUITES`.
        threads: CPU threads. The model is small: one is quick, and its sums come out the same on every machine.

    Raises:
        SightlineError: another model, the suite cannot be read, or a configuration does not fit the model.
    """
    from .. import testbed

    if name not in LABELS:
        raise SightlineError(
            f"demo shows generated scenes, which model {name!r} was not made for: choose {' or '.join(LABELS)}, or "
            "measure yours with sightline eval"
        )
    given = read_suite(SUITES[name], suite)
    configs = named_configs(given, str(suite or f"eval/{SUITES[name]}"))
    model, processor = load_model(name)
    shown = list(testbed.scenes(SPLIT, scenes, seed=seed))
    captions, questions = ChairBenchmark.of_scenes(shown, PROMPT), PopeBenchmark.of_scenes(shown, seed=seed)
    benchmarks: list[Benchmark] = [captions, questions]
    chosen = plans(configs, model, processor)
    with cpu_threads(threads), progress_bar() as bar:
        job = bar.add_task("plain", total=calls(benchmarks, BATCH, len(chosen)))
        tick = lambda name: bar.update(job, advance=1, description=name)  # noqa: E731
        runs = run(model, processor, benchmarks, chosen, batch=BATCH, advance=tick)
    hashes = {
        "model": model_hash(model),
        "scenes": images_hash(scene.image for scene in shown),
        "suite": config_hash(given),
        "calibration": calibration_hash(find_shipped(model)),
    }
    about = ABOUT.format(scenes=scenes, split=SPLIT, seed=seed)
    result: dict[str, Any] = {"label": LABELS[name], "about": about, "runs": _entries(runs, benchmarks, seed)}
    result |= {"split": SPLIT, "scenes": scenes, "seed": seed, "batch": BATCH["chair"], "threads": threads}
    result |= {"calibration": found_at(model), **provenance(hashes)}
    return Demo(result, captions, runs)


def _entries(runs: list[Run], benchmarks: list[Benchmark], seed: int) -> list[dict[str, Any]]:
    """The runs' results; of the questions the three splits only."""
    entries = results(runs, benchmarks, seed=seed)
    for entry in entries:
        for part in (entry, entry["intervals"], entry["differences"]):
            del part["pope"]["mean"]
    return entries


def save(measured: Demo, folder: Path | None, json_file: Path | None) -> list[Path]:
    """Write what `sightline report` reads, and its pages, into the folder, and the result to the JSON file."""
    from .report import page as report

    written = []
    if folder is not None:
        replies = {item.name: item.replies["chair"] for item in measured.runs}
        write_samples(measured.captions, replies, folder)
        write_json(folder / RESULT, measured.result)
        report.write([folder], folder)
        written += [folder / name for name in (report.PAGE, report.TABLES, SAMPLES, RESULT)]
    if json_file is not None:
        write_json(json_file, measured.result)
        written.append(json_file)
    return written


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """The result for a terminal: captions, then questions; percent, with 95 % intervals below each score."""
    return [_caption_table(result), _question_table(result)]


def _caption_table(result: Mapping[str, Any]) -> Table:
    table = _table(f"Captions: {result['label']}")
    for column in ("run", "CHAIR_S", "CHAIR_I", "recall", "I at equal\nrecall", "words", "time"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for entry in result["runs"]:
        scores, between = entry["chair"], entry["intervals"]["chair"]
        table.add_row(
            entry["name"],
            *(_percent(scores[key], between[key]) for key in ("s", "i", "recall")),
            _points(entry["differences"]["chair"].get("equal")),
            f"{scores['words']:.1f}\n[dim]{between['words'][0]:.1f}–{between['words'][1]:.1f}[/dim]",
            relative(entry, "chair").joined("\n"),
        )
    table.caption = (
        f"n = {result['runs'][0]['chair']['n']} captions. Lower CHAIR is better, if recall holds. Below each score: its "
        "95 % bootstrap interval over scenes. I at equal recall: points of CHAIR_I above (+) or below (-) plain captions "
        "that are cut to the run's recall, which is free; empty where plain, going on, does not get there. "
        + TIME.format("plain")
    )
    return table


def _question_table(result: Mapping[str, Any]) -> Table:
    table = _table(f"Questions: {result['label']}")
    table.add_column("run", no_wrap=True)
    for split in SPLITS:
        table.add_column(f"{split if len(split) < 8 else split[:6] + '.'}\nacc.", justify="right", no_wrap=True)
        table.add_column("\nF1", justify="right", no_wrap=True)
        table.add_column("\nyes", justify="right", no_wrap=True)
    for entry in result["runs"]:
        cells = []
        for split in SPLITS:
            scores, between = entry["pope"][split], entry["intervals"]["pope"][split]
            cells += [_percent(scores[key], between[key]) for key in ("accuracy", "f1", "yes_ratio")]
        table.add_row(entry["name"], *cells)
    unparsed = sum(entry["pope"][split]["unparsed"] for entry in result["runs"] for split in SPLITS)
    table.caption = (
        f"n = {result['runs'][0]['pope']['random']['n']} a split; random, popular, adversarial: how the absent objects "
        f"are chosen. yes: share of yes among the replies (the truth is 50). Neither yes nor no: {unparsed} replies."
    )
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )


def _points(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return ""
    low, high = change["interval"]
    return f"{100 * change['value']:+.1f}\n[dim]{100 * low:+.0f} to {100 * high:+.0f}[/dim]"


def _percent(value: float, between: tuple[float, float]) -> str:
    return f"{100 * value:.1f}\n[dim]{100 * between[0]:.0f}–{100 * between[1]:.0f}[/dim]"
