"""What a report's head says: numbers in, sentences out."""

from __future__ import annotations

from typing import Any

import pytest
from sightline.benchmarks.report.findings import MANY, findings, headline
from sightline.benchmarks.report.folders import ReportSection

Changes = dict[str, dict[str, Any]]


def by(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "interval": [low, high]}


BETTER, WORSE, OPEN = by(-0.021, -0.033, -0.009), by(0.021, 0.009, 0.033), by(-0.021, -0.05, 0.0)


def section(runs: dict[str, Any], benchmark: str = "chair", against: dict[str, str] | None = None) -> ReportSection:
    """A section whose runs after the first have these differences."""
    entries = [{"name": "plain", "against": None, "differences": {benchmark: {}}}]
    for name, changes in runs.items():
        entries.append(
            {"name": name, "against": (against or {}).get(name, "plain"), "differences": {benchmark: changes}}
        )
    return ReportSection(benchmark, "d", 60, entries)


def said(runs: dict[str, Any], benchmark: str = "chair", **more: Any) -> list[tuple[str, str]]:
    return [(one.text, one.kind) for one in findings(section(runs, benchmark, **more))]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (
            {"vhr": {"i": WORSE, "equal": BETTER}},
            [("vhr lowers CHAIR_I by 2.1 points at equal recall; the interval excludes 0.", "good")],
        ),
        (
            {"vhr": {"i": BETTER, "equal": WORSE}},
            [("vhr raises CHAIR_I by 2.1 points at equal recall; the interval excludes 0.", "bad")],
        ),
        (
            {"vhr": {"equal": OPEN}},
            [("vhr could not be told from plain in CHAIR_I at equal recall; the interval includes 0.", "open")],
        ),
        (
            {"a": {"equal": OPEN}, "b": {"equal": by(0.0, 0.0, 0.0)}},
            [("None of the 2 runs could be told from plain in CHAIR_I at equal recall; each interval includes 0.", "open")],
        ),
        (
            {"bad": {"equal": WORSE}, "a": {"equal": OPEN}, "b": {"equal": OPEN}, "good": {"equal": BETTER}},
            [
                ("good lowers CHAIR_I by 2.1 points at equal recall; the interval excludes 0.", "good"),
                ("bad raises CHAIR_I by 2.1 points at equal recall; the interval excludes 0.", "bad"),
                ("a and b could not be told from plain in CHAIR_I at equal recall; each interval includes 0.", "open"),
            ],
        ),
        (
            {"vhr": {"equal": BETTER}, "far": {"i": BETTER}},
            [
                ("vhr lowers CHAIR_I by 2.1 points at equal recall; the interval excludes 0.", "good"),
                ("far could not be compared with plain in CHAIR_I at equal recall: it does not get there.", "open"),
            ],
        ),
        (
            {"vhr": {"s": by(-0.0003, -0.0004, -0.0001), "words": WORSE}},
            [("vhr lowers CHAIR_S by less than 0.1 points; the interval excludes 0.", "good")],
        ),
        ({"vhr": {"words": BETTER}}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_captions(runs: dict[str, Changes], expected: list[tuple[str, str]]) -> None:
    assert said(runs) == expected


def test_a_score_that_is_no_percentage_has_no_points() -> None:
    total = {"total": {"score": by(12.34, 3, 20), "mcnemar": {"gained": 1}}}
    assert said({"vhr": total}, "mme") == [("vhr raises score by 12.3 (total); the interval excludes 0.", "good")]


def test_splits_are_named_and_their_mean_stands_for_them() -> None:
    up, down, same = ({"accuracy": by(v, v - 0.01, v + 0.01), "mcnemar": {}} for v in (0.03, -0.05, 0.0))
    runs = {"a": {"random": up, "popular": same}, "b": {"random": down, "popular": down}}
    assert said(runs, "pope") == [
        ("a raises accuracy by 3.0 points (random); the interval excludes 0.", "good"),
        ("b lowers accuracy by 5.0 points (random) and 5.0 (popular); each interval excludes 0.", "bad"),
        ("a could not be told from plain in accuracy (popular); the interval includes 0.", "open"),
    ]
    meant = {name: {**parts, "mean": same} for name, parts in runs.items()}
    assert said(meant, "pope") == [
        ("None of the 2 runs could be told from plain in accuracy (mean); each interval includes 0.", "open")
    ]


def test_many_runs_are_counted_and_chance_is_told() -> None:
    runs = {f"r{n}": {"equal": OPEN if n else BETTER} for n in range(MANY)}
    assert said(runs)[1:] == [
        ("r1, r2, r3 and 6 more could not be told from plain in CHAIR_I at equal recall; each interval includes 0.", "open"),
        (f"Of {MANY} comparisons about one in 20 excludes 0 by chance alone.", "note"),
    ]  # fmt: skip
    assert len(said(dict(list(runs.items())[1:]))) == 1


def test_each_model_is_compared_with_its_own_first_run() -> None:
    runs = {"a": {"equal": BETTER}, "b": {"equal": OPEN}}
    assert said(runs, against={"a": "plain (one)", "b": "plain (two)"}) == [
        ("a lowers CHAIR_I by 2.1 points at equal recall against plain (one); the interval excludes 0.", "good"),
        ("b could not be told from plain (two) in CHAIR_I at equal recall; the interval includes 0.", "open"),
    ]


def test_the_headline_is_the_first_score_with_a_direction() -> None:
    assert headline(section({"a": {"words": BETTER, "recall": OPEN}})) == "recall"
    assert headline(section({"a": {"words": BETTER}})) is None
    assert headline(section({})) is None
