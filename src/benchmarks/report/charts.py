"""Small charts for the HTML report, as shapes that its template draws in SVG; colours come from the style sheet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ROW = 24
LETTERS = 30
"""Letters of a run's name that fit beside a line."""


@dataclass(frozen=True)
class Shape:
    """An SVG element: its tag, its attributes, and what stands in it; `tip` is shown where a pointer rests on it."""

    tag: str
    attributes: dict[str, Any]
    text: str = ""
    tip: str = ""


@dataclass
class Chart:
    """Shapes on a canvas, in pixels."""

    title: str
    width: int
    height: int
    shapes: list[Shape] = field(default_factory=list)

    def line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.shapes.append(Shape("line", {"class": kind, **_rounded(x1=x1, y1=y1, x2=x2, y2=y2)}))

    def rect(
        self, kind: str, x: float, y: float, width: float, height: float, *, opacity: float | None = None, tip: str = ""
    ) -> None:
        faded = {} if opacity is None else {"fill-opacity": f"{opacity:.2f}"}
        where = _rounded(x=x, y=y, width=width, height=height)
        self.shapes.append(Shape("rect", {"class": kind, **where, "rx": 2, **faded}, tip=tip))

    def write(self, kind: str, x: float, y: float, text: str, anchor: str = "start") -> None:
        self.shapes.append(Shape("text", {"class": kind, **_rounded(x=x, y=y), "text-anchor": anchor}, text))


def forest(title: str, rows: Sequence[tuple[str, float, tuple[float, float], str]], *, scale: float) -> Chart:
    """Differences with their intervals, one line per run, times `scale` (100 turns fractions into points).

    A row is a run's name, the difference, its interval, and how it counts: good, bad or open.
    """
    names = [name if len(name) <= LETTERS else name[: LETTERS - 1] + "…" for name, *_ in rows]
    labels, plot = 16 + 7.5 * max([8, *map(len, names)]), 208
    reach = max([0.5 / scale, *(abs(bound) for _, _, between, _ in rows for bound in between)]) * 1.08
    chart = Chart(title, round(labels + plot + 68), ROW * len(rows) + 26)
    middle = labels + plot / 2

    def x(value: float) -> float:
        return middle + value / reach * plot / 2

    chart.line("zero", middle, 2, middle, chart.height - 22)
    for number, (name, (_, value, (low, high), kind)) in enumerate(zip(names, rows, strict=True)):
        y = ROW * number + 14
        chart.write("name", labels - 10, y + 4, name, "end")
        chart.line(f"reach {kind}", x(low), y, x(high), y)
        chart.shapes.append(Shape("circle", {"class": f"value {kind}", **_rounded(cx=x(value), cy=y), "r": 4.5}))
        chart.write(f"num {kind}", chart.width - 2, y + 4, _signed(scale * value), "end")
    for sign in (-1, 0, 1):
        text = _signed(scale * sign * reach / 1.08) if sign else "0"
        chart.write("tick", x(sign * reach / 1.08), chart.height - 6, text, "middle")
    return chart


def positions(title: str, series: Sequence[tuple[str, Sequence[dict[str, float]]]], last: int) -> Chart:
    """Share of hallucinated mentions by the mention's place in the caption, bars side by side for each series."""
    chart, floor = Chart(title, 560, 190), 150
    top = max([0.05, *(row["i"] for _, rows in series for row in rows)])
    places = max([1, *(int(row["position"]) for _, rows in series for row in rows)])
    step = (chart.width - 50) / places
    bar = min(22.0, step * 0.8 / max(1, len(series)))
    chart.line("zero", 44, floor, chart.width, floor)
    for value in (top, top / 2):
        y = floor - value / top * (floor - 14)
        chart.line("grid", 44, y, chart.width, y)
        chart.write("tick", 38, y + 4, f"{100 * value:.0f} %", "end")
    for number, (name, rows) in enumerate(series):
        for row in rows:
            left = 48 + step * (row["position"] - 0.5) + bar * (number - len(series) / 2)
            tall = row["i"] / top * (floor - 14)
            tip = f"{name}: {100 * row['i']:.1f} % of {int(row['n'])} mentions"
            chart.rect(f"series{number}", left, floor - tall, bar - 2, tall, tip=tip)
    for place in range(1, places + 1):
        text = f"{place}+" if place == last else str(place)
        chart.write("tick", 48 + step * (place - 0.5), floor + 16, text, "middle")
    for number, (name, _) in enumerate(series):
        x = 48 + 150 * number
        chart.rect(f"series{number}", x, chart.height - 14, 10, 10)
        chart.write("name", x + 16, chart.height - 5, name)
    return chart


