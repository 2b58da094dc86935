"""The tables of an evaluation, for a terminal and as Markdown: scores with intervals, then paired differences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..benchmark import Benchmark

if TYPE_CHECKING:
    from rich.table import Table

AnyBenchmark = Benchmark | type[Benchmark]
SPLIT, RUN = "split", "run"
NOISE, FEW = 0.2, 3
"""A time is quoted where half of the batches lie closer together than this share of it; of fewer batches it says how many."""
TIME = (
    "time: of a batch against {}, the median over batches; noisy, with the quartiles, where these lie more than "
    f"{100 * NOISE:.0f} % of it apart."
)

EQUAL = (
    "At equal recall: CHAIR_I minus what the first run's captions give when they are cut to the run's recall, or go on to it; "
    "empty where they do not get there. At equal yes: accuracy minus the first run's, its log-odds shifted to the run's share "
    "of yes."
)


@dataclass(frozen=True)
class Cell:
    """A text, what stands in brackets behind it, and for a difference how it counts: good, bad or open."""

    text: str
    between: str = ""
    kind: str = ""

    def joined(self, by: str = " ") -> str:
        return f"{self.text}{by}({self.between})" if self.between else self.text


@dataclass(frozen=True)
class TextTable:
    """Headings, and rows of as many cells. Rows of one split stand together."""

    header: list[str]
    rows: list[list[Cell]]


def scores(result: Mapping[str, Any], benchmark: AnyBenchmark) -> TextTable:
    """A row for each split and run, a column for each score that one of them has; intervals behind the scores."""
    parts = list(_parts(result, benchmark))
    columns = [key for key in benchmark.columns if any(key in values for _, _, values, _, _ in parts)]
    rows = []
    for split, entry, values, intervals, _ in parts:
        cells = [_score(values.get(key), intervals.get(key), key in benchmark.percent) for key in columns]
        rows.append([*_names(split, entry), *cells, relative(entry, benchmark.name)])
    return TextTable([*_first(parts), *(benchmark.columns[key] for key in columns), "time"], rows)


def differences(result: Mapping[str, Any], benchmark: AnyBenchmark) -> TextTable:
    """A row for each split and run that is compared: paired differences, in points where the score is a percentage."""
    parts = [part for part in _parts(result, benchmark) if part[1]["against"] is not None]
    columns = [key for key in benchmark.columns if any(key in changes for *_, changes in parts)]
    tested = any("mcnemar" in changes for *_, changes in parts)
    rows = []
    for split, entry, _, _, changes in parts:
        cells = [_change(changes[key], key, benchmark) if key in changes else Cell("") for key in columns]
        if tested:
            found = changes.get("mcnemar")
            cells.append(Cell(f"+{found['gained']} -{found['lost']}, p = {found['p']:.3g}" if found else ""))
        rows.append([*_names(split, entry), *cells])
    return TextTable(
        [*_first(parts), *(benchmark.columns[key] for key in columns), *(["McNemar"] if tested else [])], rows
    )


def harness(runs: Mapping[str, Mapping[str, float]]) -> TextTable:
    """A row for each run, a column for each score, as a harness names them."""
    keys = list(dict.fromkeys(key for found in runs.values() for key in found))
    rows = [
        [Cell(name), *(Cell(f"{found[key]:.4f}" if key in found else "") for key in keys)]
        for name, found in runs.items()
    ]
    return TextTable([RUN, *keys], rows)


def relative(entry: Mapping[str, Any], benchmark: str) -> Cell:
    """A run's time against the first run's, or that the noise is too large to quote it; nothing where none was taken."""
    known = entry.get("times", {}).get(benchmark)
    ratio = entry["time_ratio"] if known is None else known["ratio"]
    if not ratio:
        return Cell("")
    if known is not None and known["high"] - known["low"] > NOISE * ratio:
        return Cell("noisy", f"{known['low']:.2f}–{known['high']:.2f}")
    if known is not None and known["batches"] < FEW:
        return Cell(f"{ratio:.2f}", "1 batch" if known["batches"] == 1 else f"{known['batches']} batches")
    return Cell(f"{ratio:.2f}")


def kind(change: Mapping[str, Any], key: str, benchmark: AnyBenchmark) -> str:
    """How a difference counts: open, unless its interval leaves zero out and the score has a better direction."""
    low, high = change["interval"]
    if low <= 0 <= high or key in benchmark.neutral:
        return "open"
    return "good" if (high < 0) == (key in benchmark.lower) else "bad"


def markdown(result: Mapping[str, Any], benchmark: AnyBenchmark) -> str:
    """The tables, the notes and where the numbers come from, as a Markdown page."""
    return (
        f"# {benchmark.name}, {result['n']} samples\n\n{code(result['command'])}\n\n{legend(result, benchmark)}\n\n"
        + body(result, benchmark)
        + f"\n{made_with(result)}"
    )


def body(result: Mapping[str, Any], benchmark: AnyBenchmark) -> str:
    """The tables and the notes as Markdown."""
    changes = differences(result, benchmark)
    notes = "".join(f"- {one_line(note)}\n" for note in result["notes"])
    return (
        pipes(scores(result, benchmark))
        + (f"\n{pipes(changes)}" if changes.rows else "")
        + (f"\n{notes}" if notes else "")
    )


def made_with(result: Mapping[str, Any]) -> str:
    """Versions and hashes as Markdown."""
    hashes = "\n".join(f"- {name}: `{digest}`" for name, digest in result["hashes"].items())
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + f"\n\n{hashes}\n"


def terminal(result: Mapping[str, Any], benchmark: AnyBenchmark) -> list[Any]:
    """The tables and notes for a terminal."""
    shown: list[Any] = [
        rich(f"{benchmark.name}, {result['n']} samples", scores(result, benchmark), legend(result, benchmark))
    ]
    changes = differences(result, benchmark)
    if changes.rows:
        against = ", ".join(dict.fromkeys(entry["against"] for entry in result["runs"] if entry["against"]))
        shown.append(rich(f"against {against}", changes, ""))
    return shown + [f"note: {note}" for note in result["notes"]]


def legend(result: Mapping[str, Any], benchmark: AnyBenchmark) -> str:
    against = result["runs"][0]["name"]
    return (
        "Rates in percent, in brackets 95 % bootstrap intervals over images (questions, where there are none); "
        "differences are paired, in points. "
        f"{TIME.format(against)}" + (f" {EQUAL}" if "equal" in benchmark.columns else "")
    )


def pipes(grid: TextTable) -> str:
    """A grid as a Markdown table."""
    rows = [grid.header, ["---"] * len(grid.header), *([cell.joined() for cell in row] for row in grid.rows)]
    return "".join("| " + " | ".join(one_line(text).replace("|", "\\|") for text in row) + " |\n" for row in rows)


def one_line(text: str) -> str:
    """A text for Markdown that cannot end its line, nor start HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def code(text: str) -> str:
    """A text as code in Markdown, on one line."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def rich(title: str, grid: TextTable, caption: str) -> Table:
    """A grid for a terminal."""
    from rich import box
    from rich.markup import escape as plain_text
    from rich.table import Table

    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False
    )
    for column in grid.header:
        table.add_column(plain_text(column), justify="left" if column in (RUN, SPLIT) else "right")
    for row in grid.rows:
        table.add_row(*(plain_text(cell.joined("\n")) for cell in row))
    return table


def _parts(result: Mapping[str, Any], benchmark: AnyBenchmark) -> Iterator[tuple[str | None, Any, Any, Any, Any]]:
    """(split or None, entry, scores, intervals, differences), the runs of a split together."""
    values = result["runs"][0][benchmark.name]
    split_up = all(isinstance(one, Mapping) for one in values.values())
    for split in values if split_up else [None]:
        for entry in result["runs"]:
            found = [part[benchmark.name] for part in (entry, entry["intervals"], entry["differences"])]
            yield (split, entry, *(part if split is None else part[split] for part in found))


def _names(split: str | None, entry: Mapping[str, Any]) -> list[Cell]:
    return [*([Cell(split)] if split is not None else []), Cell(str(entry["name"]))]


def _first(parts: Sequence[tuple[str | None, Any, Any, Any, Any]]) -> list[str]:
    return [SPLIT, RUN] if parts and parts[0][0] is not None else [RUN]


def _score(value: Any, between: Sequence[float] | None, percent: bool) -> Cell:
    if value is None or isinstance(value, int):
        return Cell("" if value is None else str(value))
    factor = 100 if percent else 1
    interval = "" if between is None else f"{factor * between[0]:.1f}–{factor * between[1]:.1f}"
    return Cell(f"{factor * value:.1f}", interval)


def _change(change: Mapping[str, Any], key: str, benchmark: AnyBenchmark) -> Cell:
    factor, (low, high) = 100 if key in benchmark.percent else 1, change["interval"]
    interval = f"{factor * low:+.1f} to {factor * high:+.1f}"
    return Cell(f"{factor * change['value']:+.1f}", interval, kind(change, key, benchmark))
