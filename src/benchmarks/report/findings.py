"""What a report's numbers say, in words: which runs differ from the first one, which could not be told from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runner import tables
from .folders import ReportSection

NAMED = 4
"""Names in a sentence; of more, some are only counted."""
MANY = 10
"""From so many comparisons on, it is said what chance does to them."""


@dataclass(frozen=True)
class Finding:
    """A sentence, and how what it tells counts: good, bad or open; or it is a note."""

    text: str
    kind: str


def headline(section: ReportSection) -> str | None:
    """The score that a benchmark's runs are judged by: at equal recall (share of yes) where that is known, or the first.

    None where nothing is compared, or no score has a better direction.
    """
    known = {key for runs in by_split(section).values() for _, changes in runs for key in changes}
    directed = [key for key in section.kind.columns if key in known and key not in section.kind.neutral]
    return "equal" if "equal" in directed else next(iter(directed), None)


def findings(section: ReportSection) -> list[Finding]:
    """The section's runs against their first, by its headline: a sentence for each that differs, one for the others."""
    key, kind = headline(section), section.kind
    if key is None:
        return []
    score, _, condition = kind.columns[key].partition(" at ")
    condition = f" at {condition}" if condition else ""
    firsts = {entry["against"] for entry in section.runs} - {None}
    differing: dict[
        tuple[str, str, bool], list[tuple[str, float]]
    ] = {}  # (run, first run, falls) -> (split, by how much)
    others: dict[tuple[str, bool, str], list[str]] = {}  # (first run, compared, split) -> runs
    parts = by_split(section)
    for split, runs in ({"mean": parts["mean"]} if "mean" in parts else parts).items():
        for entry, changes in runs:
            change, first = changes.get(key), entry["against"]
            if change is None or tables.kind(change, key, kind) == "open":
                others.setdefault((first, change is not None, split), []).append(str(entry["name"]))
            else:
                value = change["value"] * (100 if key in kind.percent else 1)
                differing.setdefault((str(entry["name"]), first, value < 0), []).append((split, abs(value)))
    told = []
    for (name, first, falls), by in differing.items():
        sizes = _listed(
            [_size(value, key in kind.percent and not n) + _on([split]) for n, (split, value) in enumerate(by)]
        )
        where = condition + (f" against {first}" if len(firsts) > 1 else "")
        excludes = "the interval excludes 0" if len(by) == 1 else "each interval excludes 0"
        text = f"{name} {'lowers' if falls else 'raises'} {score} by {sizes}{where}; {excludes}."
        told.append(Finding(text, "good" if falls == (key in kind.lower) else "bad"))
    told.sort(key=lambda one: one.kind != "good")
    alike: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
    for (first, compared, split), names in others.items():
        alike.setdefault((first, compared, tuple(names)), []).append(split)
    for (first, compared, group), splits in alike.items():
        whole = len(group) == sum(entry["against"] == first for entry in section.runs) > 1
        where = f"{score}{condition}{_on(splits)}"
        told.append(Finding(_open(group, first, where, compared, whole=whole), "open"))
    count = sum(map(len, differing.values())) + sum(
        len(names) for (_, compared, _), names in others.items() if compared
    )
    if count >= MANY:
        told.append(Finding(f"Of {count} comparisons about one in 20 excludes 0 by chance alone.", "note"))
    return told


def _size(value: float, points: bool) -> str:
    return (f"{value:.1f}" if value >= 0.05 else "less than 0.1") + (" points" if points else "")


def _open(names: Sequence[str], first: str, where: str, compared: bool, *, whole: bool) -> str:
    who = f"None of the {len(names)} runs could" if whole else f"{_listed(names)} could not"
    if not compared:
        return f"{who} be compared with {first} in {where}: it does not get there."
    each = "the interval includes 0" if len(names) == 1 else "each interval includes 0"
    return f"{who} be told from {first} in {where}; {each}."


def _listed(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _on(splits: Sequence[str]) -> str:
    return f" ({', '.join(splits)})" if any(splits) else ""


def by_split(section: ReportSection) -> dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    """Split -> the compared runs' entries and differences there; a benchmark without splits has one without a name."""
    found: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for entry in section.runs:
        changes = entry["differences"][section.benchmark]
        whole = any("value" in one for one in changes.values())
        for split, one in ({"": changes} if whole else changes).items() if entry["against"] is not None else ():
            found.setdefault(split, []).append((entry, one))
    return found