def tradeoff(
    title: str,
    curve: Sequence[dict[str, Any]],
    runs: Sequence[tuple[str, dict[str, float], dict[str, Sequence[float]], str]],
) -> Chart:
    """Recall against CHAIR_I: the line of plain captions cut shorter, dashed where they go on, and each run with its bars.

    A run is its name, its scores and intervals, and how it counts against the line: good, bad or open.
    """
    chart, left, floor = Chart(title, 560, 330), 46.0, 280.0
    points = [(one["recall"], one["i"]) for one in curve]
    reach = [[*(at for at, _ in points)], [*(rate for _, rate in points)]]
    for _, _, between, _ in runs:
        reach = [[*old, *between[key]] for old, key in zip(reach, ("recall", "i"), strict=True)]
    (low, high), (bottom, top) = ((min(some), max(max(some), min(some) + 0.01)) for some in reach)

    def x(recall: float) -> float:
        return left + 8 + (recall - low) / (high - low) * (chart.width - left - 120)

    def y(rate: float) -> float:
        return floor - 8 - (rate - bottom) / (top - bottom) * (floor - 24)

    chart.line("zero", left, floor, chart.width - 8, floor)
    for step in range(5):
        recall, rate = low + step / 4 * (high - low), bottom + step / 4 * (top - bottom)
        chart.line("grid", left, y(rate), chart.width - 8, y(rate))
        chart.write("tick", left - 6, y(rate) + 4, f"{100 * rate:.0f} %", "end")
        chart.write("tick", x(recall), floor + 16, f"{100 * recall:.0f} %", "middle")
    chart.write("tick", chart.width - 8, floor + 34, "recall: further right is better; CHAIR_I: lower is better", "end")
    for (before, after), one in zip(itertools.pairwise(points), curve[1:], strict=False):
        chart.line(f"curve{' beyond' if one['beyond'] else ''}", x(before[0]), y(before[1]), x(after[0]), y(after[1]))
    for name, scores, between, kind in runs:
        middle = x(scores["recall"]), y(scores["i"])
        chart.line(f"reach {kind}", x(between["recall"][0]), middle[1], x(between["recall"][1]), middle[1])
        chart.line(f"reach {kind}", middle[0], y(between["i"][0]), middle[0], y(between["i"][1]))
        tip = f"{name}: recall {100 * scores['recall']:.1f} %, CHAIR_I {100 * scores['i']:.1f} %"
        where = _rounded(cx=middle[0], cy=middle[1])
        chart.shapes.append(Shape("circle", {"class": f"value {kind}", **where, "r": 4.5}, tip=tip))
        chart.write("name", middle[0] + 7, middle[1] - 6, name if len(name) <= LETTERS else name[: LETTERS - 1] + "…")
    return chart


def heat(title: str, grid: Sequence[Sequence[float]]) -> Chart:
    """A layer x head map, first layer on top; the deeper the colour, the larger the value."""
    cell, left, top = 18, 34, 20
    heads = max((len(row) for row in grid), default=0)
    peak = max([1e-12, *(value for row in grid for value in row)])
    chart = Chart(title, left + cell * heads + 4, top + cell * len(grid) + 4)
    chart.write("tick", left, 12, f"head 0 … {max(0, heads - 1)}")
    for layer, row in enumerate(grid):
        y = top + cell * layer
        chart.write("tick", left - 8, y + 13, str(layer), "end")
        for head, value in enumerate(row):
            where = (left + cell * head, y, cell - 2, cell - 2)
            chart.rect("cell", *where)
            chart.rect("heat", *where, opacity=max(0.0, value) / peak, tip=f"layer {layer}, head {head}: {value:.3g}")
    return chart


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _rounded(**places: float) -> dict[str, float]:
    return {name: round(value, 1) for name, value in places.items()}
