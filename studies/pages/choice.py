"""Which method for which situation: a table whose numbers are those of the files of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sightline.benchmarks.runner.tables import relative

RESULTS = Path(__file__).parents[2] / "eval/results"
EMBEDDED, SMOL, SMOLLM2 = "embedded", "embedded-smol", "SmolLM2"
Z = 1.96  # standard errors on either side of a 95 % interval
SEEN, SEEN_AGAIN = "study/embedded-smol-chair-0", "study/embedded-smol-chair-1"

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A situation, what to take, and the run (file, name) that says what it does and how long it takes.

    effect: the measured cell of that run. time: its time against plain's.
    """

    situation: str
    take: str
    model: str
    run: tuple[str, str]
    effect: Callable[[Entry], str]
    time: Callable[[Entry], str]


def read(file: str) -> dict[str, Any]:
    """A file of results."""
    return dict(json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8")))


def run_of(file: str, name: str) -> Entry:
    """One run of a file. Raises ValueError where there is none of that name."""
    runs = {entry["name"]: entry for entry in read(file)["runs"]}
    if name not in runs:
        raise ValueError(
            f"eval/results/{file}.json has no run {name!r} (it has {', '.join(runs)}): see studies/pages/choice.py"
        )
    return dict(runs[name])


def points(change: Mapping[str, Any]) -> str:
    """A difference in points, with its interval."""
    low, high = change["interval"]
    return f"{100 * change['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def together(changes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Differences on separate sets of scenes as one: each by the inverse of its variance, which its interval tells."""
    if len(changes) == 1:
        return changes[0]
    precision = [(2 * Z / (high - low)) ** 2 for low, high in (one["interval"] for one in changes)]
    value = sum(p * one["value"] for p, one in zip(precision, changes, strict=True)) / sum(precision)
    half = Z / sum(precision) ** 0.5
    return {"value": value, "interval": (value - half, value + half)}


def _captions(entry: Entry) -> str:
    """CHAIR_I and recall, and CHAIR_I at equal recall where that was measured."""
    changes = entry["differences"]["chair"]
    said = f"CHAIR_I {points(changes['i'])}, recall {points(changes['recall'])}"
    return f"{said}; CHAIR_I at equal recall {points(changes['equal'])}" if changes.get("equal") else said


def _twice(again: str) -> Callable[[Entry], str]:
    """The same, on the scenes of another file, too."""

    def said(entry: Entry) -> str:
        sets = [one["differences"]["chair"] for one in (entry, run_of(again, entry["name"]))]
        rate, recall, equal = (points(together([one[key] for one in sets])) for key in ("i", "recall", "equal"))
        return f"CHAIR_I {rate}, recall {recall}; CHAIR_I at equal recall {equal} (two sets of scenes)"

    return said


def _questions(entry: Entry) -> str:
    return f"accuracy, adversarial: {points(entry['differences']['pope']['adversarial']['accuracy'])}"


def _language(group: str, *scores: str) -> Callable[[Entry], str]:
    def said(entry: Entry) -> str:
        changes = entry["differences"][group]["all"]
        return ", ".join(f"{label} {points(changes[key])}" for key, label in (one.split("=") for one in scores))

    return said


def _seconds(benchmark: str) -> Callable[[Entry], str]:
    return lambda entry: relative(entry, benchmark).joined()


def _ratio(group: str) -> Callable[[Entry], str]:
    return lambda entry: f"{entry['time_ratio'][group]:.2f}"


ROWS = (
    Row("Captions", "`m3id`", SMOL, (SEEN, "m3id"), _twice(SEEN_AGAIN), _seconds("chair")),
    Row("Captions, for little time", "`vhr`", EMBEDDED, ("demo", "vhr-default"), _captions, _seconds("chair")),
    Row("Yes/no questions", "`pai` + `pai_guidance`", EMBEDDED, ("demo", "pai"), _questions, _seconds("pope")),
    Row("Long answers", "`locore` (no gain here)", EMBEDDED, ("methods", "locore"), _captions, _seconds("chair")),
    Row("No extra latency", "`vhr`, `static: true`", EMBEDDED, ("methods", "vhr static"), _captions, _seconds("chair")),
    Row(
        "A context to be followed",
        "`cad`",
        SMOLLM2,
        ("language", "cad"),
        _language("conflicts", "context=context followed"),
        _ratio("conflicts"),
    ),
    Row(
        "The same, for less time",
        "`decore`, `alpha: 0.5`",
        SMOLLM2,
        ("language", "decore static"),
        _language("conflicts", "context=context followed"),
        _ratio("conflicts"),
    ),
    Row(
        "Questions with false premises",
        "`faith`",
        SMOLLM2,
        ("premise", "faith 5"),
        _language("premises", "true=true answers"),
        _ratio("premises"),
    ),
    Row(
        "An instruction to be kept",
        "`pasta`",
        SMOLLM2,
        ("attention", "pasta"),
        _language("instructions", "followed=followed", "right=right answers"),
        _ratio("instructions"),
    ),
)


def _served() -> str:
    """What DeCoRe costs under vLLM: seconds of the same requests, against plain."""
    seconds = read("serving")["decore"]["seconds"]
    ratio = median(seconds["throughput decore"]) / median(seconds["throughput plain"])
    taken = "`decore`, `vcd`, `m3id`, `head_gain`, `zerotuning`"
    return f"| Served by vLLM | {taken} | as in `generate` | {ratio:.2f} (`decore`) | {SMOLLM2} |"


def table() -> str:
    """Markdown: a row for each situation."""
    lines = ["| situation | take | measured, points (95 %) | time | on |", "|---|---|---|---|---|"]
    for row in ROWS:
        entry = run_of(*row.run)
        lines.append(f"| {row.situation} | {row.take} | {row.effect(entry)} | {row.time(entry)} | {row.model} |")
    return "\n".join([*lines, _served()])
