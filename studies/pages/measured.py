"""The tables of a page of results: what its JSON files say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.benchmarks.benchmark import Benchmark
from sightline.benchmarks.public.captions import ChairBenchmark
from sightline.benchmarks.public.object_questions import PopeBenchmark
from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.tables import code, differences, legend, made_with, pipes, scores
from sightline.benchmarks.speed.bench import PHASES
from sightline.plugin.calibration.files import shipped

PAGES = ("demo", "methods", "head-gain", "embedded-smol")
"""Pages whose file `sightline demo` wrote."""

STUDY = ("embedded-smol-chair-0", "embedded-smol-chair-1", "embedded-chair-0", "embedded-chair-1")
"""What `sightline eval` wrote for `study.md`: model, benchmark, seed of the scenes."""


SPEED = (
    "embedded",
    "embedded-contrast",
    "llava-shape-128",
    "llava-shape",
    "llava-shape-4000",
    "smollm2",
    "smollm2-compiled",
    "smollm2-batch4",
)
"""What `sightline bench` wrote for `speed.md`."""


def tables(file: Path) -> str:
    """Markdown of a result of `sightline demo`: captions first, then questions, and what it was made with."""
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    parts = [f"{code(result['command'])} ({result['scenes']} scenes)"]
    for benchmark, title in ((ChairBenchmark, "Captions"), (PopeBenchmark, "Questions")):
        parts += [f"## {title}", legend(result, benchmark)]
        parts += _shown(result, benchmark)
    return _page(parts, result)


def study(folder: Path) -> str:
    """Markdown of the study's evaluations: of each its command, scores and paired differences."""
    parts: list[str] = []
    for name in STUDY:
        result: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        benchmark = suite.find(result["benchmark"])
        parts = parts or [legend(result, benchmark)]
        parts += [f"## {name}", f"{code(result['command'])} (n = {result['n']})"]
        parts += _shown(result, benchmark)
    return _page(parts, result)


def speed(folder: Path) -> str:
    """Markdown of what `sightline bench` measured: of each its command, then a row for each run."""
    parts: list[str] = []
    for name in SPEED:
        result: dict[str, Any] = json.loads((folder / f"bench-{name}.json").read_text(encoding="utf-8"))
        model, rows = result["model"], result["rows"]
        parts += [f"## {name}", code(result["command"])]
        parts.append(
            f"{model['parameters'] / 1e6:.0f}M parameters, batch {result['batch']}, a prompt of {model['prompt_tokens']} tokens."
        )
        lines = ["| run | prefill ms | times plain | decode ms | times plain | peak MB |", "|---|---|---|---|---|---|"]
        for run in dict.fromkeys(row["name"] for row in rows):
            prefill, decode = (
                next(row for row in rows if (row["name"], row["phase"]) == (run, phase)) for phase in PHASES
            )
            peak = max(prefill["peak_mb"], decode["peak_mb"])
            lines.append(f"| {run} | {_timed(prefill)} | {_timed(decode)} | {peak:.0f} |")
        parts.append("\n".join(lines))
    return _page(parts, result)


def _timed(row: Mapping[str, Any]) -> str:
    """Two cells: the median time, and the ratio to plain with its bounds."""
    ratio = row["ratio"]
    return f"{row['ms']:.2f} | **{ratio['median']:.2f}** ({ratio['min']:.2f} – {ratio['max']:.2f})"


def thresholds() -> str:
    """Markdown of the gates' thresholds in the shipped calibration files."""
    lines = [
        "| model | signal | by | opens | AUROC | of hallucinated words | of true words |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, calibration in shipped().items():
        known = calibration.gate_thresholds
        for by in ("now", "previous") if known is not None else ():
            for signal, one in getattr(known, by):
                share = f"{100 * one.of_hallucinated:.0f} % | {100 * one.of_true:.0f} %"
                cells = f"`{signal}` | `{by}` | {one.side} {one.value:g} | {one.auroc:.2f} | {share}"
                lines.append(f"| {model.rpartition('/')[2]} | {cells} |")
    return "\n".join(lines)


def _shown(result: Mapping[str, Any], benchmark: type[Benchmark]) -> list[str]:
    return [pipes(table(result, benchmark)).rstrip() for table in (scores, differences)]


def _page(parts: Sequence[str], result: Mapping[str, Any]) -> str:
    return "\n\n".join([*parts, "## Made with", made_with(result).rstrip()])
