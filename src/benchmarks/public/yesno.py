"""Yes/no questions: what a reply says, and the scores of many. POPE, AMBER, MME and HallusionBench share it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ...common.statistics import Floats, Ratio

_SENTENCE_END = re.compile(r"[.!?\n]")


@dataclass(frozen=True)
class YesNoReply:
    """How a rule reads a reply (`yes`; None: the rule reads neither) and what the reply plainly says (`said`)."""

    yes: bool | None
    said: bool | None


def says(reply: str) -> bool | None:
    """What a reply plainly says: the first of the words yes, no and not in its first sentence; None without one."""
    words = re.findall(r"\w+", _SENTENCE_END.split(reply.strip(), maxsplit=1)[0].lower())
    return next((word == "yes" for word in words if word in ("yes", "no", "not")), None)


def plainly(reply: str) -> YesNoReply:
    """Read a reply for what it plainly says."""
    return YesNoReply(says(reply), says(reply))


@dataclass(frozen=True, eq=False)
class YesNo:
    """Counts per image `[images]`, and for each question in turn whether the reply was right.

    tp, fp, tn, fn: with yes as the positive answer. none_yes, none_no: replies read as neither, where yes (no) is true;
    they are wrong. unparsed: replies that plainly say neither. disputed: replies that the rule reads otherwise than what
    they plainly say ("NO", "Yes, there is no doubt"). exact: the bare word, as lmms-eval wants it.
    `positive` says for which answer precision, recall and F1 are (AMBER: no).
    """

    tp: Floats
    fp: Floats
    tn: Floats
    fn: Floats
    none_yes: Floats
    none_no: Floats
    unparsed: Floats
    disputed: Floats
    exact: Floats
    outcomes: list[bool]
    positive: str = "yes"

    @property
    def ratios(self) -> dict[str, Ratio]:
        """The scores as ratios of sums over images. `yes_ratio` is of the *replies*, whatever the truth is."""
        hit, false, missed = self.tp, self.fp, self.fn + self.none_yes
        if self.positive == "no":
            hit, false, missed = self.tn, self.fn, self.fp + self.none_no
        asked = self._asked
        return {
            "accuracy": Ratio.of(self.tp + self.tn, asked),
            "precision": Ratio.of(hit, hit + false),
            "recall": Ratio.of(hit, hit + missed),
            "f1": Ratio.of(2 * hit, 2 * hit + false + missed),
            "yes_ratio": Ratio.of(self.tp + self.fp, asked),
            "exact": Ratio.of(self.exact, asked),
        }

    @property
    def values(self) -> dict[str, object]:
        """The scores as plain numbers: fractions, and the counts `unparsed`, `disputed` and `n` (questions)."""
        scores: dict[str, object] = {key: ratio.value for key, ratio in self.ratios.items()}
        counts = {"unparsed": self.unparsed, "disputed": self.disputed, "n": self._asked}
        return scores | {key: int(count.sum()) for key, count in counts.items()}

    @property
    def _asked(self) -> Floats:
        return self.tp + self.fp + self.tn + self.fn + self.none_yes + self.none_no


def tally(
    truths: Sequence[bool],
    answers: Sequence[YesNoReply],
    replies: Sequence[str],
    images: Sequence[int],
    number: int,
    *,
    positive: str = "yes",
) -> YesNo:
    """Count one answer per question, in the same order.

    Args:
        truths: whether yes is right.
        answers: the replies as a rule reads them.
        replies: the replies themselves, for the exact match.
        images: the image each question is about, 0 .. number - 1.
        number: how many images there are, asked about or not.
        positive: the answer that precision, recall and F1 are for.

    Raises:
        ValueError: the sequences differ in length.
    """
    names = [field.name for field in fields(YesNo) if field.name not in ("outcomes", "positive")]
    counts = {name: np.zeros(number) for name in names}
    outcomes = []
    for truth, answer, reply, image in zip(truths, answers, replies, images, strict=True):
        cell = {True: ("fp", "tp"), False: ("tn", "fn"), None: ("none_no", "none_yes")}[answer.yes][truth]
        counts[cell][image] += 1
        counts["unparsed"][image] += answer.said is None
        counts["disputed"][image] += answer.said is not None and answer.said != answer.yes
        counts["exact"][image] += reply.strip().lower() == ("yes" if truth else "no")
        outcomes.append(answer.yes == truth)
    return YesNo(**counts, outcomes=outcomes, positive=positive)
