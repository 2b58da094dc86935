"""Small inline SVG charts for the HTML report; colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

ROW = 24
LETTERS = 30
"""Letters of a run's name that fit beside a line."""


def forest(title: str, rows: Sequence[tuple[str, float, tuple[float, float], str]], *, scale: float) -> str:
    """Differences with their intervals, one line per run, times `scale` (100 turns fractions into points).

    A row is a run's name, the difference, its interval, and how it counts: good, bad or open.
    """
    names = [name if len(name) <= LETTERS else name[: LETTERS - 1] + "…" for name, *_ in rows]
    labels, plot = 16 + 7.5 * max([8, *map(len, names)]), 208
    width = round(labels + plot + 68)
    reach = max([0.5 / scale, *(abs(bound) for _, _, between, _ in rows for bound in between)]) * 1.08
    height = ROW * len(rows) + 26
    middle = labels + plot / 2

    def x(value: float) -> float:
        return middle + value / reach * plot / 2

    parts = [f'<line class="zero" x1="{middle:.1f}" y1="2" x2="{middle:.1f}" y2="{height - 22}"/>']
    for number, (name, (_, value, (low, high), kind)) in enumerate(zip(names, rows, strict=True)):
        y = ROW * number + 14
        parts.append(
            f'<text class="name" x="{labels - 10:.1f}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<g class="{kind}"><line x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}"/>'
            f'<circle cx="{x(value):.1f}" cy="{y}" r="4.5"/></g>'
            f'<text class="num {kind}" x="{width - 2}" y="{y + 4}" text-anchor="end">{_signed(scale * value)}</text>'
        )
    for sign in (-1, 0, 1):
        text = _signed(scale * sign * reach / 1.08) if sign else "0"
        parts.append(
            f'<text class="tick" x="{x(sign * reach / 1.08):.1f}" y="{height - 6}" text-anchor="middle">{text}</text>'
        )
    return _figure(title, width, height, parts)


def positions(title: str, series: Sequence[tuple[str, Sequence[dict[str, float]]]], last: int) -> str:
    """Share of hallucinated mentions by the mention's place in the caption, bars side by side for each series."""
    width, height, floor = 560, 190, 150
    top = max([0.05, *(row["i"] for _, rows in series for row in rows)])
    places = max([1, *(int(row["position"]) for _, rows in series for row in rows)])
    step = (width - 50) / places
    bar = min(22.0, step * 0.8 / max(1, len(series)))
    parts = [f'<line class="zero" x1="44" y1="{floor}" x2="{width}" y2="{floor}"/>']
    for value in (top, top / 2):
        y = floor - value / top * (floor - 14)
        parts.append(f'<line class="grid" x1="44" y1="{y:.1f}" x2="{width}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="38" y="{y + 4:.1f}" text-anchor="end">{100 * value:.0f} %</text>')
    for number, (name, rows) in enumerate(series):
        for row in rows:
            left = 48 + step * (row["position"] - 0.5) + bar * (number - len(series) / 2)
            tall = row["i"] / top * (floor - 14)
            tip = f"{escape(name)}: {100 * row['i']:.1f} % of {int(row['n'])} mentions"
            parts.append(
                f'<rect class="series{number}" x="{left:.1f}" y="{floor - tall:.1f}" width="{bar - 2:.1f}" '
                f'height="{tall:.1f}" rx="2"><title>{tip}</title></rect>'
            )
    for place in range(1, places + 1):
        text = f"{place}+" if place == last else str(place)
        x = 48 + step * (place - 0.5)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{text}</text>')
    for number, (name, _) in enumerate(series):
        x = 48 + 150 * number
        parts.append(f'<rect class="series{number}" x="{x}" y="{height - 14}" width="10" height="10" rx="2"/>')
        parts.append(f'<text class="name" x="{x + 16}" y="{height - 5}">{escape(name)}</text>')
    return _figure(title, width, height, parts)


def heat(title: str, grid: Sequence[Sequence[float]]) -> str:
    """A layer x head map, first layer on top; the deeper the colour, the larger the value."""
    cell, left, top = 18, 34, 20
    heads = max((len(row) for row in grid), default=0)
    peak = max([1e-12, *(value for row in grid for value in row)])
    parts = [f'<text class="tick" x="{left}" y="12">head 0 … {max(0, heads - 1)}</text>']
    for layer, row in enumerate(grid):
        y = top + cell * layer
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 13}" text-anchor="end">{layer}</text>')
        for head, value in enumerate(row):
            parts.append(
                f'<rect class="cell" x="{left + cell * head}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="2"/>'
                f'<rect class="heat" x="{left + cell * head}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="2" '
                f'fill-opacity="{max(0.0, value) / peak:.2f}"><title>layer {layer}, head {head}: {value:.3g}</title></rect>'
            )
    return _figure(title, left + cell * heads + 4, top + cell * len(grid) + 4, parts)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _figure(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
