"""The tables of the page on speed."""

from __future__ import annotations

from pathlib import Path

from sightline.benchmarks.runner.tables import code
from sightline.benchmarks.speed.bench import PHASES

from .measured import Result, page, read

SPEED = ("embedded", "llava-shape", "llava-shape-4000", "smollm2-128", "smollm2", "smollm2-compiled", "smollm2-batch4")
"""What `sightline bench` wrote for `speed.md`."""


def tables(folder: Path) -> str:
    """Markdown of what `sightline bench` measured: of each its command, then a row for each run."""
    parts: list[str] = []
    for name in SPEED:
        result = read(folder / f"bench-{name}.json")
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
    return page(parts, result)


def _timed(row: Result) -> str:
    """Two cells: the median time, and the ratio to plain with its bounds."""
    ratio = row["ratio"]
    return f"{row['ms']:.2f} | **{ratio['median']:.2f}** ({ratio['min']:.2f} – {ratio['max']:.2f})"
