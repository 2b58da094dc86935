"""Small charts for the HTML report, as shapes that its template draws in SVG; colours come from the style sheet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

ROW = 24
LETTERS = 30
"""Letters of a run's name that fit beside a line."""
LETTER = 9.4
"""Width of a letter where the style sheet draws a chart's texts largest."""


@dataclass(frozen=True)
class Shape:
    """An SVG element: its tag, its attributes, and what stands in it; `tip` is shown where a pointer rests on it."""

    tag: str
    attributes: dict[str, Any]
    text: str = ""
    tip: str = ""


@dataclass
class Chart:
    """Shapes on a canvas, in pixels.

    roomy: its texts have room to be drawn larger, so that they can be read where a narrow screen shrinks the chart.
    """

    title: str
    width: int
    height: int
    roomy: bool = False
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
    names = [_cut(name) for name, *_ in rows]
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
    chart, floor = Chart(title, 440, 174 + 18 * len(series), roomy=True), 150
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
        y = floor + 36 + 18 * number
        chart.rect(f"series{number}", 48, y - 9, 10, 10)
        chart.write("name", 64, y, _cut(name))
    return chart


def tradeoff(
    title: str,
    curve: Sequence[dict[str, Any]],
    runs: Sequence[tuple[str, dict[str, float], dict[str, Sequence[float]], str]],
) -> Chart:
    """Recall against CHAIR_I: the line of plain captions cut shorter, dashed where they go on, and each run with its bars.

    It shows where the runs lie; a line or bar that leaves that part ends at its edge. A run is its name, its scores and
    intervals, and how it counts against the line: good, bad or open.
    """
    chart, left, floor = Chart(title, 440, 330, roomy=True), 46.0, 280.0
    low, high = _around([scores["recall"] for _, scores, _, _ in runs])
    segments = list(_between(curve, low, high))
    rates = [scores["i"] for _, scores, _, _ in runs]
    bottom, top = _around(rates)
    bottom, top = min([bottom, *(one[1] for one in segments)]), max([top, *(one[3] for one in segments)])

    def x(recall: float) -> float:
        return left + 8 + (min(max(recall, low), high) - low) / (high - low) * (chart.width - left - 24)

    def y(rate: float) -> float:
        return floor - 8 - (min(max(rate, bottom), top) - bottom) / (top - bottom) * (floor - 24)

    chart.line("zero", left, floor, chart.width - 8, floor)
    for step in range(5):
        recall, rate = low + step / 4 * (high - low), bottom + step / 4 * (top - bottom)
        chart.line("grid", left, y(rate), chart.width - 8, y(rate))
        chart.write("tick", left - 6, y(rate) + 4, f"{100 * rate:.0f} %", "end")
        chart.write("tick", x(recall), floor + 16, f"{100 * recall:.0f} %", "middle" if step < 4 else "end")
    chart.write("tick", chart.width - 8, floor + 34, "recall: further right is better; CHAIR_I: lower is better", "end")
    for start, first, end, last, beyond in segments:
        chart.line(f"curve{' beyond' if beyond else ''}", x(start), y(first), x(end), y(last))
    taken: list[Box] = []
    for _, scores, between, kind in runs:
        at = x(scores["recall"]), y(scores["i"])
        (first, last), (lower, upper) = map(x, between["recall"]), map(y, between["i"])
        chart.line(f"reach {kind}", first, at[1], last, at[1])
        chart.line(f"reach {kind}", at[0], lower, at[0], upper)
        taken += [(first, at[1] - 1, last - first, 2.0), (at[0] - 1, upper, 2.0, lower - upper)]
        taken.append((at[0] - 6, at[1] - 6, 12.0, 12.0))
    for name, scores, _, kind in runs:
        at = x(scores["recall"]), y(scores["i"])
        tip = f"{name}: recall {100 * scores['recall']:.1f} %, CHAIR_I {100 * scores['i']:.1f} %"
        chart.shapes.append(
            Shape("circle", {"class": f"value {kind}", **_rounded(cx=at[0], cy=at[1]), "r": 4.5}, tip=tip)
        )
        text = _cut(name)
        where = _free(at, LETTER * len(text), taken, left, chart.width, floor)
        taken.append(where)
        before = where[0] + where[2] < at[0]
        chart.write(f"name {kind}", where[0] + where[2] * before, where[1] + 13, text, "end" if before else "start")
    return chart


def _around(values: Sequence[float]) -> tuple[float, float]:
    """An axis from below the least to above the largest of these rates, at least ten points long."""
    pad = max(0.05, 0.35 * (max(values) - min(values)))
    return max(0.0, min(values) - pad), min(1.0, max(values) + pad)


def _between(
    curve: Sequence[dict[str, Any]], low: float, high: float
) -> Iterator[tuple[float, float, float, float, bool]]:
    """The line's pieces between two recalls: recall and CHAIR_I of their ends, and whether they are past the captions' end."""
    for before, after in itertools.pairwise(curve):
        (a, first), (b, last) = ((one["recall"], one["i"]) for one in (before, after))
        start, end = max(a, low), min(b, high)
        if start <= end:
            slope = (last - first) / (b - a) if b > a else 0.0
            ends = (first + slope * (start - a), last - slope * (b - end))
            yield start, ends[0], end, ends[1], bool(after["beyond"])


Box = tuple[float, float, float, float]


def _free(at: tuple[float, float], width: float, taken: Sequence[Box], left: float, right: float, floor: float) -> Box:
    """Where a point's name covers little, and near to the point (left, top, width, height)."""
    places = [
        (max(left, min(at[0] + side, right - width)), at[1] - 8 + down, width, 17.0)
        for down in (6.0 * step for step in range(-36, 37))
        for side in (8.0, -8 - width)
    ]

    def cost(place: Box) -> float:
        """The area that it covers; two pixels of it weigh as much as one of distance."""
        return sum(_shared(place, other) for other in taken) + 2 * abs(place[1] + 8 - at[1])

    return min((one for one in places if 0 <= one[1] <= floor - 16), key=cost)


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes have in common."""
    sides = (min(one[k] + one[k + 2], other[k] + other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    return math.prod(max(0.0, side) for side in sides)


def heat(title: str, grid: Sequence[Sequence[float]]) -> Chart:
    """A layer x head map, first layer on top; the deeper the colour, the larger the value."""
    cell, left, top = 18, 34, 20
    heads = max((len(row) for row in grid), default=0)
    peak = max([1e-12, *(value for row in grid for value in row)])
    chart = Chart(title, left + cell * heads + 4, top + cell * len(grid) + 4, roomy=True)
    chart.write("tick", left, 12, f"head 0 … {max(0, heads - 1)}")
    for layer, row in enumerate(grid):
        y = top + cell * layer
        chart.write("tick", left - 8, y + 13, str(layer), "end")
        for head, value in enumerate(row):
            where = (left + cell * head, y, cell - 2, cell - 2)
            chart.rect("cell", *where)
            chart.rect("heat", *where, opacity=max(0.0, value) / peak, tip=f"layer {layer}, head {head}: {value:.3g}")
    return chart


def _cut(name: str) -> str:
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _rounded(**places: float) -> dict[str, float]:
    return {name: round(value, 1) for name, value in places.items()}
