"""`sightline eval pope`: the published question files, or questions built about the testbed's scenes.

Files, as published: JSON lines of `question_id, image, text, label`; `coco_pope_random.json`, `_popular`, `_adversarial`
in the data folder, the pictures there, in `images/` or in `val2014/`. Where only an instances file is there
(`instances_val2014.json`, also in `annotations/`), questions are built from it as the paper did: 3 objects that are there
and 3 that are not, for 500 images with more than 3 objects, or for those of `image_ids.txt`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...common.files import write_text
from ...common.readers import DataError, Notes, answers, expect, images, label, read_lines, text, unique, value
from ...models.samples import Reply, Sample
from ..runner.suite import Benchmark, Source
from . import coco
from .pope import SPLITS, Mean, build, parse, statistics, wording
from .scenes import scene_name, scenes
from .yesno import tally

PUBLISHED = 3000
"""Questions in each published COCO split."""
IMAGES, PAIRS = 500, 3
"""Images, and questions with each answer about one, where questions are built."""


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
    built: bool = False

    @classmethod
    def read(cls, source: Source) -> PopeBenchmark:
        if source.folder is None:
            return cls._of_scenes(source)
        annotated = any(path.is_file() for path in coco.places(source.folder, *coco.INSTANCES))
        if annotated and not _split_files(source.folder):
            return cls._of_instances(source.folder, source)
        return cls._of_files(source.folder, source.limit)

    @classmethod
    def _of_scenes(cls, source: Source) -> PopeBenchmark:
        from ... import testbed

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
    def _of_instances(cls, folder: Path, source: Source) -> PopeBenchmark:
        path = coco.instances(folder)
        names, objects = coco.objects(path, coco.vocabulary())
        frequency, together = statistics(list(objects.values()))
        rich = names if (folder / coco.IMAGE_IDS).is_file() else [i for i in names if len(objects[i]) > PAIRS]
        chosen = coco.chosen(folder, list(rich))[: source.limit or IMAGES]
        asked = {name: frequency.get(name, 0) for name in coco.categories()}
        made = build([objects[image] for image in chosen], asked, together, pairs=PAIRS, seed=source.seed)
        found = {
            split: [
                Entry(str(path), n, names[chosen[q.image]], wording(q.name), q.present) for n, q in enumerate(ones, 1)
            ]
            for split, ones in made.items()
        }
        notes = Notes()
        notes.add(
            f"the questions were built from {path.name} for {len(chosen)} images: they are not the published ones"
        )
        pictures = images(coco.picture_folders(folder), (names[image] for image in chosen))
        bench = cls.merged(found, pictures, notes)
        bench.built = True
        return bench

    @classmethod
    def _of_files(cls, folder: Path, limit: int | None) -> PopeBenchmark:
        notes, found, files = Notes(), {}, _split_files(folder)
        if not files:
            raise DataError(
                f"{folder} has no POPE file: expected coco_pope_random.json, _popular.json, _adversarial.json, or "
                "instances_val2014.json to build questions from"
            )
        for split, path in files.items():
            entries = _entries(path)
            expect(len(entries), PUBLISHED, f"questions in {path.name}", notes)
            found[split] = entries[:limit]
        about = [frozenset(entry.image for entry in entries) for entries in found.values()]
        if len(set(about)) > 1:
            notes.add("the splits are about different images: their scores do not compare with each other")
        names = (name for names in about for name in sorted(names))
        return cls.merged(found, images(coco.picture_folders(folder), names), notes)

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
        """Replies made elsewhere: a folder with a file for each split, or one file for one split.

        By `question_id`; without any, as the published script reads them, one a line in the order of the questions. Where
        a line holds its `question` or `prompt`, that has to be the one asked.
        """
        files = {next(iter(self.splits)): path} if path.is_file() and len(self.splits) == 1 else _split_files(path)
        replies: dict[int, str] = {}
        for split, asked in self.splits.items():
            if split not in files:
                raise DataError(f"{path} has no answers for the split {split}")
            said = self._said(files[split], split)
            for one, reply in zip(asked, said, strict=True):
                if replies.setdefault(one.sample, reply) != reply:
                    self.notes.add("a question that two splits share has two answers: the first one counts")
        return [replies[number] for number in range(len(self.samples))]

    def _said(self, path: Path, split: str) -> list[str]:
        """The replies of a file to the questions of a split. Raises DataError where they are to other ones."""
        asked, rows = self.splits[split], read_lines(path)
        lined_up = not any("question_id" in row for _, row in rows)
        if lined_up and len(rows) != len(asked):
            raise DataError(
                f"{path}: {len(rows)} answers without question_id, but {split} has {len(asked)} questions: the files of one "
                "split have as many lines"
            )
        numbers = [one.id for one in asked] if lined_up else [_id(row, place) for place, row in rows]
        texts = {one.id: self.samples[one.sample].text for one in asked}
        for (place, row), number in zip(rows, numbers, strict=True):
            shown = next((row[key] for key in ("question", "prompt") if isinstance(row.get(key), str)), None)
            if shown is not None and texts.get(number, "") not in shown:
                raise DataError(f"{place}: an answer to {shown!r}, but {texts[number]!r} was asked: of another split?")
        ids = {place: number for (place, _), number in zip(rows, numbers, strict=True)}
        return list(answers(path, list(texts), key=lambda row, place: ids[place], reply=self.answer_keys))

    def export(self, folder: Path, runs: Mapping[str, Sequence[Any]]) -> list[Path]:
        """Questions that were built, in the published form, for other tools."""
        written = []
        for split, asked in self.splits.items() if self.built else ():
            lines = []
            for one in asked:
                sample = self.samples[one.sample]
                row = {"question_id": one.id, "image": getattr(sample.image, "name", ""), "text": sample.text}
                lines.append(json.dumps(row | {"label": "yes" if one.yes else "no"}) + "\n")
            written.append(folder / "questions" / f"coco_pope_{split}.json")
            write_text(written[-1], "".join(lines))
        return written


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
    """The file of each split that has one, by its name. Raises DataError where a split has two."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.json*")):
        match = re.search("|".join(SPLITS), path.name)
        if match and found.setdefault(match.group(), path) != path:
            raise DataError(
                f"{folder} has two files for the split {match.group()}: {found[match.group()].name}, {path.name}"
            )
    return {split: found[split] for split in SPLITS if split in found}
