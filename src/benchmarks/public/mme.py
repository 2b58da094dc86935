"""MME's hallucination subset: existence, count, position and color (arXiv 2306.13394), by its release's rule.

Files, as published: a folder for each of the four in the data folder, with `NAME.txt` beside each picture `NAME.jpg` (or
.png), two lines of `question<TAB>Yes|No` in it. The questions ask for yes or no themselves.

A reply is yes or no if that word stands in its first four characters, else neither, which is wrong. A subset's score is
accuracy plus accuracy+ (images with both answers right), each out of 100; the total of the four is out of 800.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...common.documents import read_text
from ...common.errors import DataError
from ...common.readers import Notes, expect, label
from ...common.statistics import Blend, Ratio, SampledScore
from ...models.samples import Sample
from ..benchmark import FLEXIBLE, Benchmark, DataSource
from .yesno import YesNoReply, plainly, says

SUBSETS = ("existence", "count", "position", "color")
PUBLISHED = 60
"""Questions in each subset, two an image."""


def parse(reply: str) -> YesNoReply:
    """Read a reply by the release's rule, to the letter: "not sure" is no, "the answer is yes" neither."""
    start = reply.lower()[:4]
    return YesNoReply(True if "yes" in start else False if "no" in start else None, says(reply))


@dataclass(frozen=True, eq=False)
class Subset:
    """Right answers, questions, and images with all answers right, per image of all subsets `[images]`."""

    right: np.ndarray
    asked: np.ndarray
    neither: int
    outcomes: list[bool]

    @property
    def ratios(self) -> dict[str, SampledScore]:
        accuracy = Ratio.of(self.right, self.asked)
        plus = Ratio.of((self.right == self.asked) & (self.asked > 0), self.asked > 0)
        return {"accuracy": accuracy, "accuracy_plus": plus, "score": Blend((accuracy, plus), (100.0, 100.0))}

    @property
    def values(self) -> dict[str, object]:
        scores: dict[str, object] = {key: score.value for key, score in self.ratios.items()}
        return scores | {"unparsed": self.neither, "n": int(self.asked.sum())}


@dataclass(frozen=True, eq=False)
class Total:
    """The sum of the subsets' scores."""

    subsets: Sequence[Subset]

    @property
    def ratios(self) -> dict[str, SampledScore]:
        return {"score": Blend(tuple(one.ratios["score"] for one in self.subsets), (1.0,) * len(self.subsets))}

    @property
    def values(self) -> dict[str, object]:
        asked = sum(int(one.asked.sum()) for one in self.subsets)
        return {"score": self.ratios["score"].value, "unparsed": sum(one.neither for one in self.subsets), "n": asked}


@dataclass
class MME(Benchmark):
    """`asked[number]`: the subset, the number of the image, and whether yes is right."""

    name = "mme"
    new_tokens = 10
    columns: ClassVar = {
        "score": "score",
        "accuracy": "accuracy",
        "accuracy_plus": "accuracy+",
        "unparsed": "unparsed",
        "n": "n",
    }
    percent = frozenset({"accuracy", "accuracy_plus"})
    options = frozenset({"match"})

    asked: list[tuple[str, int, bool]] = field(default_factory=list)
    rule: Callable[[str], YesNoReply] = parse

    @classmethod
    def read(cls, source: DataSource) -> MME:
        folder, notes = source.need("MME files"), Notes()
        made, number = cls([], notes), 0
        if source.match == FLEXIBLE:
            made.rule = plainly
            notes.add("replies are read for what they plainly say, not by the release's rule")
        for subset in SUBSETS:
            pairs = _pairs(folder / subset, notes if source.replies else None)
            expect(sum(len(lines) for _, lines in pairs), PUBLISHED, f"questions in {subset}", notes)
            # A limit keeps whole images: accuracy+ needs both questions of each.
            for picture, lines in pairs[: None if source.limit is None else -(-source.limit // 2)]:
                for line, question, yes in lines:
                    made.samples.append(Sample(f"{subset}/{picture.name}: {line}", question, picture))
                    made.asked.append((subset, number, yes))
                number += 1
        return made

    def score(self, replies: Sequence[str]) -> dict[str, Any]:
        images = 1 + max(image for _, image, _ in self.asked)
        scores: dict[str, Any] = {}
        for subset in dict.fromkeys(name for name, _, _ in self.asked):
            right, asked = np.zeros(images), np.zeros(images)
            outcomes, neither = [], 0
            for (name, image, yes), reply in zip(self.asked, replies, strict=True):
                if name == subset:
                    answer = self.rule(reply)
                    outcomes.append(answer.yes == yes)
                    neither += answer.yes is None
                    right[image] += answer.yes == yes
                    asked[image] += 1
            scores[subset] = Subset(right, asked, neither, outcomes)
        return scores | {"total": Total(list(scores.values()))}

    def truth(self, number: int) -> dict[str, Any]:
        subset, _, yes = self.asked[number]
        return {"subset": subset, "label": "yes" if yes else "no"}

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        answer = self.rule(reply).yes
        return {"reply": reply, "yes": answer, "right": answer == self.asked[number][2]}


def _pairs(folder: Path, missing: Notes | None) -> list[tuple[Path, list[tuple[int, str, bool]]]]:
    """Pictures with their questions (line, question, whether yes is right).

    Where `missing` takes notes of them, pictures need not be there. Raises DataError where one has no partner.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: expected {', '.join(SUBSETS)} of MME_Benchmark_release_version")
    texts = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    pictures = {
        path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    }
    alone = sorted(texts.keys() ^ pictures.keys())
    if missing is not None and pictures.keys() < texts.keys():
        missing.add("a picture is not on disk, which scoring replies that exist does not need", len(alone))
        pictures |= {stem: texts[stem].with_suffix(".jpg") for stem in alone}
        alone = []
    if alone or not texts:
        what = f"{alone[0]} has no {'picture' if alone[0] in texts else 'questions'}" if alone else "it is empty"
        raise DataError(f"{folder}: {what} ({len(alone)} without a partner)")
    return [(pictures[stem], _questions(path)) for stem, path in texts.items()]


def _questions(path: Path) -> list[tuple[int, str, bool]]:
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            question, tab, answer = line.rpartition("\t")
            if not tab or not question.strip():
                raise DataError(f"{path}, line {number}: expected a question, a tab, and Yes or No")
            found.append((number, question.strip(), label(answer, f"{path}, line {number}")))
    if len(found) != 2:
        raise DataError(f"{path}: {len(found)} questions, but accuracy+ needs two: is the file cut off?")
    return found
