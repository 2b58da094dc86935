"""POPE: yes/no questions about objects that are, or are not, in the image (Li et al., EMNLP 2023).

Each split asks about the same present objects and draws its absent ones differently: `random` from all, `popular` the
most frequent ones, `adversarial` those that most often occur together with what is there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...common.statistics import Blend, SampledScore
from .yesno import YesNo, YesNoReply, says, tally

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Question:
    """Is `name` in image number `image`? `present` is the truth. Equal questions of two splits need one answer."""

    image: int
    name: str
    present: bool


def build(
    truths: Sequence[Collection[str]],
    frequency: Mapping[str, float],
    cooccurrence: Mapping[str, Mapping[str, float]],
    *,
    pairs: int = 2,
    seed: int = 0,
    unsure: Sequence[Collection[str]] | None = None,
) -> dict[str, list[Question]]:
    """Balanced questions for the three splits: `pairs` present and as many absent objects for each image.

    An image with fewer than `pairs` objects gets fewer questions, still balanced. Positives are the same in every
    split. The result depends on the arguments only.

    Args:
        truths: canonical names of the objects in each image.
        frequency: how often each object occurs; its keys are the objects that may be asked about.
        cooccurrence: `cooccurrence[a][b]` grows with how often b occurs where a does.
        unsure: objects that may or may not be in each image, which are not asked about.
    """
    questions: dict[str, list[Question]] = {split: [] for split in SPLITS}
    names = sorted(frequency, key=lambda name: (-frequency[name], name))
    for image, truth in enumerate(truths):
        dice = random.Random(f"{seed}/{image}")
        present = [name for name in names if name in truth]
        absent = [name for name in names if name not in truth and not (unsure and name in unsure[image])]
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


def statistics(truths: Sequence[Collection[str]]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What `build` needs of an annotated image set: how many images hold each object, and each two objects together."""
    frequency = Counter(name for truth in truths for name in set(truth))
    together: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for truth in truths:
        for name in set(truth):
            together[name].update(set(truth) - {name})
    return dict(frequency), {name: dict(company) for name, company in together.items()}


def wording(name: str) -> str:
    """The published question about an object."""
    return f"Is there {'an' if name[:1] in 'aeiou' else 'a'} {name} in the image?"


def rows(questions: Sequence[Question], files: Sequence[str]) -> list[dict[str, Any]]:
    """Questions in the published form; `files` are the names of the pictures."""
    return [
        {
            "question_id": number,
            "image": files[question.image],
            "text": wording(question.name),
            "label": "yes" if question.present else "no",
        }
        for number, question in enumerate(questions, start=1)
    ]


def parse(reply: str) -> YesNoReply:
    """Read a reply by the rule of the official script, to the letter.

    What stands before the first full stop, without commas, is cut at spaces; a piece No, no or not means no, all else
    yes. So a reply with neither counts as yes, and "NO", "No!" or "No" with a line end behind it does, too; `says` notices
    them.
    """
    sentence = reply.split(".")[0].replace(",", "")
    return YesNoReply(yes=not {"No", "no", "not"} & set(sentence.split(" ")), said=says(reply))


class _Labelled(Protocol):
    @property
    def present(self) -> bool: ...
    @property
    def image(self) -> int: ...


def pope(
    questions: Sequence[_Labelled], replies: Sequence[str], number: int, *, rule: Callable[[str], YesNoReply] = parse
) -> YesNo:
    """Score one reply per question, in the same order; `number` of images, asked about or not.

    Raises:
        ValueError: questions and replies differ in number.
    """
    read = [rule(reply) for reply in replies]
    return tally([q.present for q in questions], read, replies, [q.image for q in questions], number)


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of the splits' scores, which papers print beside them."""

    splits: Sequence[YesNo]

    @property
    def ratios(self) -> dict[str, SampledScore]:
        parts = [split.ratios for split in self.splits]
        return {key: Blend.mean([part[key] for part in parts]) for key in parts[0]}

    @property
    def values(self) -> dict[str, object]:
        scores: dict[str, object] = {key: score.value for key, score in self.ratios.items()}
        counts: list[dict[str, Any]] = [split.values for split in self.splits]
        return scores | {key: sum(count[key] for count in counts) for key in ("unparsed", "disputed", "n")}
