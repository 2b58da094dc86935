"""AMBER: captions and yes/no questions without a judge (arXiv 2311.07397), scored by its release's rule.

Files, as published: the repository's `data/` in the data folder (`query/query_all.json`, `annotations.json`,
`relation.json`, `safe_words.txt`), the pictures in `image/`.

Captions. Nouns are looked up in `relation.json`, which lists each annotated object's kin. A noun that is neither safe for
all images, nor true for this one, nor kin of what is true, is a hallucination: CHAIR is their share of all such nouns, Hal
the share of captions with one. Cover is the share of true objects that are named, Cog the share of the image's *listed*
hallucinations (what people tend to imagine there) that are. The release also takes a noun for true, or for a listed
hallucination, where spaCy's large vectors find it similar beyond 0.8: `similar` does that here. Without it, as the command
runs, a near-synonym outside the tables counts as hallucinated, and a note says so. The release tags nouns with NLTK; here
any word, singular or plural, that the tables know is one.

Questions. The release compares with the bare words Yes and No, so that "Yes." is wrong; `exact` is that accuracy (in any
case), the others read the reply's first sentence. Precision, recall and F1 are of the answer *no*.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...common.readers import DataError, Notes, expect, images, label, read_json, read_text, text, unique, value
from ...common.statistics import Floats, Ratio
from ...models.samples import Sample
from ..runner.suite import Benchmark, Source
from .chair import plurals
from .yesno import Answer, says, tally

GENERATIVE = "generative"
DIMENSIONS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute",
    "discriminative-attribute-number": "attribute",
    "discriminative-attribute-action": "attribute",
    "discriminative-relation": "relation",
    "relation": "relation",
}
PUBLISHED = {GENERATIVE: 1004, "discriminative": 14216}
Similar = Callable[[str, str], bool]


@dataclass(frozen=True)
class Tables:
    """The words that AMBER knows: kin of each object, and words that are safe in every image."""

    kin: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @cached_property
    def singular(self) -> dict[str, str]:
        """Every known word, and every plural of one -> the word."""
        known = {word for name, others in self.kin.items() for word in (name, *others)}
        return {form: word for word in sorted(known) for form in plurals(word)} | {word: word for word in known}

    def nouns(self, caption: str) -> list[str]:
        """The words of a caption that the tables know, in the singular."""
        return [self.singular[one.group().lower()] for one in self.found(caption)]

    def found(self, caption: str) -> list[re.Match[str]]:
        """Where these words stand."""
        return [one for one in re.finditer(r"[A-Za-z]+", caption) if one.group().lower() in self.singular]

    def group(self, name: str) -> set[str]:
        return {name, *self.kin.get(name, ())}


@dataclass(frozen=True)
class Caption:
    """What one caption amounts to: `flags` for each noun (word, hallucinated), true objects and imagined ones named."""

    flags: tuple[tuple[str, bool], ...]
    covered: frozenset[str]
    imagined: frozenset[str]


def judge(
    caption: str, truth: Sequence[str], imagined: Sequence[str], tables: Tables, similar: Similar | None = None
) -> Caption:
    """Read one caption.

    Args:
        caption: the reply.
        truth: the objects in the image. A word belongs to the first object whose kin it is.
        imagined: the hallucinations that the benchmark lists for the image.
        tables: the words.
        similar: whether two words mean nearly the same; None: never.
    """
    same = similar or (lambda noun, word: False)
    flags, covered, listed = [], set(), set()
    for noun in tables.nouns(caption):
        if noun in tables.safe:
            flags.append((noun, False))
            continue
        true = next((name for name in truth if noun in tables.group(name)), None)
        if true is None:
            kin = (
                name
                for name in imagined
                if noun in tables.group(name) or any(same(noun, w) for w in tables.group(name))
            )
            listed.update(list(kin)[:1])
            true = next((name for name in truth if any(same(noun, word) for word in tables.group(name))), None)
        if true is not None:
            covered.add(true)
        flags.append((noun, true is None))
    return Caption(tuple(flags), frozenset(covered), frozenset(listed))


@dataclass(frozen=True, eq=False)
class Captions:
    """Counts per caption `[captions]`."""

    hallucinated: Floats
    nouns: Floats
    covered: Floats
    objects: Floats
    imagined: Floats
    listed: Floats
    words: Floats

    @property
    def ratios(self) -> dict[str, Ratio]:
        return {
            "chair": Ratio.of(self.hallucinated, self.nouns),
            "cover": Ratio.of(self.covered, self.objects),
            "hal": Ratio.of(self.hallucinated > 0, 1),
            "cog": Ratio.of(self.imagined, self.listed),
            "words": Ratio.of(self.words, 1),
        }

    @property
    def values(self) -> dict[str, object]:
        """Fractions; `words` is a mean, `n` the number of captions, `silent` those that name nothing known."""
        scores: dict[str, object] = {key: ratio.value for key, ratio in self.ratios.items()}
        return scores | {"n": len(self.nouns), "silent": int((self.nouns == 0).sum())}


@dataclass
class Amber(Benchmark):
    """Samples are the published queries in their order; `facts[number]` is the annotation of each."""

    name = "amber"
    new_tokens = 512
    columns: ClassVar = {
        "chair": "CHAIR",
        "cover": "Cover",
        "hal": "Hal",
        "cog": "Cog",
        "words": "words",
        "accuracy": "accuracy",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "exact": "exact match",
        "unparsed": "unparsed",
        "n": "n",
    }
    percent = frozenset(columns) - {"words", "unparsed", "n"}
    lower = frozenset({"chair", "hal", "cog"})

    facts: list[dict[str, Any]] = field(default_factory=list)
    tables: Tables = field(default_factory=lambda: Tables({}, frozenset()))
    similar: Similar | None = None

    @classmethod
    def read(cls, source: Source) -> Amber:
        folder, notes = source.need("AMBER files"), Notes()
        data = folder / "data"
        tables = Tables(read_json(data / "relation.json", dict), frozenset(read_text(data / "safe_words.txt").split()))
        notes.add(
            "near-synonyms outside AMBER's tables count as hallucinated: the release's spaCy similarity is not used"
        )
        annotated = _annotations(data / "annotations.json", tables)
        path = data / "query" / "query_all.json"
        rows = [(f"{path}, entry {n}", row) for n, row in enumerate(read_json(path, list))]
        unique(((place, value(row, "id", place, int)) for place, row in rows), "id")
        for place, row in rows:
            if row["id"] not in annotated:
                raise DataError(f"{place}: id {row['id']} has no annotation: files of two versions?")
        kinds = [GENERATIVE if annotated[row["id"]]["type"] == GENERATIVE else "discriminative" for _, row in rows]
        for kind, number in PUBLISHED.items():
            expect(kinds.count(kind), number, f"{kind} queries", notes)
        rows = [
            pair
            for kind in PUBLISHED
            for pair in [p for p, k in zip(rows, kinds, strict=True) if k == kind][: source.limit]
        ]
        pictures = images(
            [folder / "image", folder / "images", folder], (text(row, "image", place) for place, row in rows)
        )
        samples = [Sample(str(row["id"]), text(row, "query", place), pictures[row["image"]]) for place, row in rows]
        return cls(samples, notes, [annotated[row["id"]] for _, row in rows], tables)

    def score(self, replies: Sequence[str]) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        told = [n for n, fact in enumerate(self.facts) if fact["type"] == GENERATIVE]
        if told:
            scores[GENERATIVE] = self._captions(told, replies)
        asked = [n for n, fact in enumerate(self.facts) if fact["type"] != GENERATIVE]
        pictures = {str(image): n for n, image in enumerate(dict.fromkeys(self.samples[n].image for n in asked))}
        splits = {"discriminative": asked} if asked else {}
        for n in asked:
            splits.setdefault(DIMENSIONS[self.facts[n]["type"]], []).append(n)
        for split, numbers in splits.items():
            answers = [_answer(replies[n]) for n in numbers]
            truths, where = (
                [self.facts[n]["truth"] for n in numbers],
                [pictures[str(self.samples[n].image)] for n in numbers],
            )
            said = [replies[n] for n in numbers]
            scores[split] = tally(truths, answers, said, where, len(pictures), positive="no")
        return scores

    def _captions(self, numbers: Sequence[int], replies: Sequence[str]) -> Captions:
        read = [self._read(n, replies[n]) for n in numbers]
        counts = [
            [sum(bad for _, bad in one.flags) for one in read],
            [len(one.flags) for one in read],
            [len(one.covered) for one in read],
            [len(self.facts[n]["truth"]) for n in numbers],
            [len(one.imagined) for one in read],
            [len(self.facts[n]["hallu"]) for n in numbers],
            [len(replies[n].split()) for n in numbers],
        ]
        return Captions(*(np.asarray(count, dtype=np.float64) for count in counts))

    def _read(self, number: int, reply: str) -> Caption:
        fact = self.facts[number]
        return judge(reply, fact["truth"], fact["hallu"], self.tables, self.similar)

    def truth(self, number: int) -> dict[str, Any]:
        return self.facts[number]

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        if self.facts[number]["type"] != GENERATIVE:
            return {"reply": reply, "yes": says(reply), "right": says(reply) == self.facts[number]["truth"]}
        read = self._read(number, reply)
        mentions = [
            {"name": word, "start": noun.start(), "end": noun.end(), "hallucinated": bad}
            for noun, (word, bad) in zip(self.tables.found(reply), read.flags, strict=True)
        ]
        return {"reply": reply, "words": len(reply.split()), "mentions": mentions, "covered": sorted(read.covered)}


def _answer(reply: str) -> Answer:
    """A reply that says neither is wrong, unlike in POPE."""
    return Answer(says(reply), says(reply))


def _annotations(path: Path, tables: Tables) -> dict[int, dict[str, Any]]:
    """Annotations by id: `type`, and `truth` and `hallu` (lists of objects), or `truth` (whether yes is right)."""
    rows = [(f"{path}, entry {n}", row) for n, row in enumerate(read_json(path, list))]
    unique(((place, value(row, "id", place, int)) for place, row in rows), "id")
    found: dict[int, dict[str, Any]] = {}
    for place, row in rows:
        kind = text(row, "type", place)
        if kind == GENERATIVE:
            lists = {key: value(row, key, place, list) for key in ("truth", "hallu")}
            unknown = [name for names in lists.values() for name in names if name not in tables.kin]
            if unknown:
                raise DataError(f"{place}: {unknown[0]!r} is not in relation.json: files of two versions?")
            found[row["id"]] = {"type": kind, **lists}
        elif kind in DIMENSIONS:
            found[row["id"]] = {"type": kind, "truth": label(row.get("truth"), place)}
        else:
            raise DataError(f"{place}: unknown type {kind!r}; it takes {GENERATIVE}, {', '.join(DIMENSIONS)}")
    return found
