"""`sightline eval pope`: the published question files, or questions built about the testbed's scenes.

The files are those of `pope_files`; the pictures lie in the data folder, in `images/`, `val2014/`, `gqa/` or `gqa/images/`.
Of several sets, splits are `coco/random` and so on, each set has its mean, and all nine have one, as papers print them.
Where only an instances file is there (`instances_val2014.json`, also in `annotations/`), questions are built from it as the
paper did: 3 objects that are there and 3 that are not, for 500 images with more than 3 objects, or for those of
`image_ids.txt`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...common.documents import read_rows
from ...common.errors import DataError
from ...common.files import write_text
from ...common.readers import Notes, answers, expect
from ...common.statistics import Blend, SampledScore
from ...models.samples import Reply, Sample
from ..benchmark import FLEXIBLE, Benchmark, DataSource
from . import coco
from .equal import EqualYes, log_odds
from .pope import Mean, Question, build, parse, pope, statistics, wording
from .pope_files import PUBLISHED, Entry, question_id, read_entries, spelled, split_files
from .scenes import scene_name, scenes
from .yesno import YesNoReply, plainly

MEAN = "mean"
ODDS, WAYS = "odds", ("Yes", "yes", "No", "no")
IMAGES, PAIRS = 500, 3
"""Images, and questions with each answer about one, where questions are built."""


@dataclass(frozen=True)
class SplitItem:
    """A question of a split: its published id, its label, the sample that asks it and the number of the image."""

    id: Any
    present: bool
    sample: int
    image: int


@dataclass
class PopeBenchmark(Benchmark):
    """POPE's splits, or those that are there. A question that several splits share is put to the model once.

    Replies that exist may differ there, so that each split's are scored by themselves.
    """

    name = "pope"
    new_tokens = 10
    columns: ClassVar = {
        "accuracy": "accuracy",
        "equal": "accuracy at equal yes",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "yes_ratio": "yes",
        "exact": "exact match",
        "unparsed": "unparsed",
        "n": "n",
    }
    percent = frozenset({"accuracy", "equal", "precision", "recall", "f1", "yes_ratio", "exact"})
    options = frozenset({"categories", "match"})

    splits: dict[str, list[SplitItem]] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    image_count: int = 0
    built: bool = False
    rule: Callable[[str], YesNoReply] = parse

    @classmethod
    def read(cls, source: DataSource) -> PopeBenchmark:
        made = cls._of(source)
        if source.match == FLEXIBLE:
            made.rule = plainly
            made.notes.add("replies are read for what they plainly say, not by the published script's rule")
        return made

    @classmethod
    def _of(cls, source: DataSource) -> PopeBenchmark:
        if source.folder is None:
            return cls.of_scenes(scenes(source), seed=source.seed, apart=bool(source.replies))
        annotated = any(path.is_file() for path in coco.places(source.folder, *coco.INSTANCES))
        if annotated and not split_files(source.folder):
            return cls._of_instances(source.folder, source)
        return cls._of_files(source.folder, source)

    @classmethod
    def of_scenes(cls, shown: Sequence[Any], *, seed: int = 0, apart: bool = False) -> PopeBenchmark:
        """Questions about the testbed's scenes."""
        from ... import testbed

        made = build([scene.names for scene in shown], testbed.frequency(), testbed.cooccurrence(), seed=seed)
        pictures = {scene_name(scene): scene.image for scene in shown}
        return cls.of_questions(made, pictures, asking=testbed.question, apart=apart)

    @classmethod
    def of_questions(
        cls,
        made: Mapping[str, Sequence[Question]],
        pictures: Mapping[str, Any],
        notes: Notes | None = None,
        *,
        asking: Callable[[str], str] = wording,
        first: int = 0,
        apart: bool = False,
    ) -> PopeBenchmark:
        """Questions that were built about pictures, numbered from `first`; `asking` puts one into words.

        `apart`: as `merged` takes it.
        """
        names = list(pictures)
        found = {
            split: [
                Entry("the questions that were built", number, names[one.image], asking(one.name), one.present)
                for number, one in enumerate(questions, first)
            ]
            for split, questions in made.items()
        }
        return cls.merged(found, pictures, Notes() if notes is None else notes, apart=apart)

    @classmethod
    def _of_instances(cls, folder: Path, source: DataSource) -> PopeBenchmark:
        path, words, names, objects = coco.annotated(folder, source)
        frequency, together = statistics(list(objects.values()))
        rich = names if (folder / coco.IMAGE_IDS).is_file() else [i for i in names if len(objects[i]) > PAIRS]
        chosen = coco.chosen(folder, list(rich))[: source.limit or IMAGES]
        asked = {name: frequency.get(name, 0) for name in sorted(words.names)}
        made = build([objects[image] for image in chosen], asked, together, pairs=PAIRS, seed=source.seed)
        notes = Notes()
        notes.add(
            f"the questions were built from {path.name} for {len(chosen)} images: they are not the published ones"
        )
        pictures = source.pictures(coco.picture_folders(folder), (names[image] for image in chosen), notes)
        bench = cls.of_questions(made, pictures, notes, first=1, apart=bool(source.replies))
        bench.built = True
        return bench

    @classmethod
    def _of_files(cls, folder: Path, source: DataSource) -> PopeBenchmark:
        notes, found, files = Notes(), {}, split_files(folder)
        if not files:
            raise DataError(
                f"{folder} has no POPE file: expected coco_pope_random.json, _popular.json, _adversarial.json, those of "
                "aokvqa and gqa, or instances_val2014.json to build questions from"
            )
        sets = list(dict.fromkeys(kind for kind, _ in files))
        for (kind, split), path in files.items():
            entries = read_entries(path, notes)
            expect(len(entries), PUBLISHED, f"questions in {path.name}", notes)
            found[split if len(sets) == 1 else f"{kind}/{split}"] = entries[: source.limit]
        about = {split: frozenset(entry.image for entry in entries) for split, entries in found.items()}
        if len({(split.rpartition("/")[0], seen) for split, seen in about.items()}) > len(sets):
            notes.add("the splits are about different images: their scores do not compare with each other")
        names = (name for seen in about.values() for name in sorted(seen))
        places = [*coco.picture_folders(folder), folder / "gqa", folder / "gqa" / "images"]
        return cls.merged(found, source.pictures(places, names, notes), notes, apart=bool(source.replies))

    @classmethod
    def merged(
        cls, found: Mapping[str, Sequence[Entry]], pictures: Mapping[str, Any], notes: Notes, *, apart: bool = False
    ) -> PopeBenchmark:
        """One sample for each different question; `apart`: for each question of each split.

        Raises:
            DataError: two splits label one question differently.
        """
        first: dict[Hashable, tuple[int, Entry]] = {}
        labels: dict[tuple[str, str], Entry] = {}
        numbers = {name: number for number, name in enumerate(pictures)}
        made = cls([], notes, {split: [] for split in found}, image_count=len(pictures))
        for split, entries in found.items():
            for entry in entries:
                asked = (entry.image, entry.text)
                before = labels.setdefault(asked, entry)
                if before.yes != entry.yes:
                    raise DataError(
                        f"{entry.place}: the label is not the one that {before.place} has for the same question"
                    )
                sample, _ = first.setdefault((split, entry.id) if apart else asked, (len(made.samples), entry))
                if sample == len(made.samples):
                    name = f"{split} {entry.id}" if apart else f"{entry.image}: {entry.text}"
                    made.samples.append(Sample(name, entry.text, pictures[entry.image]))
                    made.facts.append({"label": "yes" if entry.yes else "no", "ids": {}})
                made.facts[sample]["ids"][split] = entry.id
                made.splits[split].append(SplitItem(entry.id, entry.yes, sample, numbers[entry.image]))
        return made

    def score(self, replies: Sequence[str]) -> dict[str, Any]:
        found = {
            split: pope(asked, [replies[one.sample] for one in asked], self.image_count, rule=self.rule)
            for split, asked in self.splits.items()
        }
        return found | {name: Mean([found[split] for split in parts]) for name, parts in self._means().items()}

    def _means(self) -> dict[str, list[str]]:
        """The splits that each mean is of: all, and each set's where there are several sets."""
        sets: dict[str, list[str]] = {}
        for split in self.splits:
            sets.setdefault(split.rpartition("/")[0], []).append(split)
        means = {f"{kind}/{MEAN}": parts for kind, parts in sets.items() if kind} | {MEAN: list(self.splits)}
        return {name: parts for name, parts in means.items() if len(parts) > 1}

    def yardstick(self) -> list[Sample]:
        return [replace(sample, id=f"{sample.id} {ODDS}", choices=WAYS) for sample in self.samples]

    def equal(
        self, replies: Sequence[str], plain: Sequence[str], yardstick: Sequence[Sequence[float]]
    ) -> dict[str, dict[str, SampledScore]]:
        if not yardstick:
            return {}
        odds = [log_odds(chances) for chances in yardstick]
        found: dict[str, SampledScore] = {}
        for split, asked in self.splits.items():
            yes = [self.rule(replies[one.sample]).yes for one in asked]
            truths = [one.present for one in asked]
            found[split] = EqualYes(
                np.asarray(truths),
                np.asarray([said is True for said in yes]),
                np.asarray([said == truth for said, truth in zip(yes, truths, strict=True)]),
                np.asarray([odds[one.sample] for one in asked]),
                np.asarray([one.image for one in asked]),
                self.image_count,
            )
        found |= {name: Blend.mean([found[split] for split in parts]) for name, parts in self._means().items()}
        return {split: {"equal": score} for split, score in found.items()}

    def truth(self, number: int) -> dict[str, Any]:
        return self.facts[number]

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        answer = self.rule(reply)
        right = answer.yes == (self.facts[number]["label"] == "yes")
        return {"reply": reply, "yes": answer.yes, "said": answer.said, "right": right}

    def answers(self, path: Path) -> list[Reply]:
        """Replies made elsewhere: a folder with a file for each split, or one file for one split.

        By `question_id`; without any, as the published script reads them, one a line in the order of the questions. Where
        a line holds its `question` or `prompt`, that has to be the one asked (`imange`, as VCD's files have it, is image).
        """
        if path.is_file() and len(self.splits) > 1:
            raise DataError(
                f"{path} is a file, but there are {len(self.splits)} splits: give a folder with a file for each"
            )
        files = {next(iter(self.splits)): path} if path.is_file() else self._answer_files(path)
        replies: dict[int, str] = {}
        for split, asked in self.splits.items():
            said = self._said(files[split], split)
            for one, reply in zip(asked, said, strict=True):
                if replies.setdefault(one.sample, reply) != reply:
                    raise DataError(
                        f"{files[split]}: another answer than before to {self.samples[one.sample].text!r}, which splits "
                        "share: name the files when the benchmark is read (DataSource.replies), and each split keeps its own"
                    )
        return [replies[number] for number in range(len(self.samples))]

    def _answer_files(self, folder: Path) -> dict[str, Path]:
        """The file of replies for each split. Raises DataError where one is missing."""
        found = split_files(folder)
        files = {f"{kind}/{split}": path for (kind, split), path in found.items()}
        if len({split.rpartition("/")[0] for split in self.splits}) == 1:  # then names need not say which set
            files = {split: path for (_, split), path in found.items()}
        for split in self.splits:
            if split not in files:
                raise DataError(f"{folder} has no answers for the split {split}")
        return files

    def _said(self, path: Path, split: str) -> list[str]:
        """The replies of a file to the questions of a split. Raises DataError where they are to other ones."""
        asked, rows = self.splits[split], read_rows(path)
        lined_up = not any("question_id" in row for _, row in rows)
        if lined_up and len(rows) != len(asked):
            raise DataError(
                f"{path}: {len(rows)} answers without question_id, but {split} has {len(asked)} questions: the files of one "
                "split have as many lines"
            )
        numbers = [one.id for one in asked] if lined_up else [question_id(row, place) for place, row in rows]
        texts = {one.id: self.samples[one.sample].text for one in asked}
        for (place, row), number in zip(rows, numbers, strict=True):
            shown = next((row[key] for key in ("question", "prompt") if isinstance(row.get(key), str)), None)
            if shown is not None and spelled(texts.get(number, "")) not in spelled(shown):
                raise DataError(f"{place}: an answer to {shown!r}, but {texts[number]!r} was asked: of another split?")
        ids = {place: number for (place, _), number in zip(rows, numbers, strict=True)}
        return list(answers(rows, path, list(texts), key=lambda row, place: ids[place], reply=self.answer_keys))

    def export(self, folder: Path, runs: Mapping[str, Sequence[Any]]) -> list[Path]:
        """Questions that were built, in the published form, for other tools."""
        written = []
        for split, asked in self.splits.items() if self.built else ():
            lines = []
            for one in asked:
                sample = self.samples[one.sample]
                row = {"question_id": one.id, "image": getattr(sample.image, "name", ""), "text": sample.text}
                lines.append(json.dumps(row | {"label": "yes" if one.present else "no"}) + "\n")
            written.append(folder / "questions" / f"coco_pope_{split}.json")
            write_text(written[-1], "".join(lines))
        return written
