"""The tables of a page of results: what its JSON file says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.benchmarks.benchmark import Benchmark
from sightline.benchmarks.public.captions import ChairBenchmark
from sightline.benchmarks.public.object_questions import PopeBenchmark
from sightline.benchmarks.runner.tables import code, differences, legend, made_with, pipes, scores
from sightline.profiling.tuning import tune_tables

from .. import grounding, heads_report, language_report, smol_heads

Result = Mapping[str, Any]


def read(file: Path) -> Result:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _demo(result: Result) -> str:
    """Of `sightline demo`: its command, scores and paired differences, captions first; what it was made with."""
    parts = [f"{code(result['command'])} ({result['scenes']} scenes)"]
    for benchmark, title in ((ChairBenchmark, "Captions"), (PopeBenchmark, "Questions")):
        parts += [f"## {title}", legend(result, benchmark)]
        parts += shown(result, benchmark)
    return page(parts, result)


def shown(result: Result, benchmark: type[Benchmark]) -> list[str]:
    return [pipes(table(result, benchmark)).rstrip() for table in (scores, differences)]


def page(parts: Sequence[str], result: Result) -> str:
    return "\n\n".join([*parts, "## Made with", made_with(result).rstrip()])


TABLES: Mapping[str, Callable[[Result], str]] = {
    **dict.fromkeys(("demo", "methods", "head-gain", "embedded-smol"), _demo),
    **dict.fromkeys(("tune", "methods-tuned"), tune_tables.body),
    "smol-heads": smol_heads.body,
    **dict.fromkeys(("language", "attention", "premise", "premise-open"), language_report.body),
}
"""By page, how its tables are made of its file; the rest of the page is written."""

WHOLE: Mapping[str, Callable[[Result], str]] = {"grounding": grounding.report, "retrieval-heads": heads_report.report}
"""Pages that are made of their files and nothing else."""


def tables(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and tables of each page of `TABLES`."""
    for name, made in TABLES.items():
        yield name, made(read(folder / f"{name}.json"))


def pages(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each page of `WHOLE`."""
    for name, made in WHOLE.items():
        yield name, made(read(folder / f"{name}.json"))
