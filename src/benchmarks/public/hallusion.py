"""HallusionBench's yes/no part, without a judge (arXiv 2310.14566).

Files, as published: `HallusionBench.json` in the data folder, the pictures under `hallusion_bench/` as its `filename`
says. Questions of `visual_input` 0 are asked without a picture.

The release lets GPT-4 compare a reply with the reference; here a reply is right if it plainly says the reference's yes or
no, and one that says neither is wrong, so the numbers compare with the release's only where replies are short.
aAcc: questions. fAcc: figures with every question right (a figure that a question about knowledge does not show counts
for none). qAcc: question pairs, the same question about a figure and its altered copies, with every one right. easy, hard:
questions about original figures, and about altered ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...common.readers import Notes, expect, images, label, read_json, text, unique, value
from ...common.statistics import Ratio
from ...models.samples import Sample
from ..runner.suite import Benchmark, Source
from .yesno import says

PUBLISHED = 1129
INSTRUCTION = "Please answer with yes or no."


@dataclass(frozen=True)
class Item:
    """A question's place in the benchmark: `group` is its set of figures, `yes` the truth."""

    category: str
    group: tuple[str, str, str]
    figure: str
    question: str
    yes: bool

    @property
    def shown(self) -> bool:
        """Whether its figure counts: knowledge questions (VS) have no figure 0."""
        return not (self.category == "VS" and self.figure == "0")


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
            "easy": self._all_right(
                [(i.group, (i, n), right) for n, (i, right) in enumerate(questions) if i.figure == "0"]
            ),
            "hard": self._all_right(
                [(i.group, (i, n), right) for n, (i, right) in enumerate(questions) if i.figure != "0"]
            ),
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

    items: list[Item] = field(default_factory=list)

    @classmethod
    def read(cls, source: Source) -> HallusionBench:
        folder, notes = source.need("HallusionBench files"), Notes()
        path = folder / "HallusionBench.json"
        rows = [(f"{path}, entry {n}", row) for n, row in enumerate(read_json(path, list))]
        keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
        entries = [(place, row, tuple(str(value(row, key, place, (str, int))) for key in keys)) for place, row in rows]
        unique(((place, names) for place, _, names in entries), "question")
        expect(len(entries), PUBLISHED, "questions", notes)
        entries = entries[: source.limit]
        files = {names: text(row, "filename", place) for place, row, names in entries if _sees(row)}
        pictures = images([folder], files.values())
        made = cls([], notes)
        for place, row, names in entries:
            category, subcategory, group, figure, question = names
            yes = label(row.get("gt_answer"), place, {"1": True, "0": False})
            asked = f"{text(row, 'question', place)} {INSTRUCTION}"
            made.samples.append(Sample("_".join(names), asked, pictures[files[names]] if names in files else None))
            made.items.append(Item(category, (category, subcategory, group), figure, question, yes))
        return made

    def score(self, replies: Sequence[str]) -> dict[str, Any]:
        said = [says(reply) for reply in replies]
        scores: dict[str, Any] = {}
        for split in ("all", *dict.fromkeys(item.category for item in self.items)):
            mine = [n for n, item in enumerate(self.items) if split in ("all", item.category)]
            outcomes = [said[n] == self.items[n].yes for n in mine]
            scores[split] = Accuracies([self.items[n] for n in mine], outcomes, sum(said[n] is None for n in mine))
        return scores

    def truth(self, number: int) -> dict[str, Any]:
        return {"label": "yes" if self.items[number].yes else "no"}

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        return {"reply": reply, "yes": says(reply), "right": says(reply) == self.items[number].yes}


def _sees(row: dict[str, Any]) -> bool:
    return str(row.get("visual_input")) != "0"
