"""AMBER: captions and yes/no questions without a judge (arXiv 2311.07397), scored by its release's rule.

Files, as published: the repository's `data/` in the data folder (`query/query_all.json`, `annotations.json`,
`relation.json`, `safe_words.txt`), the pictures in `image/`.

Captions. Of their nouns (`nouns.py`; the extra `amber`), those count that `relation.json` knows, which lists each annotated
object's kin. A noun that is neither safe for all images, nor true for this one, nor kin of what is true, is a
hallucination: CHAIR is their share of all such nouns, Hal the share of captions with one. Cover is the share of true
objects that are named, Cog the share of the image's *listed* hallucinations (what people tend to imagine there) that are.
A noun stands for the first object whose kin has it, else for the object of that name, as in the release: "man" may cover
*person*, and then never *man*. The release also takes a noun for true, or for a listed hallucination, where the vectors of
spaCy's large model find it similar beyond 0.8: that happens here where `en_core_web_lg` is installed. Without it a
near-synonym outside the tables counts as hallucinated, and a note says so.

Questions. The release compares with the bare words Yes and No, so that "Yes." is wrong; `exact` is that accuracy (in any
case), the others read the reply's first sentence, or with `match` strict the bare word, too. Precision, recall and F1 are
of the answer *no*; F1 is made of rounded parts with a small constant below, as in the release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...common.documents import read_json, read_text
from ...common.errors import DataError, shown
from ...common.readers import Notes, expect, label, records, text, texts, unique, value
from ...common.statistics import DRAWS, Floats, Ratio, SampledScore
from ...models.samples import Sample
from ..benchmark import STRICT, Benchmark, DataSource
from .nouns import Similar, Tagger, tagger
from .tokens import Token
from .yesno import YesNo, YesNoReply, plainly, says, tally

GENERATIVE, DISCRIMINATIVE = "generative", "discriminative"
DIMENSIONS = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}
PUBLISHED = {GENERATIVE: 1004, DISCRIMINATIVE: 14216}
BELOW = {"existence": 1e-3}
"""What the release adds to the denominator of F1, by dimension; 1e-4 elsewhere."""


@dataclass(frozen=True)
class Tables:
    """The words that AMBER knows: kin of each object, and words that are safe in every image."""

    kin: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(word for name, others in self.kin.items() for word in (name, *others))

    def listed(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """(word, object) in the release's order: the kin of all objects, then their names."""
        return [(word, name) for name in names for word in self.kin.get(name, ())] + [(name, name) for name in names]


@dataclass(frozen=True)
class Caption:
    """What one caption amounts to: `flags` for each noun (noun, hallucinated), true objects and imagined ones named."""

    flags: tuple[tuple[Token, bool], ...]
    covered: frozenset[str]
    imagined: frozenset[str]


def judge(
    nouns: Sequence[Token],
    truth: Sequence[str],
    imagined: Sequence[str],
    tables: Tables,
    similar: Similar | None = None,
) -> Caption:
    """Read the nouns of one caption.

    Args:
        nouns: in the singular; those that the tables do not know do not count.
        truth: the objects in the image.
        imagined: the hallucinations that the benchmark lists for the image.
        tables: the words.
        similar: whether two words mean nearly the same; None: never.
    """
    same = similar or (lambda noun, word: False)
    there, listed = tables.listed(truth), tables.listed(imagined)
    flags, covered, named = [], set(), set()
    for noun in nouns:
        said = noun.text
        if said not in tables.known:
            continue
        true: str | None = None
        if said not in tables.safe:
            true = next((name for word, name in there if word == said), None)
            if true is None:
                named.update([name for word, name in listed if word == said][:1])
                named.update([name for word, name in listed if same(said, word)][:1])
                true = next((name for word, name in there if same(said, word)), None)
        if true is not None:
            covered.add(true)
        flags.append((noun, true is None and said not in tables.safe))
    return Caption(tuple(flags), frozenset(covered), frozenset(named))


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


@dataclass(frozen=True, eq=False)
class F1:
    """F1 as the release makes it: of precision and recall in percent with one decimal, `below` in the denominator."""

    precision: Ratio
    recall: Ratio
    below: float

    @property
    def value(self) -> float:
        return float(self._of(np.asarray(self.precision.value), np.asarray(self.recall.value)))

    @property
    def images(self) -> int:
        return self.precision.images

    def resampled(self, draws: int = DRAWS, seed: int = 0, empty: float = 0.0) -> Floats:
        return self._of(self.precision.resampled(draws, seed, empty), self.recall.resampled(draws, seed, empty))

    def _of(self, precision: Floats, recall: Floats) -> Floats:
        p, r = np.round(precision, 3), np.round(recall, 3)
        return 2 * p * r / (p + r + self.below)


