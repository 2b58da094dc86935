"""The scores of real public files to the digit, against what the benchmarks' own scripts say of the same replies.

The files lie beside the checkout, not in it; `expected.json` there holds the scripts' numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sightline.benchmarks.benchmark import DataSource
from sightline.benchmarks.public import nouns
from sightline.benchmarks.runner import suite
from sightline.common.errors import ConfigError

PUBLIC = Path(__file__).parents[3].parent / "shared" / "data" / "public"
pytestmark = pytest.mark.skipif(not (PUBLIC / "expected.json").is_file(), reason="the public files are not here")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((PUBLIC / "expected.json").read_text())


def scored(name: str, folder: str, replies: str, **options: Any) -> tuple[Any, Any]:
    """The benchmark and its scores of a file of replies."""
    path = PUBLIC / replies
    bench = suite.read(name, DataSource(PUBLIC / folder, replies=(path,), **options))
    return bench, bench.score(bench.answers(path))


def test_everything_that_is_expected_is_compared(expected: dict[str, Any]) -> None:
    assert {key.partition("/")[0] for key in expected} == {"chair", "hallusion", "amber"}


@pytest.mark.parametrize("match", [None, "strict"])
@pytest.mark.parametrize("model", ["llava", "minigpt-4", "mplug", "mmgpt"])
def test_chair(expected: dict[str, Any], model: str, match: str | None) -> None:
    wanted = expected[f"chair/{model}"]
    replies = f"chair_answers/{model}.jsonl"
    bench, scores = scored("chair", "chair", replies, synonyms=PUBLIC / "chair" / "synonyms.txt", match=match)
    assert [scores.values[key] for key in ("s", "i", "recall")] == [wanted[key] for key in ("s", "i", "recall")]
    rows = [json.loads(line) for line in (PUBLIC / replies).read_text().splitlines()]
    named = {str(row["id"]): [one.name for one in bench.vocabulary.mentions(row["reply"])] for row in rows}
    assert named == wanted["objects"]


def test_hallusion(expected: dict[str, Any]) -> None:
    _, scores = scored("hallusion", "hallusion", "hallusion_answers.jsonl")
    assert {key: scores["all"].values[key] for key in expected["hallusion"]} == expected["hallusion"]


@pytest.fixture(scope="module")
def amber() -> Any:
    try:
        nouns.tagger()
    except ConfigError as error:
        pytest.skip(str(error))
    return scored("amber", "amber", "amber_answers.jsonl")[1]


SPLITS = {"Generative Task": "generative", "Descriminative Task": "discriminative", "Exsitence": "existence"}
"""Names that the release prints -> ours; the others are the same in small letters."""


@pytest.mark.parametrize("part", ["amber/generative", "amber/discriminative"])
def test_amber(expected: dict[str, Any], amber: Any, part: str) -> None:
    found = {}
    for name in expected[part]:
        split, _, score = name.partition("/")
        found[name] = round(100 * amber[SPLITS.get(split, split.lower())].values[score.lower()], 1)
    assert found == expected[part]


@pytest.mark.parametrize(("folder", "questions"), [("pope", 600), ("pope_aokvqa", 120), ("pope_gqa_lines", 120)])
def test_pope_files_are_read(folder: str, questions: int) -> None:
    """With the labels for answers, every split is right; what splits share is put to a model once."""
    bench = suite.read("pope", DataSource(PUBLIC / folder, replies=(PUBLIC / folder,)))
    assert {split: len(asked) for split, asked in bench.splits.items()} == dict.fromkeys(
        ("random", "popular", "adversarial"), questions
    )
    scores = bench.score(["Yes" if bench.truth(n)["label"] == "yes" else "No" for n in range(len(bench.samples))])
    assert scores["mean"].values["accuracy"] == 1.0
    assert scores["mean"].values["n"] == 3 * questions


def test_truthfulqa_file_is_read() -> None:
    bench = suite.read("truthfulqa", DataSource(PUBLIC / "truthfulqa"))
    assert len(bench.samples) == 20
    assert not any(choice.strip() == "" for sample in bench.samples for choice in sample.choices)
