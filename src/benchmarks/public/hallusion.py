"""HallusionBench's yes/no part, without a judge (arXiv 2310.14566).

Files, as published: `HallusionBench.json` in the data folder, the pictures where its `filename` says (`./VS/map/0_1.png`),
there or under `hallusion_bench/`. Questions of `visual_input` 0 are asked without a picture.

The release lets GPT-4 compare a reply with the reference; here a reply is right if it plainly says the reference's yes or
no, and an unclear one ("it is not possible to tell") says neither, so the numbers compare with the release's only where
replies are short. As in the release, an unclear reply is right where there is nothing to see (figure 0 of VS), else wrong.
aAcc: questions. fAcc: figures with every question right (a figure that a question about knowledge does not show counts
for none). qAcc: question pairs, the same question about a figure and its altered copies, with every one right. easy, hard:
the same without altered copies (`visual_input` 2), and of altered copies only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...common.documents import read_json
from ...common.readers import Notes, expect, label, records, text, unique, value
from ...common.statistics import Ratio
from ...models.samples import Sample
from ..benchmark import Benchmark, DataSource
from .yesno import says

PUBLISHED = 1129
INSTRUCTION = "Please answer with yes or no."
_UNCLEAR = re.compile(
    r"\b(?:not sure|unsure|uncertain|unclear|not clear|unable to|(?:can ?not|can['’]t|do not|don['’]t|could not|difficult to|"
    r"hard to|(?:not|im) ?possible to) (?:\w+ )?(?:tell|say|see|determine|know|answer|confirm|verify)|"
    r"(?:not|in) ?(?:enough|sufficient) (?:information|context|data)|no (?:information|image|picture|figure))\b",
    re.IGNORECASE,
)
"""A reply that says that it cannot tell; a judge calls it unclear."""


@dataclass(frozen=True)
class Item:
    """A question's place in the benchmark: `group` is its set of figures, `altered` whether its figure is, `yes` the truth."""

    category: str
    group: tuple[str, str, str]
    figure: str
    question: str
    altered: bool
    yes: bool

    @property
    def shown(self) -> bool:
        """Whether its figure counts: knowledge questions (VS) have no figure 0."""
        return not (self.category == "VS" and self.figure == "0")

    def right(self, reply: str) -> bool:
        """Whether a reply is."""
        said = answer(reply)
        return said == self.yes or (said is None and not self.shown)


@dataclass(frozen=True, eq=False)
class Accuracies:
    """Which questions of `items` were answered right; resampled by sets of figures."""

    items: Sequence[Item]
    outcomes: list[bool]
    unparsed: int

    @property
    def ratios(self) -> dict[str, Ratio]:
        questions = list(zip(self.items, self.outcomes, strict=True))
        return {
            "aacc": self._all_right([(item.group, n, right) for n, (item, right) in enumerate(questions)]),
            "facc": self._all_right([(i.group, (i.group, i.figure), right) for i, right in questions if i.shown]),
            "qacc": self._all_right([(i.group, (i.group, i.question), right) for i, right in questions]),
            "easy": self._all_right([(i.group, (i.group, i.question), r) for i, r in questions if not i.altered]),
            "hard": self._all_right([(i.group, (i.group, i.question), r) for i, r in questions if i.altered]),
        }

    def _all_right(self, rows: Sequence[tuple[Hashable, Hashable, bool]]) -> Ratio:
        """Units whose rows are all right, over units; rows are (set of figures, unit, right)."""
        groups = {group: n for n, group in enumerate(dict.fromkeys(item.group for item in self.items))}
        units: dict[Hashable, list[bool]] = defaultdict(list)
        home: dict[Hashable, int] = {}
        for group, unit, right in rows:
            units[unit].append(right)
            home[unit] = groups[group]  # type: ignore[index]
        top, bottom = np.zeros(len(groups)), np.zeros(len(groups))
        for unit, rights in units.items():
            top[home[unit]] += all(rights)
            bottom[home[unit]] += 1
        return Ratio.of(top, bottom)

    @property
    def values(self) -> dict[str, object]:
        scores: dict[str, object] = {key: ratio.value for key, ratio in self.ratios.items()}
        return scores | {"unparsed": self.unparsed, "n": len(self.items)}


@dataclass
class HallusionBench(Benchmark):
    name = "hallusion"
    new_tokens = 16
    columns: ClassVar = {
        "aacc": "aAcc",
        "facc": "fAcc",
        "qacc": "qAcc",
        "easy": "easy",
        "hard": "hard",
        "unparsed": "unparsed",
        "n": "n",
    }
    percent = frozenset({"aacc", "facc", "qacc", "easy", "hard"})
    answer_keys = (*Benchmark.answer_keys, "model_prediction")

    items: list[Item] = field(default_factory=list)

    @classmethod
    def read(cls, source: DataSource) -> HallusionBench:
        folder, notes = source.need("HallusionBench files"), Notes()
        path = folder / "HallusionBench.json"
        rows = records(read_json(path, list), str(path), "entry")
        entries = [(place, row, _place(row, place)) for place, row in rows]
        unique(((place, names) for place, _, names in entries), "question")
        expect(len(entries), PUBLISHED, "questions", notes)
        entries = entries[: source.limit]
        files = {names: text(row, "filename", place) for place, row, names in entries if _sees(row)}
        pictures = source.pictures([folder, folder / "hallusion_bench"], files.values(), notes)
        made = cls([], notes)
        for place, row, names in entries:
            category, subcategory, group, figure, question = names
            yes = label(row.get("gt_answer"), place, {"1": True, "0": False})
            asked = f"{text(row, 'question', place)} {INSTRUCTION}"
            made.samples.append(Sample("_".join(names), asked, pictures[files[names]] if names in files else None))
            altered = str(value(row, "visual_input", place, (str, int))) == "2"
            made.items.append(Item(category, (category, subcategory, group), figure, question, altered, yes))
        return made

    def score(self, replies: Sequence[str]) -> dict[str, Any]:
        unclear, right = (
            [answer(reply) is None for reply in replies],
            [item.right(reply) for item, reply in zip(self.items, replies, strict=True)],
        )
        scores: dict[str, Any] = {}
        for split in ("all", *dict.fromkeys(item.category for item in self.items)):
            mine = [n for n, item in enumerate(self.items) if split in ("all", item.category)]
            scores[split] = Accuracies(
                [self.items[n] for n in mine], [right[n] for n in mine], sum(unclear[n] for n in mine)
            )
        return scores

    @classmethod
    def answered(cls, row: Mapping[str, Any], place: str) -> str:
        """By `id`, or as the release's result file has it: the entry with the reply in it."""
        return super().answered(row, place) if "id" in row else "_".join(_place(row, place))

    def truth(self, number: int) -> dict[str, Any]:
        return {"label": "yes" if self.items[number].yes else "no"}

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        return {"reply": reply, "yes": answer(reply), "right": self.items[number].right(reply)}


def answer(reply: str) -> bool | None:
    """What a reply says: as `says`, but one that begins with neither yes nor no and says that it cannot tell is None."""
    first = re.match(r"\W*(\w+)", reply)
    plain = first is not None and first.group(1).lower() in ("yes", "no")
    return None if not plain and _UNCLEAR.search(reply) else says(reply)


def _place(row: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Category, subcategory, set, figure and question of an entry. Raises DataError."""
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return tuple(str(value(row, key, place, (str, int))) for key in keys)


def _sees(row: dict[str, Any]) -> bool:
    return str(row.get("visual_input")) != "0"