@dataclass(frozen=True, eq=False)
class Questions:
    """The scores of yes/no questions; `no` is the positive answer, and F1 is the release's."""

    counts: YesNo
    below: float

    @property
    def ratios(self) -> dict[str, SampledScore]:
        ratios = self.counts.ratios
        return ratios | {"f1": F1(ratios["precision"], ratios["recall"], self.below)}

    @property
    def values(self) -> dict[str, object]:
        return self.counts.values | {"f1": self.ratios["f1"].value}

    @property
    def outcomes(self) -> list[bool]:
        return self.counts.outcomes


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
    options = frozenset({"match"})

    facts: list[dict[str, Any]] = field(default_factory=list)
    tables: Tables = field(default_factory=lambda: Tables({}, frozenset()))
    nouns: Callable[[str], Sequence[Token]] = lambda reply: ()
    similar: Similar | None = None
    rule: Callable[[str], YesNoReply] = plainly

    @classmethod
    def read(cls, source: DataSource) -> Amber:
        folder, notes = source.need("AMBER files"), Notes()
        data = folder / "data"
        kin = read_json(data / "relation.json", dict)
        kin = {name: texts(kin, name, str(data / "relation.json")) for name in kin}
        tables = Tables(kin, frozenset(read_text(data / "safe_words.txt").split()))
        annotated = _annotations(data / "annotations.json", tables)
        path = data / "query" / "query_all.json"
        rows = records(read_json(path, list), str(path), "entry")
        unique(((place, value(row, "id", place, int)) for place, row in rows), "id")
        for place, row in rows:
            if row["id"] not in annotated:
                raise DataError(f"{place}: id {row['id']} has no annotation: files of two versions?")
        kinds = [GENERATIVE if annotated[row["id"]]["type"] == GENERATIVE else DISCRIMINATIVE for _, row in rows]
        for kind, number in PUBLISHED.items():
            expect(kinds.count(kind), number, f"{kind} queries", notes)
        rows = [
            pair
            for kind in PUBLISHED
            for pair in [p for p, k in zip(rows, kinds, strict=True) if k == kind][: source.limit]
        ]
        names = [text(row, "image", place) for place, row in rows]
        pictures = source.pictures([folder / "image", folder / "images", folder], names, notes)
        samples = [Sample(str(row["id"]), text(row, "query", place), pictures[row["image"]]) for place, row in rows]
        made = cls(samples, notes, [annotated[row["id"]] for _, row in rows], tables)
        if GENERATIVE in kinds:
            made.tag(tagger())
        if source.match == STRICT:
            made.rule = bare
        return made

    def tag(self, by: Tagger) -> None:
        """Find nouns by a tagger, and say by which."""
        self.nouns, self.similar = by.nouns, by.similar
        self.notes.add(f"nouns are tagged by spaCy's {by.name}; the release tags them with NLTK")
        if self.similar is None:
            self.notes.add(
                "near-synonyms outside AMBER's tables count as hallucinated: the release's similarity needs en_core_web_lg"
            )

    def score(self, replies: Sequence[str]) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        told = [n for n, fact in enumerate(self.facts) if fact["type"] == GENERATIVE]
        if told:
            scores[GENERATIVE] = self._captions(told, replies)
        asked = [n for n, fact in enumerate(self.facts) if fact["type"] != GENERATIVE]
        pictures = {str(image): n for n, image in enumerate(dict.fromkeys(self.samples[n].image for n in asked))}
        splits = {DISCRIMINATIVE: asked} if asked else {}
        for n in asked:
            for dimension in DIMENSIONS[self.facts[n]["type"]]:
                splits.setdefault(dimension, []).append(n)
        for split, numbers in splits.items():
            said = [replies[n] for n in numbers]
            truths = [self.facts[n]["truth"] for n in numbers]
            where = [pictures[str(self.samples[n].image)] for n in numbers]
            counts = tally(truths, [self.rule(reply) for reply in said], said, where, len(pictures), positive="no")
            scores[split] = Questions(counts, BELOW.get(split, 1e-4))
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
        return judge(self.nouns(reply), fact["truth"], fact["hallu"], self.tables, self.similar)

    def truth(self, number: int) -> dict[str, Any]:
        return self.facts[number]

    def detail(self, number: int, reply: Any) -> dict[str, Any]:
        if self.facts[number]["type"] != GENERATIVE:
            said = self.rule(reply).yes
            return {"reply": reply, "yes": said, "right": said == self.facts[number]["truth"]}
        read = self._read(number, reply)
        mentions = [
            {"name": noun.text, "start": noun.start, "end": noun.end, "hallucinated": bad} for noun, bad in read.flags
        ]
        return {"reply": reply, "words": len(reply.split()), "mentions": mentions, "covered": sorted(read.covered)}


def bare(reply: str) -> YesNoReply:
    """Read a reply by the release's rule: the bare word Yes or No."""
    return YesNoReply({"Yes": True, "No": False}.get(reply), says(reply))


def _annotations(path: Path, tables: Tables) -> dict[int, dict[str, Any]]:
    """Annotations by id: `type`, and `truth` and `hallu` (lists of objects), or `truth` (whether yes is right)."""
    rows = records(read_json(path, list), str(path), "entry")
    unique(((place, value(row, "id", place, int)) for place, row in rows), "id")
    found: dict[int, dict[str, Any]] = {}
    for place, row in rows:
        kind = text(row, "type", place)
        if kind == GENERATIVE:
            lists = {key: texts(row, key, place) for key in ("truth", "hallu")}
            unknown = [name for names in lists.values() for name in names if name not in tables.kin]
            if unknown:
                raise DataError(f"{place}: {shown(unknown[0])} is not in relation.json: files of two versions?")
            found[row["id"]] = {"type": kind, **lists}
        elif kind in DIMENSIONS:
            found[row["id"]] = {"type": kind, "truth": label(row.get("truth"), place)}
        else:
            raise DataError(f"{place}: unknown type {shown(kind)}; it takes {GENERATIVE}, {', '.join(DIMENSIONS)}")
    return found
