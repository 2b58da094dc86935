"""The tables of a page of results: what its JSON file says, captions first, then questions."""

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

PAGES = ("demo", "methods", "head-gain", "embedded-smol")
"""Pages whose file `sightline demo` wrote."""

STUDY = ("embedded-smol-chair-0", "embedded-smol-chair-1", "embedded-chair-0", "embedded-chair-1")
"""What `sightline eval` wrote for `study.md`: model, benchmark, seed of the scenes."""


def tables(file: Path) -> str:
    """Markdown of a result of `sightline demo`: its command, scores, paired differences, what it was made with."""
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


def _shown(result: Mapping[str, Any], benchmark: type[Benchmark]) -> list[str]:
    return [pipes(table(result, benchmark)).rstrip() for table in (scores, differences)]


def _page(parts: Sequence[str], result: Mapping[str, Any]) -> str:
    return "\n\n".join([*parts, "## Made with", made_with(result).rstrip()])
