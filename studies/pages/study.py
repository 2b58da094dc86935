"""The tables of the page on the study: its summary, and each evaluation."""

from __future__ import annotations

from pathlib import Path

from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.tables import code, legend

from .choice import points
from .measured import page, read, shown

STUDY = {
    "embedded-smol-chair-0": "`embedded-smol`, seed 0",
    "embedded-smol-chair-1": "seed 1",
    "embedded-smol-long-0": "100 tokens and more",
    "embedded-smol-pope-0": "",
    "embedded-smol-methods-0": "",
    "embedded-chair-0": "`embedded`, seed 0",
    "embedded-chair-1": "seed 1",
    "embedded-long-0": "100 tokens and more",
    "embedded-pope-0": "",
}
"""What `sightline eval` wrote for `study.md`: model, benchmark, seed of the scenes; the heads of the columns of its summary, if
the file is part of that."""


def summary(folder: Path) -> str:
    """Markdown of what the study's captions say: CHAIR_I at equal recall against plain, by run and set of scenes."""
    files = [folder / f"{name}.json" for name, head in STUDY.items() if head]
    results = [read(file) for file in files]
    lines = [f"| CHAIR_I at equal recall, points (95 %) | {' | '.join(filter(None, STUDY.values()))} |"]
    lines.append("|---" * (len(results) + 1) + "|")
    for number, run in enumerate(results[0]["runs"]):
        changes = [one["runs"][number]["differences"]["chair"].get("equal") for one in results]
        cells = [
            "" if one is None else f"**{points(one)}**" if one["interval"][1] < 0 else points(one) for one in changes
        ]
        lines += [f"| {run['name']} | {' | '.join(cells)} |"] if number else []
    return "\n".join(lines)


def tables(folder: Path) -> str:
    """Markdown of the study's evaluations: of each its command, scores and paired differences."""
    parts: list[str] = []
    for name in STUDY:
        result = read(folder / f"{name}.json")
        benchmark = suite.find(result["benchmark"])
        parts = parts or [legend(result, benchmark)]
        parts += [f"## {name}", f"{code(result['command'])} (n = {result['n']})"]
        parts += shown(result, benchmark)
    return page(parts, result)
