"""One plot for each file of results, as SVG files: differences against plain with their intervals, times, head maps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from sightline.benchmarks.report.charts import Chart, Shape, forest, heat

Change = Mapping[str, Any]
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1c2430}.tick{font-size:12px;fill:#5d6877}"
    ".zero,.grid{stroke:#b8c0ca}.reach{stroke-width:2.5;stroke:#8a95a3}.value{fill:#8a95a3}"
    ".good{stroke:#13794a}.bad{stroke:#c0392b}text.good,text.bad{stroke:none}text.good,circle.good{fill:#13794a}"
    "text.bad,circle.bad{fill:#c0392b}.cell{fill:#eef1f4}.heat{fill:#2b62d9}.page{fill:#fff}"
)


def plots(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and SVG of each plot. Raises ValueError where a file is not of the shape that its plot reads."""
    for name, draw in PLOTS.items():
        try:
            yield name, svg(draw(json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"eval/results/{name}.json lacks {error}, which its plot shows: see studies/pages/plots.py"
            ) from error


def svg(chart: Chart) -> str:
    """A chart as a file of its own, on white, its title above it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -26 {max(chart.width, 8 * len(chart.title))}'
        f' {chart.height + 30}" role="img"><title>{escape(chart.title)}</title><style>{STYLE}</style>'
    )
    page = '<rect class="page" x="0" y="-26" width="100%" height="100%"/>'
    shapes = [f'<text x="4" y="-8">{escape(chart.title)}</text>']
    for one in chart.shapes:
        attributes = "".join(f' {key}="{escape(str(value))}"' for key, value in one.attributes.items())
        shapes.append(f"<{one.tag}{attributes}>{escape(one.text)}</{one.tag}>")
    return "\n".join([head, page, *shapes, "</svg>", ""])


def _kind(change: Change, *, lower: bool) -> str:
    low, high = change["interval"]
    return "open" if low <= 0 <= high else "good" if (high < 0) == lower else "bad"


def _differences(title: str, changes: Mapping[str, Change], *, lower: bool) -> Chart:
    rows = [(name, one["value"], tuple(one["interval"]), _kind(one, lower=lower)) for name, one in changes.items()]
    return forest(title, rows, scale=100)


def _captions(result: Mapping[str, Any]) -> Chart:
    """CHAIR_I against plain: at equal recall, if every run has that."""
    runs = {one["name"]: one["differences"]["chair"] for one in result["runs"] if one["name"] != "plain"}
    key = "equal" if all(one.get("equal") for one in runs.values()) else "i"
    title = "CHAIR_I against plain" + (" at equal recall" if key == "equal" else "") + ", points: left is better"
    return _differences(title, {name: one[key] for name, one in runs.items()}, lower=True)


def _tuned(result: Mapping[str, Any]) -> Chart:
    key = result["objective"]
    runs = {one["name"]: one["differences"][key] for one in result["report"]["runs"] if one["name"] != "plain"}
    title = "CHAIR_I against plain" + (" at equal recall" if key == "equal" else "")
    return _differences(f"{title} on test scenes, points: left is better", runs, lower=True)


def _carved(result: Mapping[str, Any]) -> Chart:
    runs = {
        one["name"]: one["differences"]["pope"]["adversarial"]["accuracy"]
        for one in result["runs"]
        if one["name"] != "plain"
    }
    return _differences("Accuracy against plain, adversarial questions, points: right is better", runs, lower=False)


def _language(group: str, score: str, title: str) -> Any:
    def draw(result: Mapping[str, Any]) -> Chart:
        runs = {one["name"]: one["differences"] for one in result["runs"] if one["name"] != "plain"}
        changes = {name: one[group]["all"][score] for name, one in runs.items() if group in one}
        return _differences(f"{title} against plain, points: right is better", changes, lower=False)

    return draw


def _heads(result: Mapping[str, Any]) -> Chart:
    return heat("Retrieval scores of SmolLM2's heads: layers downwards", result["scores"])


def _maps(result: Mapping[str, Any]) -> Chart:
    """Head maps side by side, each on its own scale."""
    charts, left, top = [heat(name, grid) for name, grid in result["maps"].items()], 0, 20
    whole = Chart("Heads of embedded-smol: layers downwards, each map on its own scale", 0, top + charts[0].height)
    for one in charts:
        whole.write("name", left + 34, 12, one.title)
        for shape in one.shapes:
            moved = {"x": shape.attributes["x"] + left, "y": shape.attributes["y"] + top}
            whole.shapes.append(Shape(shape.tag, shape.attributes | moved, shape.text))
        left += one.width
    whole.width = left
    return whole


def _grounding(result: Mapping[str, Any]) -> Chart:
    """AUROC less one half, so that no signal lies at zero."""
    rows = [
        (one["signal"][:40], one["test"] - 0.5, tuple(bound - 0.5 for bound in one["interval"]), "open")
        for one in sorted(result["rows"], key=lambda one: -one["test"])[:10]
    ]
    return forest("Hallucinated against true words: AUROC above 50, the ten best signals", rows, scale=100)


def _speed(result: Mapping[str, Any]) -> Chart:
    """Time against plain, less one."""
    rows = [
        (f"{one['name']}, {one['phase']}", ratio["median"] - 1, (ratio["min"] - 1, ratio["max"] - 1), "open")
        for one in result["rows"]
        if one["name"] != "plain" and (ratio := one["ratio"])
    ]
    return forest("Time above plain, percent: median, least and most", rows, scale=100)


def _serving(result: Mapping[str, Any]) -> Chart:
    rows = []
    for part in result.values():
        for name, seconds in part["seconds"].items():
            what, run = name.rsplit(" ", 1)
            if run == "plain" or f"{what} plain" not in part["seconds"]:
                continue
            base = median(part["seconds"][f"{what} plain"])
            low, middle, high = (pick(seconds) / base - 1 for pick in (min, median, max))
            rows.append((f"{run}, {what}", middle, (low, high), "open"))
    return forest("Time above plain under vLLM, percent: median, least and most", rows, scale=100)


PLOTS: dict[str, Any] = {
    "demo": _captions,
    "methods": _captions,
    "head-gain": _captions,
    "methods-tuned": _tuned,
    "carve": _carved,
    "language": _language("conflicts", "context", "A context that states a false answer is followed"),
    "attention": _language("instructions", "followed", "An instruction on the form is followed"),
    "premise": _language("premises", "true", "True answers to questions with false premises"),
    "retrieval-heads": _heads,
    "smol-heads": _maps,
    "grounding": _grounding,
    "bench-embedded": _speed,
    "bench-llava-shape": _speed,
    "bench-smollm2": _speed,
    "serving": _serving,
}
