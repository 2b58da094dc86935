"""Equal recall and equal yes against hand-made cases and naive loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sightline import testbed
from sightline.benchmarks.public.captions import ChairBenchmark
from sightline.benchmarks.public.chair import Vocabulary, chair
from sightline.benchmarks.public.equal import CaptionNames, Curve, EqualRecall, EqualYes, log_odds
from sightline.benchmarks.public.object_questions import PopeBenchmark
from sightline.benchmarks.public.pope import Question
from sightline.common.statistics import interval
from sightline.models import prompting
from sightline.models.samples import Sample

WORDS = Vocabulary(["dog", "cat", "bus", "cup", "fork", "sink"])
TRUTHS = [{"dog", "cat"}, {"bus", "cup"}, {"dog", "cup"}]
PLAIN = ["a dog, a fork, a cat", "a bus and a bus, a sink", "a cup, a dog"]


def bench() -> ChairBenchmark:
    return ChairBenchmark([Sample(str(n), "?") for n in range(3)], truths=TRUTHS, vocabulary=WORDS)


def cut(captions: list[str], k: int) -> tuple[int, int, int]:
    """Hallucinated mentions, mentions and recalled objects of captions cut behind their k-th mention, by counting."""
    bad = named = found = 0
    for caption, truth in zip(captions, TRUTHS, strict=True):
        mentions = [one.name for one in WORDS.mentions(caption)][:k]
        bad += sum(name not in truth for name in mentions)
        named += len(mentions)
        found += len(set(mentions) & truth)
    return bad, named, found


def test_the_curve_is_that_of_cut_captions() -> None:
    points = bench().curve(PLAIN, [])
    for k, point in enumerate(points, start=1):
        bad, named, found = cut(PLAIN, k)
        assert point == {"recall": found / 6, "i": bad / named, "beyond": False}
    assert len(points) == 3
    assert points[-1]["i"] == pytest.approx(chair(PLAIN, TRUTHS, WORDS).values["i"])


def test_stopping_earlier_is_no_merit() -> None:
    for k in (1, 2):
        shorter = [" ".join(f"a {one.name}" for one in WORDS.mentions(text)[:k]) for text in PLAIN]
        score = bench().equal(shorter, PLAIN, [])["equal"]
        assert score.value == pytest.approx(0.0)
        assert chair(shorter, TRUTHS, WORDS).values["i"] < chair(PLAIN, TRUTHS, WORDS).values["i"]
        low, high = interval(score)
        assert low == pytest.approx(0.0)  # where few images are drawn, stopping even earlier may be free
        assert high >= 0.0


def test_between_two_cuts_a_share_of_the_captions_is_cut_later() -> None:
    said = ["a dog", "a bus", "a cup, a dog, a sink"]  # 4 of 6 recalled, 1 of 5 hallucinated
    (b1, n1, r1), (b2, n2, r2) = cut(PLAIN, 1), cut(PLAIN, 2)
    assert (r1, r2) == (3, 4)
    score = bench().equal(said, PLAIN, [])["equal"]
    assert score.value == pytest.approx(1 / 5 - b2 / n2)
    half = EqualRecall(score.curve, np.array([0.0, 0, 0]), np.array([1.0, 1, 1]), np.array([1.5, 1, 1]))
    assert half.value == pytest.approx(-((b1 + b2) / 2) / ((n1 + n2) / 2))


def test_naming_nothing_of_the_truth_is_measured_against_the_first_objects() -> None:
    score = bench().equal(["a fork", "", ""], PLAIN, [])["equal"]
    assert score.value == pytest.approx(1.0 - cut(PLAIN, 1)[0] / cut(PLAIN, 1)[1])
    assert bench().equal(["", "", ""], PLAIN, [])["equal"].value == pytest.approx(0.0 - 0.0)
    assert bench().equal(["", "", ""], ["", "", ""], [])["equal"].value == 0.0


def test_beyond_plains_recall_plain_goes_on() -> None:
    said = ["a dog, a cat", "a bus, a cup", "a cup, a dog"]  # all 6; plain has 5
    assert math.isnan(bench().equal(said, PLAIN, [])["equal"].value)
    longer = [f"{PLAIN[0]}. A sink", f"{PLAIN[1]} and a cup.", f"{PLAIN[2]}, a fork"]
    score = bench().equal(said, PLAIN, longer)["equal"]
    bad, named, found = cut(longer, 4)
    assert found == 6
    assert score.value == pytest.approx(0.0 - bad / named)
    points = bench().curve(PLAIN, longer)
    assert [point["beyond"] for point in points] == [False, False, False, True]
    low, high = interval(score)
    assert low <= score.value <= high


def test_intervals_are_paired_over_images() -> None:
    dice = np.random.default_rng(0)
    flags = [[bool(x) for x in dice.random(dice.integers(1, 6)) < 0.4] for _ in range(20)]
    first = [[not bad for bad in row] for row in flags]
    curve = Curve.of(CaptionNames(flags, first), [6] * 20)
    shorter = [row[:2] for row in flags]
    run = EqualRecall(
        curve,
        *(np.array([f(row) for row in shorter], dtype=float) for f in (sum, len, lambda row: len(row) - sum(row))),
    )
    times = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), size=40).astype(float)
    assert run._of(times, False) == pytest.approx(np.zeros(40))  # the same images make the curve


def test_equal_yes_by_hand() -> None:
    truths = np.array([True, True, False, False])
    odds = np.array([3.0, 1.0, 2.0, -1.0])
    plain_yes = odds > 0  # yes to three, one of them wrong
    image = np.arange(4)
    plain = EqualYes(truths, plain_yes, plain_yes == truths, odds, image, 4)
    assert plain.value == 0.0
    silent = np.array([False] * 4)
    assert EqualYes(truths, silent, silent == truths, odds, image, 4).value == 0.0  # a no to everything is free
    mine = np.array([True, True, False, False])  # right everywhere, yes to two
    assert EqualYes(truths, mine, mine == truths, odds, image, 4).value == pytest.approx(1.0 - 0.5)
    # Resampled, it is what sorting the drawn questions by hand gives.
    score = EqualYes(truths, mine, mine == truths, odds, image, 4)
    times = np.array([[2.0, 0.0, 1.0, 1.0]])
    shifted = 2 / 4 + 2 / 4  # yes to the two of question 0, then no to questions 2 and 3
    assert score._of(times) == pytest.approx([1.0 - shifted])


def test_pope_at_an_equal_share_of_yes() -> None:
    splits = {"random": [Question(0, "dog", True), Question(1, "dog", False), Question(1, "cup", True)]}
    splits["popular"] = splits["random"][:2]
    made = PopeBenchmark.of_questions(splits, {"a": None, "b": None})
    asked = made.yardstick()
    assert [one.choices for one in asked] == [("Yes", "yes", "No", "no")] * 3
    assert len({one.id for one in (*made.samples, *asked)}) == 6
    chances = [[-1.0, -9, -2, -9], [-1.0, -9, -1.5, -9], [-3.0, -9, -1, -9]]
    equal = made.equal(["Yes", "No", "Yes"], ["Yes", "Yes", "No"], chances)
    assert equal["random"]["equal"].value == pytest.approx(1.0 - 1 / 3)
    assert equal["popular"]["equal"].value == pytest.approx(0.0)
    assert equal["mean"]["equal"].value == pytest.approx(1 / 3)
    assert made.equal(["Yes"] * 3, ["Yes"] * 3, []) == {}


def test_log_odds_add_up_ways_to_say_it() -> None:
    assert log_odds([math.log(0.3), math.log(0.2), math.log(0.1), math.log(0.1)]) == pytest.approx(math.log(0.5 / 0.2))
    assert log_odds([-math.inf] * 4) == 0.0


def test_a_longer_reply_goes_on_for_half_as_long_again() -> None:
    """A model that counts up, and wants to end at its tenth token and from then on."""
    end, start = 0, torch.zeros(2, 3, dtype=torch.long)
    longer = prompting._Longer([end], prompt=3)

    def said(wants: Sequence[int]) -> list[int]:
        """How many tokens each row has when its end is let through."""
        ids, done = start, [-1, -1]
        for step in range(100):
            scores = torch.zeros(2, 5)
            scores[:, 1] = 1.0
            for row, want in enumerate(wants):
                scores[row, end] = 2.0 if step >= want else -2.0
            chosen = longer(ids, scores).argmax(-1)
            for row in range(2):
                if done[row] < 0 and chosen[row] == end:
                    done[row] = step
            ids = torch.cat([ids, chosen[:, None]], 1)
        return done

    assert said([10, 60]) == [10 + prompting.LEAST_LONGER, 60 + 30]


def test_a_longer_caption_begins_like_the_plain_one() -> None:
    model, processor = testbed.load()
    made = ChairBenchmark.of_scenes(list(testbed.scenes("test", 3)), testbed.CAPTION_PROMPT)
    plain = prompting.ask(model, processor, made.samples, made.new_tokens)
    longer = prompting.ask(model, processor, made.yardstick(), made.new_tokens)
    assert all(more.startswith(said) and len(more) > len(said) for said, more in zip(plain, longer, strict=True))
    points = made.curve(plain, longer)
    assert points[-1]["recall"] >= next(one["recall"] for one in reversed(points) if not one["beyond"])
    assert any(one["beyond"] for one in points)
