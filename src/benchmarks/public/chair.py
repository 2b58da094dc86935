"""CHAIR: how many of the objects that a caption names are not in the image (Rohrbach et al., EMNLP 2018).

The published rule, as its script applies it:

* C_S is the share of captions that name at least one object which is not there;
* C_I is hallucinated mentions over all mentions. *Every* mention counts: an object named twice in one caption counts
  twice, as in the original script (no de-duplication);
* negation is not understood: "there are no dogs" mentions a dog.

Captions get a better CHAIR by saying less, so the scores always come together with recall, precision and F1, caption
length and mentions per caption. Recall is distinct true objects named over true objects, precision the same over
distinct objects named; a caption counts each object once there, unlike in C_I.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...common.statistics import Ratio
from .equal import CaptionNames, Curve, EqualRecall

_IRREGULAR = {
    "person": "people",
    "child": "children",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "ox": "oxen",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
}
_WORD = re.compile(r"\w+")
_GAP = re.compile(r"[\s-]+")
LAST_POSITION = 8
"""Mentions from this position on are pooled in the score by position."""


@dataclass(frozen=True)
class Mention:
    """An object named in a text: its canonical name and the characters `text[start:end]`."""

    name: str
    start: int
    end: int


class Words(Protocol):
    """A way to find objects in text."""

    names: frozenset[str]
    """The canonical names of the objects."""

    def category(self, name: str) -> str | None:
        """The object that an annotated category is; None: an unknown one."""
        ...

    def mentions(self, text: str) -> list[Mention]:
        """Every mention, in the order of the text."""
        ...


class Vocabulary:
    """Finds objects in text: canonical names, synonyms, several words, plurals; the longest match wins.

    Args:
        names: canonical object names.
        synonyms: surface form -> canonical name.
        ignore: phrases that contain an object's name and mean none ("bear" in "teddy bear", where no toy is listed).
        unless: surface form -> object; the form names nothing in a text that names that object ("seat" and a toilet).
    """

    def __init__(
        self,
        names: Iterable[str],
        synonyms: Mapping[str, str] | None = None,
        ignore: Iterable[str] = (),
        unless: Mapping[str, str] | None = None,
    ):
        written = {name.lower(): name for name in names}
        written |= {surface.lower(): name for surface, name in (synonyms or {}).items()}
        self.names = frozenset(written.values())
        # What is written in the lists wins over a plural made here: "glasses" may be an object of its own.
        surfaces: dict[str, str | None] = {}
        surfaces.update({form: name for surface, name in written.items() for form in plurals(surface)})
        surfaces.update(written)
        surfaces.update({form: None for phrase in ignore for form in (phrase.lower(), *plurals(phrase.lower()))})
        self._surfaces = {_words(surface): name for surface, name in surfaces.items()}
        self._longest = max(map(len, self._surfaces), default=0)
        self._unless = {
            _words(form): name
            for word, name in (unless or {}).items()
            for form in (word.lower(), *plurals(word.lower()))
        }

    def category(self, name: str) -> str | None:
        return next((mention.name for mention in self.mentions(name)), None)

    def mentions(self, text: str) -> list[Mention]:
        """Every mention, in the order of the text; matches never overlap, so "hot dog" is not also a dog."""
        found: list[tuple[Mention, str | None]] = []
        words = list(_WORD.finditer(text))
        i = 0
        while i < len(words):
            reach = 1  # words from i on that only spaces and hyphens stand between
            while (
                reach < self._longest
                and i + reach < len(words)
                and _joined(text, words[i + reach - 1], words[i + reach])
            ):
                reach += 1
            parts = tuple(word.group().lower() for word in words[i : i + reach])
            size = next((size for size in range(reach, 0, -1) if parts[:size] in self._surfaces), 0)
            name = self._surfaces[parts[:size]] if size else None
            if name is not None:
                mention = Mention(name, words[i].start(), words[i + size - 1].end())
                found.append((mention, self._unless.get(parts[:size])))
            i += max(size, 1)
        named = {mention.name for mention, _ in found}
        return [mention for mention, rival in found if rival not in named]


@dataclass(frozen=True, eq=False)
class Chair:
    """Counts per caption, all `[captions]`, and for each mention of a caption in turn whether it is hallucinated.

    `first`: whether it is the first of an object that is there.
    """

    flags: list[tuple[bool, ...]]
    recalled: list[int]
    named: list[int]
    objects: list[int]
    words: list[int]
    first: list[tuple[bool, ...]] = field(default_factory=list)

    @property
    def ratios(self) -> dict[str, Ratio]:
        """The scores as ratios of sums over captions, for intervals."""
        mentions = [len(flags) for flags in self.flags]
        hallucinated = [sum(flags) for flags in self.flags]
        return {
            "s": Ratio.of([count > 0 for count in hallucinated], 1),
            "i": Ratio.of(hallucinated, mentions),
            "recall": Ratio.of(self.recalled, self.objects),
            "precision": Ratio.of(self.recalled, self.named),
            "f1": Ratio.of(2 * np.asarray(self.recalled), np.asarray(self.named) + np.asarray(self.objects)),
            "words": Ratio.of(self.words, 1),
            "mentions": Ratio.of(mentions, 1),
        }

    @property
    def values(self) -> dict[str, object]:
        """The scores as plain numbers.

        Rates are fractions, `words` and `mentions` are means per caption, `silent` counts captions that name no object,
        `empty` those without a word; both stay in every mean.
        """
        scores: dict[str, object] = {key: ratio.value for key, ratio in self.ratios.items()}
        return scores | {
            "n": len(self.flags),
            "silent": sum(not flags for flags in self.flags),
            "empty": sum(not words for words in self.words),
            "by_position": self.by_position(),
        }

    @property
    def naming(self) -> CaptionNames:
        """What the captions name, in order."""
        return CaptionNames(self.flags, self.first)

    def equal(self, curve: Curve, *, clamped: bool = False) -> EqualRecall:
        """CHAIR_I against cut plain captions of the same recall; `clamped`: beyond those, against the longest."""
        hallucinated, mentions, recalled = (
            np.asarray(count, dtype=np.float64)
            for count in ([sum(flags) for flags in self.flags], [len(flags) for flags in self.flags], self.recalled)
        )
        return EqualRecall(curve, hallucinated, mentions, recalled, clamped)

    def by_position(self) -> list[dict[str, float]]:
        """C_I of the first, second, ... mention of a caption: `position` (the last one pools the rest), `i`, `n`."""
        rows = []
        for position in range(1, LAST_POSITION + 1):
            end = position if position < LAST_POSITION else None
            flags = np.array([flag for row in self.flags for flag in row[position - 1 : end]], dtype=bool)
            if flags.size:
                rows.append({"position": position, "i": float(flags.mean()), "n": int(flags.size)})
        return rows


def chair(captions: Sequence[str], truths: Sequence[Collection[str]], vocabulary: Words) -> Chair:
    """Score captions against the canonical names of the objects that are in each image.

    Raises:
        ValueError: captions and truths differ in number.
    """
    result = Chair([], [], [], [], [])
    for caption, truth in zip(captions, truths, strict=True):
        mentioned = [mention.name for mention in vocabulary.mentions(caption)]
        result.flags.append(tuple(name not in truth for name in mentioned))
        named = [name if name in truth else None for name in mentioned]
        result.first.append(tuple(name is not None and name not in named[:n] for n, name in enumerate(named)))
        result.recalled.append(len(set(mentioned) & set(truth)))
        result.named.append(len(set(mentioned)))
        result.objects.append(len(set(truth)))
        result.words.append(len(caption.split()))
    return result


def plurals(phrase: str) -> set[str]:
    """Plural forms of a phrase, inflected at its last word ("dining table" -> "dining tables")."""
    head, _, word = phrase.rpartition(" ")
    forms = {word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")}
    if word in _IRREGULAR:
        forms.add(_IRREGULAR[word])
    if word.endswith("man"):
        forms.add(word[:-2] + "en")
    if re.search(r"[^aeiou]y$", word):
        forms.add(word[:-1] + "ies")
    if word.endswith("o"):
        forms.add(word + "es")
    if match := re.search(r"fe?$", word):
        forms.add(word[: match.start()] + "ves")
    return {f"{head} {form}".strip() for form in forms}


def _words(surface: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(surface))


def _joined(text: str, left: re.Match[str], right: re.Match[str]) -> bool:
    return _GAP.fullmatch(text, left.end(), right.start()) is not None
