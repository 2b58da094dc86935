"""MMHal-Bench: 96 open questions whose replies a judge rates (arXiv 2309.14525). Here: the replies, ready for a judge.

Files, as published: `response_template.json` in the data folder, the pictures in `images/`, under the last part of each
entry's `image_src`. The export holds the same entries with `model_answer` filled in, which is what the release's judge
reads; no judge and no key is needed to make it. `ratings` reads what a judge wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

import numpy as np

from ...common.documents import read_json
from ...common.errors import DataError
from ...common.files import write_json
from ...common.readers import Notes, expect, records, text
from ...common.statistics import Floats, Ratio
from ...models.samples import Sample
from ..benchmark import Benchmark, DataSource

PUBLISHED = 96
LARGEST = 6
HALLUCINATES_BELOW = 3
_RATING = re.compile(r"rating:\s*([0-9])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Lengths:
    """Words per reply `[questions]`: all that can be said without a judge."""

    words: Floats

    @property
    def ratios(self) -> dict[str, Ratio]:
        return {"words": Ratio.of(self.words, 1)}

    @property
    def values(self) -> dict[str, object]:
        return {"words": Ratio.of(self.words, 1).value, "empty": int((self.words == 0).sum()), "n": len(self.words)}


@dataclass
class MMHal(Benchmark):
    name = "mmhal"
    new_tokens = 256
    columns: ClassVar = {"words": "words", "empty": "empty", "n": "n"}

    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, source: DataSource) -> MMHal:
        folder, notes = source.need("MMHal files"), Notes()
        path = folder / "response_template.json"
        rows = records(read_json(path, list), str(path), "entry")
        expect(len(rows), PUBLISHED, "questions", notes)
        rows = rows[: source.limit]
        names = [Path(urlparse(text(row, "image_src", place)).path).name for place, row in rows]
        pictures = source.pictures([folder / "images", folder], names, notes)
        samples = [
            Sample(f"{number}: {name}", text(row, "question", place), pictures[name])
            for number, ((place, row), name) in enumerate(zip(rows, names, strict=True))
        ]
        notes.add("not scored: a judge has to read the exported replies")
        return cls(samples, notes, [row for _, row in rows])

    def score(self, replies: Sequence[str]) -> Lengths:
        return Lengths(np.asarray([len(reply.split()) for reply in replies], dtype=np.float64))

    def truth(self, number: int) -> dict[str, Any]:
        return {"answer": self.entries[number].get("gt_answer", "")}

    def export(self, folder: Path, runs: Mapping[str, Sequence[Any]]) -> list[Path]:
        written = []
        for name, replies in runs.items():
            path = folder / name / "mmhal.json"
            write_json(path, [e | {"model_answer": said} for e, said in zip(self.entries, replies, strict=True)])
            written.append(path)
        return written


def ratings(judged: Sequence[str]) -> tuple[float, float]:
    """The mean rating, 0 to 6, and the share of hallucinating replies, rated below 3, from a judge's texts.

    Raises:
        DataError: a text gives no rating, or several.
    """
    found = []
    for number, said in enumerate(judged):
        marks = {int(mark) for mark in _RATING.findall(said)}
        if len(marks) != 1 or max(marks) > LARGEST:
            raise DataError(
                f"judgement {number}: expected one 'Rating: 0' to 'Rating: {LARGEST}', found {sorted(marks)}"
            )
        found.append(marks.pop())
    if not found:
        raise DataError("there is no judgement to read")
    return sum(found) / len(found), sum(mark < HALLUCINATES_BELOW for mark in found) / len(found)
