"""The tables of the page on the study: its summary, and each evaluation."""

from __future__ import annotations

from pathlib import Path

from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.tables import code, legend

from .choice import points, together
from .measured import page, read, shown

STUDY = (
    "embedded-smol-chair-0",
    "embedded-smol-chair-1",
    "embedded-smol-long-0",
    "embedded-smol-pope-0",
    "embedded-smol-methods-0",
    "embedded-chair-0",
    "embedded-chair-1",
    "embedded-long-0",
    "embedded-pope-0",
)
"""What `sightline eval` wrote for `study.md`: model, benchmark, seed of the scenes."""

COLUMNS = (
    ("`embedded-smol`, seed 0", ("embedded-smol-chair-0",)),
    ("seed 1", ("embedded-smol-chair-1",)),
    ("both", ("embedded-smol-chair-0", "embedded-smol-chair-1")),
    ("100 tokens and more", ("embedded-smol-long-0",)),
    ("`embedded`, seed 0", ("embedded-chair-0",)),
    ("seed 1", ("embedded-chair-1",)),
    ("both", ("embedded-chair-0", "embedded-chair-1")),
    ("100 tokens and more", ("embedded-long-0",)),
)
"""Of the summary: each a head and the sets of scenes that it takes together."""


def summary(folder: Path) -> str:
    """Markdown of what the study's captions say: CHAIR_I at equal recall against plain, by run and set of scenes."""
    lines = [f"| CHAIR_I at equal recall, points (95 %) | {' | '.join(head for head, _ in COLUMNS)} |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    columns = [[read(folder / f"{name}.json")["runs"] for name in names] for _, names in COLUMNS]
    for number, run in enumerate(columns[0][0]):
        if not number:
            continue  # plain
        cells = []
        for sets in columns:
            changes = [runs[number]["differences"]["chair"].get("equal") for runs in sets]
            one = together(changes) if all(changes) else None
            cells.append("" if one is None else f"**{points(one)}**" if one["interval"][1] < 0 else points(one))
        lines.append(f"| {run['name']} | {' | '.join(cells)} |")
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
