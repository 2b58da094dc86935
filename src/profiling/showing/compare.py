"""Two calibration files beside each other: how alike their head tables are, and what else differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.errors import CalibrationError
from ...common.statistics import spearman
from ...plugin.calibration.files import Calibration
from ...plugin.calibration.sections import HeadTable

if TYPE_CHECKING:
    from rich.console import RenderableType

TOP = 0.1  # share of the heads that counts as top


@dataclass(frozen=True)
class Alike:
    """Two tables of the same heads.

    rank: Spearman's correlation, None where a table is flat. shared: the heads that are among the top tenth of both, of
    `top` heads, best of the first table first.
    """

    table: str
    rank: float | None
    shared: list[tuple[int, int]]
    top: int

    @property
    def overlap(self) -> float:
        return len(self.shared) / self.top


def alike(first: HeadTable, second: HeadTable, table: str = "") -> Alike:
    """Compare two tables of the same shape; of equal heads the first ones are taken."""
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    count = max(1, round(TOP * one.size))
    best, rest = (np.argsort(-grid, axis=None, kind="stable")[:count].tolist() for grid in (one, other))
    flat = one.min() == one.max() or other.min() == other.max()
    shared = [divmod(int(index), one.shape[1]) for index in best if index in set(rest)]
    return Alike(table, None if flat else spearman(one, other), shared, count)


def compare(first: Calibration, second: Calibration) -> dict[str, Any]:
    """What two files of one model shape share and where they differ, JSON-ready: `tables` and `values`.

    Raises:
        CalibrationError: their models differ in layers or heads; both numbers are named.
    """
    if (first.layers, first.heads) != (second.layers, second.heads):
        raise CalibrationError(
            f"'{first.model}' has {first.layers} layers of {first.heads} heads, '{second.model}' {second.layers} of"
            f" {second.heads}: only files of one shape can be compared"
        )
    ours, theirs = first.head_tables(), second.head_tables()
    tables = [alike(table, theirs[name], name) for name, table in ours.items() if name in theirs]
    values = []
    for section in {**first.facts(), **second.facts()}:
        pair = [getattr(one, section) for one in (first, second)]
        dumped = [
            {} if one is None else one.model_dump(exclude={"source", *one.tables()}, exclude_none=True) for one in pair
        ]
        for key in {**dumped[0], **dumped[1]}:
            one, other = (fact.get(key) for fact in dumped)
            values.append({"name": f"{section}.{key}", "first": one, "second": other, "same": one == other})
    rows = [{"table": a.table, "rank": a.rank, "overlap": a.overlap, "top": a.top, "shared": a.shared} for a in tables]
    return {"models": [first.model, second.model], "tables": rows, "values": values}


def terminal(result: dict[str, Any]) -> list[RenderableType]:
    """A comparison for a terminal."""
    from rich import box
    from rich.table import Table

    first, second = result["models"]
    heads = Table(title="Heads", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("table", "rank corr.", "shared of top 10 %", "shared heads"):
        heads.add_column(column, overflow="fold")
    for row in result["tables"]:
        rank = "flat" if row["rank"] is None else f"{row['rank']:.3f}"
        shared = " ".join(f"{layer}-{head}" for layer, head in row["shared"])
        heads.add_row(
            row["table"], rank, f"{len(row['shared'])} of {row['top']} ({100 * row['overlap']:.0f} %)", shared
        )
    values = Table(title="Values", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("value", f"A: {first}", f"B: {second}"):
        values.add_column(column, overflow="fold")
    for row in result["values"]:
        cells = ["-" if row[key] is None else str(row[key]) for key in ("first", "second")]
        values.add_row(row["name"], *cells, style="dim" if row["same"] else "")
    return [part for part, rows in ((heads, result["tables"]), (values, result["values"])) if rows]
