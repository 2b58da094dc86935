"""POPE: yes/no questions about objects that are, or are not, in the image (Li et al., EMNLP 2023).

Each split asks about the same present objects and draws its absent ones differently: `random` from all, `popular` the
most frequent ones, `adversarial` those that most often occur together with what is there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .stats import Ratio

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Question:
    """Is `name` in image number `image`? `present` is the truth. Equal questions of two splits need one answer."""

    image: int
    name: str
    present: bool


@dataclass(frozen=True)
class Answer:
    """What a reply says, and whether it says it: `parsed` is False where neither yes nor no was written."""

    yes: bool
    parsed: bool


def build(
    truths: Sequence[Collection[str]],
    frequency: Mapping[str, float],
    cooccurrence: Mapping[str, Mapping[str, float]],
    *,
    pairs: int = 2,
    seed: int = 0,
) -> dict[str, list[Question]]:
    """Balanced questions for the three splits: `pairs` present and as many absent objects for each image.

    An image with fewer than `pairs` objects gets fewer questions, still balanced. Positives are the same in every
    split. The result depends on the arguments only.

    Args:
        truths: canonical names of the objects in each image.
        frequency: how often each object occurs; its keys are the objects that may be asked about.
        cooccurrence: `cooccurrence[a][b]` grows with how often b occurs where a does.
    """
    questions: dict[str, list[Question]] = {split: [] for split in SPLITS}
    names = sorted(frequency, key=lambda name: (-frequency[name], name))
    for image, truth in enumerate(truths):
        dice = random.Random(f"{seed}/{image}")
        present = [name for name in names if name in truth]
        absent = [name for name in names if name not in truth]
        count = min(pairs, len(present), len(absent))
        positives = dice.sample(sorted(present), count)
        company = {name: sum(cooccurrence.get(other, {}).get(name, 0.0) for other in present) for name in absent}
        negatives = {
            "random": dice.sample(sorted(absent), count),
            "popular": absent[:count],
            # sorted() is stable: equal company falls back on frequency, then on the alphabet
            "adversarial": sorted(absent, key=lambda name: -company[name])[:count],
        }
        for split in SPLITS:
            questions[split] += [Question(image, name, True) for name in positives]
            questions[split] += [Question(image, name, False) for name in negatives[split]]
    return questions


def parse(reply: str) -> Answer:
    """Read a reply by the rule of the official script: in its first sentence, a word no or not means no, else yes.

    So a reply with neither counts as yes, as it does there; `parsed` is False then, and the score counts such replies.
    """
    sentence = re.split(r"[.\n]", reply.strip(), maxsplit=1)[0]
    words = set(re.findall(r"\w+", sentence.lower()))
    denied = bool(words & {"no", "not"})
    return Answer(yes=not denied, parsed=denied or "yes" in words)


@dataclass(frozen=True, eq=False)
class Pope:
    """Counts per image `[images]`: true and false positives and negatives, unparsed replies, exact matches."""

    tp: np.ndarray
    fp: np.ndarray
    tn: np.ndarray
    fn: np.ndarray
    unparsed: np.ndarray
    exact: np.ndarray

    @property
    def ratios(self) -> dict[str, Ratio]:
        """The scores as ratios of sums over images. `yes_ratio` is of the *replies* (the truth is half yes); `exact`
        is the accuracy when only a bare "yes" or "no" counts, as lmms-eval scores it."""
        tp, fp, tn, fn = self.tp, self.fp, self.tn, self.fn
        asked = tp + fp + tn + fn
        return {
            "accuracy": Ratio.of(tp + tn, asked),
            "precision": Ratio.of(tp, tp + fp),
            "recall": Ratio.of(tp, tp + fn),
            "f1": Ratio.of(2 * tp, 2 * tp + fp + fn),
            "yes_ratio": Ratio.of(tp + fp, asked),
            "exact": Ratio.of(self.exact, asked),
        }

    @property
    def values(self) -> dict[str, object]:
        """The scores as plain numbers: fractions, and the counts `unparsed` and `n` (questions)."""
        scores: dict[str, object] = {key: ratio.value for key, ratio in self.ratios.items()}
        asked = int((self.tp + self.fp + self.tn + self.fn).sum())
        return scores | {"unparsed": int(self.unparsed.sum()), "n": asked}


def pope(questions: Sequence[Question], replies: Sequence[str], images: int) -> Pope:
    """Score one reply per question, in the same order; `images` is the number of images, asked about or not.

    Raises:
        ValueError: questions and replies differ in number.
    """
    counts = {key: np.zeros(images) for key in ("tp", "fp", "tn", "fn", "unparsed", "exact")}
    for question, reply in zip(questions, replies, strict=True):
        answer = parse(reply)
        cell = {(True, True): "tp", (True, False): "fp", (False, False): "tn", (False, True): "fn"}
        counts[cell[answer.yes, question.present]][question.image] += 1
        counts["unparsed"][question.image] += not answer.parsed
        counts["exact"][question.image] += reply.strip().lower() == ("yes" if question.present else "no")
    return Pope(**counts)
