"""CHAIR, POPE and the bootstrap against hand-computed cases and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from sightline.benchmarks.chair import Mention, Vocabulary, chair, plurals
from sightline.benchmarks.pope import SPLITS, Question, build, parse, pope
from sightline.benchmarks.stats import Ratio, difference, interval

NAMES = ["dog", "hot dog", "cat", "knife", "person", "dining table", "bus", "mouse", "pizza", "bear", "glasses", "cup"]
SYNONYMS = {"puppy": "dog", "kitten": "cat", "man": "person", "table": "dining table", "glass": "cup"}


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(NAMES, SYNONYMS, ignore=["teddy bear", "computer mouse pad"])


def named(vocabulary: Vocabulary, text: str) -> list[str]:
    return [mention.name for mention in vocabulary.mentions(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog and two CATS.", ["dog", "cat"]),
        ("Dogs, puppies, kittens", ["dog", "dog", "cat"]),
        ("A hot dog on a plate", ["hot dog"]),  # longest match: not also a dog
        ("hot dogs and hot-dogs and a hot\ndog", ["hot dog"] * 3),
        ("it was hot. dog barks", ["dog"]),
        ("knives, mice, people, men, buses", ["knife", "mouse", "person", "person", "bus"]),
        ("dining tables beside a table", ["dining table", "dining table"]),
        ("doghouse, cathedral, underdog, dog_bed, busy", []),
        ("the dog's bowl; a dog-like cat", ["dog", "dog", "cat"]),
        ("There are no dogs", ["dog"]),  # the published rule does not understand negation
        ("a teddy bear and teddy bears", []),
        ("a bear", ["bear"]),
        ("glasses beside a glass", ["glasses", "cup"]),  # a listed name wins over the plural of a synonym
        ("", []),
    ],
)
def test_mentions(vocabulary: Vocabulary, text: str, expected: list[str]) -> None:
    assert named(vocabulary, text) == expected


def test_mention_offsets(vocabulary: Vocabulary) -> None:
    text = "Two Hot  Dogs, a cat."
    assert vocabulary.mentions(text) == [Mention("hot dog", 4, 13), Mention("cat", 17, 20)]
    assert text[4:13] == "Hot  Dogs"


def test_empty_vocabulary_finds_nothing() -> None:
    assert Vocabulary([]).mentions("a dog") == []


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("box", "boxes"),
        ("knife", "knives"),
        ("leaf", "leaves"),
        ("giraffe", "giraffes"),
        ("potato", "potatoes"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("policeman", "policemen"),
        ("sheep", "sheep"),
        ("wine glass", "wine glasses"),
    ],
)
def test_plurals(word: str, form: str) -> None:
    assert form in plurals(word)


def test_chair_by_hand(vocabulary: Vocabulary) -> None:
    captions = [
        "A dog, a dog and a cat.",  # three mentions, two of them hallucinated (dog twice); recalls the cat of 2
        "A man with a hot dog.",  # two mentions, none hallucinated; recalls 2 of 3
        "Nothing here.",  # silent
        "",  # empty
    ]
    truths = [{"cat", "bus"}, {"person", "hot dog", "bus"}, {"dog"}, set()]
    scores = chair(captions, truths, vocabulary).values
    assert scores["s"] == pytest.approx(1 / 4)
    assert scores["i"] == pytest.approx(2 / 5)  # every mention counts
    assert scores["recall"] == pytest.approx(3 / 6)
    assert scores["words"] == pytest.approx((7 + 6 + 2 + 0) / 4)
    assert scores["mentions"] == pytest.approx(5 / 4)
    assert (scores["n"], scores["silent"], scores["empty"]) == (4, 2, 1)
    assert scores["by_position"] == [
        {"position": 1, "i": 0.5, "n": 2},
        {"position": 2, "i": 0.5, "n": 2},
        {"position": 3, "i": 0.0, "n": 1},
    ]


def test_chair_pools_late_positions() -> None:
    vocabulary = Vocabulary(["dog", "cat"])
    rows = chair(["dog " * 9 + "cat"], [{"dog"}], vocabulary).by_position()
    assert [row["n"] for row in rows] == [1] * 7 + [3]
    assert rows[-1]["i"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("captions", "truths"), [([], []), (["", ""], [set(), {"dog"}]), (["hello"], [{"dog"}])])
def test_chair_without_mentions_is_zero(captions: list[str], truths: list[set[str]]) -> None:
    scores = chair(captions, truths, Vocabulary(["dog"])).values
    assert (scores["s"], scores["i"], scores["recall"]) == (0.0, 0.0, 0.0)
    assert scores["n"] == scores["silent"] == len(captions)


def test_chair_wants_one_truth_per_caption() -> None:
    with pytest.raises(ValueError):
        chair(["a", "b"], [set()], Vocabulary(["dog"]))


@pytest.mark.parametrize(
    ("reply", "yes", "parsed"),
    [
        ("yes", True, True),
        ("Yes.", True, True),
        ("Yes, there is a dog. No cat though.", True, True),
        ("No", False, True),
        ("no.", False, True),
        ("NO!", False, True),
        ("No dogs", False, True),
        ("There are no dogs in the image.", False, True),
        ("There is not a dog.", False, True),
        ("Yes, there is no doubt", False, True),  # the official rule: a no in the first sentence means no
        ("\nNo\nYes", False, True),
        ("Nobody knows nothing", True, False),  # whole words only; neither yes nor no: counts as yes, and is counted
        ("a dog", True, False),
        ("", True, False),
    ],
)
def test_parse(reply: str, yes: bool, parsed: bool) -> None:
    answer = parse(reply)
    assert (answer.yes, answer.parsed) == (yes, parsed)


def test_pope_by_hand() -> None:
    questions = [
        Question(0, "dog", True),
        Question(0, "cat", False),
        Question(1, "bus", True),
        Question(1, "cup", False),
        Question(2, "dog", True),
        Question(2, "cat", False),
    ]
    replies = ["Yes, there is", "yes", "no", "No", "well", "no."]
    scores = pope(questions, replies, images=4).values  # tp 2 (one unparsed), fp 1, fn 1, tn 2
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["yes_ratio"] == pytest.approx(3 / 6)
    assert scores["exact"] == pytest.approx(1 / 6)  # only the bare "No" matches exactly
    assert (scores["unparsed"], scores["n"]) == (1, 6)


def test_pope_yes_ratio_is_of_replies() -> None:
    questions = [Question(0, "dog", True), Question(0, "cat", False)]
    assert pope(questions, ["yes", "yes"], 1).values["yes_ratio"] == 1.0
    assert pope(questions, ["no", "no"], 1).values["f1"] == 0.0
    assert pope([], [], 0).values["accuracy"] == 0.0


FREQUENCY = {"dog": 0.5, "cat": 0.4, "bus": 0.3, "cup": 0.2, "fork": 0.1, "sink": 0.1}
COMPANY = {"dog": {"fork": 0.9, "cup": 0.1}, "cat": {"fork": 0.3, "sink": 0.8}}


def test_questions_are_balanced_and_shared() -> None:
    truths = [{"dog", "cat"}, {"bus"}, set(), {"dog", "cat", "bus", "cup", "fork", "sink"}]
    questions = build(truths, FREQUENCY, COMPANY, pairs=2, seed=3)
    assert set(questions) == set(SPLITS)
    for asked in questions.values():
        assert len(asked) == 4 + 2  # two pairs, one pair, and nothing where none are present or none absent
        assert sum(one.present for one in asked) * 2 == len(asked)
        assert all(one.present == (one.name in truths[one.image]) for one in asked)
    positives = [[one for one in questions[split] if one.present] for split in SPLITS]
    assert positives[0] == positives[1] == positives[2]


def test_negatives_follow_their_split() -> None:
    questions = build([{"dog", "cat"}], FREQUENCY, COMPANY, pairs=2)
    absent = {split: [one.name for one in asked if not one.present] for split, asked in questions.items()}
    assert absent["popular"] == ["bus", "cup"]
    assert absent["adversarial"] == ["fork", "sink"]  # 1.2 and 0.8 with dog and cat
    assert set(absent["random"]) <= {"bus", "cup", "fork", "sink"}


def test_questions_depend_on_the_seed_only() -> None:
    truths = [set(list(FREQUENCY)[k : k + 3]) for k in range(3)] * 5
    again = build(truths, dict(reversed(FREQUENCY.items())), COMPANY, seed=1)
    assert build(truths, FREQUENCY, COMPANY, seed=1) == again
    assert build(truths, FREQUENCY, COMPANY, seed=2) != again


def ratio(seed: int, images: int = 40) -> Ratio:
    dice = np.random.default_rng(seed)
    bottom = dice.integers(0, 6, images)
    return Ratio.of(dice.binomial(bottom, 0.3), bottom)


def test_bootstrap_matches_a_naive_loop() -> None:
    score = ratio(0)
    dice = np.random.default_rng(9)
    naive = []
    for _ in range(4000):
        drawn = dice.integers(0, len(score.top), len(score.top))
        naive.append(score.top[drawn].sum() / score.bottom[drawn].sum())
    low, high = interval(score, draws=4000, seed=1)
    assert (low, high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.015)
    assert low < score.value < high
    assert interval(score, seed=1) == interval(score, seed=1)


def test_paired_difference_resamples_both_alike() -> None:
    score = ratio(1)
    assert difference(score, score) == (0.0, (0.0, 0.0))
    better = Ratio(np.maximum(score.top - 1, 0), score.bottom)
    value, (low, high) = difference(better, score)
    assert low <= value <= high < 0
    with pytest.raises(ValueError):
        difference(score, ratio(1, images=3))


def test_interval_of_nothing_is_zero() -> None:
    assert interval(Ratio.of([], [])) == (0.0, 0.0)
    assert interval(Ratio.of([0, 0], [0, 0])) == (0.0, 0.0)
