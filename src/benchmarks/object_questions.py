"""`sightline eval pope`: the published question files, or questions built about the testbed's scenes.

Files, as published: JSON lines of `question_id, image, text, label`; `coco_pope_random.json`, `_popular`, `_adversarial`
in the data folder, the pictures there, in `images/` or in `val2014/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .pope import SPLITS, Mean, build, parse
from .readers import DataError, Notes, answers, expect, images, label, read_lines, text, unique, value
from .scenes import scene_name, scenes
from .suite import Benchmark, Reply, Sample, Source
from .yesno import tally

PUBLISHED = 3000
"""Questions in each published COCO split."""


@dataclass(frozen=True)
class Entry:
    """A question of a split, as its file has it; `place` says where."""

    place: str
    id: Any
    image: str
    text: str
    yes: bool


@dataclass(frozen=True)
class Asked:
    """A question of a split: its published id, its label, the sample that asks it and the number of the image."""

    id: Any
    yes: bool
    sample: int
    image: int


@dataclass
class PopeBenchmark(Benchmark):
    """POPE's three splits, or those that are there. A question that several splits share is put to the model once."""

    name = "pope"
    new_tokens = 10
    columns: ClassVar = {
        "accuracy": "accuracy",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "yes_ratio": "yes",
        "exact": "exact match",
        "unparsed": "unparsed",
        "n": "n",
    }
    percent = frozenset({"accuracy", "precision", "recall", "f1", "yes_ratio", "exact"})

    splits: dict[str, list[Asked]] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, source: Source) -> PopeBenchmark:
        return cls._of_scenes(source) if source.folder is None else cls._of_files(source.folder, source.limit)

    @classmethod
    def _of_scenes(cls, source: Source) -> PopeBenchmark:
        from .. import testbed

        shown = scenes(source)
        made = build([s.names for s in shown], testbed.frequency(), testbed.cooccurrence(), seed=source.seed)
        names = [scene_name(scene) for scene in shown]
        found = {
            split: [
                Entry("the testbed", n, names[q.image], testbed.question(q.name), q.present)
                for n, q in enumerate(asked)
            ]
            for split, asked in made.items()
        }
        return cls.merged(found, {scene_name(scene): scene.image for scene in shown}, Notes())

    @classmethod
    def _of_files(cls, folder: Path, limit: int | None) -> PopeBenchmark:
        notes, found = Notes(), {}
        for split, path in _split_files(folder).items():
            entries = _entries(path)
            expect(len(entries), PUBLISHED, f"questions in {path.name}", notes)
            found[split] = entries[:limit]
        about = [frozenset(entry.image for entry in entries) for entries in found.values()]
        if len(set(about)) > 1:
            notes.add("the splits are about different images: their scores do not compare with each other")
        folders = [folder, folder / "images", folder / "val2014"]
        return cls.merged(found, images(folders, (name for names in about for name in sorted(names))), notes)

    @classmethod
    def merged(cls, found: Mapping[str, Sequence[Entry]], pictures: Mapping[str, Any], notes: Notes) -> PopeBenchmark:
        """One sample for each different question. Raises DataError where two splits label one differently."""
        first: dict[tuple[str, str], tuple[int, Entry]] = {}
        numbers = {name: number for number, name in enumerate(pictures)}
        made = cls([], notes, {split: [] for split in found})
        for split, entries in found.items():
            for entry in entries:
                sample, before = first.setdefault((entry.image, entry.text), (len(made.samples), entry))
                if before.yes != entry.yes:
                    raise DataError(
                        f"{entry.place}: the label is not the one that {before.place} has for the same question"
                    )
                if sample == len(made.samples):
                    made.samples.append(Sample(f"{entry.image}: {entry.text}", entry.text, pictures[entry.image]))
                    made.facts.append({"label": "yes" if entry.yes else "no", "ids": {}})
                made.facts[sample]["ids"][split] = entry.id
                made.splits[split].append(Asked(entry.id, entry.yes, sample, numbers[entry.image]))
        return made

    def score(self, replies: Sequence[str]) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        number = 1 + max(one.image for asked in self.splits.values() for one in asked)
        for split, asked in self.splits.items():
            said = [replies[one.sample] for one in asked]
            truths, where = [one.yes for one in asked], [one.image for one in asked]
            scores[split] = tally(truths, [parse(reply) for reply in said], said, where, number)
        return scores if len(scores) == 1 else scores | {"mean": Mean(list(scores.values()))}

    def truth(self, number: int) -> dict[str, Any]:
        return self.facts[number]

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        answer = parse(reply)
        right = answer.yes == (self.facts[number]["label"] == "yes")
        return {"reply": reply, "yes": answer.yes, "said": answer.said, "right": right}

    def answers(self, path: Path) -> list[Reply]:
        """Replies made elsewhere, by `question_id`: a folder with a file for each split, or one file for one split."""
        files = {next(iter(self.splits)): path} if path.is_file() and len(self.splits) == 1 else _split_files(path)
        replies: dict[int, str] = {}
        for split, asked in self.splits.items():
            if split not in files:
                raise DataError(f"{path} has no answers for the split {split}")
            said = answers(files[split], [one.id for one in asked], key=_id, reply=self.answer_keys)
            for one, reply in zip(asked, said, strict=True):
                if replies.setdefault(one.sample, reply) != reply:
                    self.notes.add("a question that two splits share has two answers: the first one counts")
        return [replies[number] for number in range(len(self.samples))]


def _entries(path: Path) -> list[Entry]:
    """The questions of a file. Raises DataError for an unknown label, an id or a question that comes twice."""
    entries = [
        Entry(
            place, _id(row, place), text(row, "image", place), text(row, "text", place), label(row.get("label"), place)
        )
        for place, row in read_lines(path)
    ]
    unique(((entry.place, entry.id) for entry in entries), "question_id")
    unique(((entry.place, (entry.image, entry.text)) for entry in entries), "question")
    return entries


def _id(row: Mapping[str, Any], place: str) -> Any:
    return value(row, "question_id", place, (int, str))


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of each split, by its name. Raises DataError where a split has two, or none has any."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.json*")):
        match = re.search("|".join(SPLITS), path.name)
        if match and found.setdefault(match.group(), path) != path:
            raise DataError(
                f"{folder} has two files for the split {match.group()}: {found[match.group()].name}, {path.name}"
            )
    if not found:
        raise DataError(f"{folder} has no POPE file: expected coco_pope_random.json, _popular.json, _adversarial.json")
    return {split: found[split] for split in SPLITS if split in found}
