"""`sightline eval chair`: captions of COCO images, or of the testbed's scenes.

Files, as published: `instances_val2014.json` and, for the published ground truth, `captions_val2014.json`, in the data
folder or its `annotations/`; the pictures there, in `images/` or in `val2014/`. `image_ids.txt`, one id a line, fixes
which images are described; without it those are that replies describe which exist already, else all are, and a limit takes
the first of an order that is random but the same for everybody. Replies: rows of `id` or `image_id` and `caption`, or
the published script's `imgToEval`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ...common.documents import read_text
from ...common.errors import DataError
from ...common.readers import Notes, value
from ...common.statistics import SampledScore
from ...models.samples import Sample
from ..benchmark import Benchmark, DataSource
from . import coco
from .chair import Chair, Vocabulary, Words, chair
from .equal import CaptionNames, Curve
from .scenes import CAPTION_TOKENS, scene_name, scene_vocabulary, scenes

PROMPT = "Please describe this image in detail."
IMAGES = "imgToEval"
LONGER = "longer"


@dataclass
class ChairBenchmark(Benchmark):
    """Captions, and the objects that each image holds."""

    name = "chair"
    new_tokens = 512
    columns: ClassVar = {
        "s": "CHAIR_S",
        "i": "CHAIR_I",
        "equal": "CHAIR_I at equal recall",
        "recall": "recall",
        "precision": "precision",
        "f1": "F1",
        "words": "words",
        "mentions": "objects",
        "n": "n",
    }
    percent = frozenset({"s", "i", "equal", "recall", "precision", "f1"})
    lower = frozenset({"s", "i", "equal"})
    answer_ids = ("id", "image_id")
    options = frozenset({"prompt", "synonyms", "categories", "match"})

    truths: list[Collection[str]] = field(default_factory=list)
    vocabulary: Words = field(default_factory=lambda: Vocabulary([]))

    @classmethod
    def read(cls, source: DataSource) -> ChairBenchmark:
        if source.folder is None:
            return cls.of_scenes(scenes(source), source.prompt or PROMPT)
        return cls._of_coco(source.folder, source)

    @classmethod
    def of_scenes(cls, shown: Sequence[Any], prompt: str) -> ChairBenchmark:
        """Captions of the testbed's scenes."""
        samples = [Sample(scene_name(scene), prompt, scene.image) for scene in shown]
        made = cls(samples, Notes(), [scene.names for scene in shown], scene_vocabulary())
        made.new_tokens = CAPTION_TOKENS
        return made

    @classmethod
    def _of_coco(cls, folder: Path, source: DataSource) -> ChairBenchmark:
        notes = Notes()
        _, words, files, objects = coco.annotated(folder, source)
        people = [path for path in coco.places(folder, "captions_val2014.json", "captions.json") if path.is_file()]
        for image, texts in coco.captions(people[0], files).items() if people else ():
            objects[image] |= {mention.name for text in texts for mention in words.mentions(text)}
        if not people:
            notes.add(
                "no captions_val2014.json or captions.json: objects that only people's captions name count as hallucinated"
            )
        listed = (folder / coco.IMAGE_IDS).is_file() or not source.replies
        chosen = coco.chosen(folder, list(files)) if listed else cls._described(source.replies[0], files)
        chosen = chosen[: source.limit]
        places = source.pictures(coco.picture_folders(folder), (files[image] for image in chosen), notes)
        empty = sum(not objects[image] for image in chosen)
        notes.add("an image holds none of the objects: every mention there is a hallucination", empty)
        samples = [Sample(str(image), source.prompt or PROMPT, places[files[image]]) for image in chosen]
        return cls(samples, notes, [objects[image] for image in chosen], words)

    def score(self, replies: Sequence[str]) -> Chair:
        return chair(replies, self.truths, self.vocabulary)

    def yardstick(self) -> list[Sample]:
        return [replace(sample, id=f"{sample.id} {LONGER}", longer=True) for sample in self.samples]

    def equal(self, replies: Sequence[str], plain: Sequence[str], yardstick: Sequence[str]) -> dict[str, SampledScore]:
        return {"equal": self.score(replies).equal(self.cuts(plain, yardstick))}

    def curve(self, plain: Sequence[str], yardstick: Sequence[str]) -> list[dict[str, Any]]:
        return self.cuts(plain, yardstick).points()

    def cuts(self, plain: Sequence[str], longer: Sequence[str]) -> Curve:
        """Plain captions cut shorter, and what `longer` ones go on with behind their ends."""
        own = self.score(plain)
        if not longer:
            return Curve.of(own.naming, own.objects)
        whole = chair(longer, self.truths, self.vocabulary)
        tails = []
        for number, (said, text) in enumerate(zip(plain, longer, strict=True)):
            # A caption that goes on names first what it named; a batch's rounding may have changed its beginning.
            size = len(own.flags[number]) if text.startswith(said) else len(whole.flags[number])
            tails.append(slice(size, None))
        going_on = CaptionNames(
            [flags[tail] for flags, tail in zip(whole.flags, tails, strict=True)],
            [first[tail] for first, tail in zip(whole.first, tails, strict=True)],
        )
        return Curve.of(own.naming, own.objects, going_on)

    @classmethod
    def rows(cls, path: Path) -> list[tuple[str, dict[str, Any]]]:
        """As everywhere, or as the published script reads captions: an object with a row for each image in `imgToEval`."""
        if path.is_file():
            try:
                whole = json.loads(read_text(path))
            except json.JSONDecodeError:
                whole = None
            if isinstance(whole, dict) and IMAGES in whole:
                found = value(whole, IMAGES, str(path), dict)
                return [(f"{path}, {IMAGES} {key}", row) for key, row in found.items()]
        return super().rows(path)

    @classmethod
    def _described(cls, path: Path, known: Collection[int]) -> list[int]:
        """The images that a file of replies describes. Raises DataError where one is unknown."""
        named = [(place, cls.answered(row, place)) for place, row in cls.rows(path)]
        for place, image in named:
            if not image.isdecimal() or int(image) not in known:
                raise DataError(f"{place}: image {image!r} is not among the instances' images")
        return [int(image) for _, image in named]

    def truth(self, number: int) -> dict[str, Any]:
        return {"objects": sorted(self.truths[number])}

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        mentions = [
            {"name": one.name, "start": one.start, "end": one.end, "hallucinated": one.name not in self.truths[number]}
            for one in self.vocabulary.mentions(reply)
        ]
        return {"reply": reply, "words": len(reply.split()), "mentions": mentions}
