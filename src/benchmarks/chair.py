"""CHAIR: how many of the objects that a caption names are not in the image (Rohrbach et al., EMNLP 2018).

The published rule, as its script applies it:

* C_S is the share of captions that name at least one object which is not there;
* C_I is hallucinated mentions over all mentions. *Every* mention counts: an object named twice in one caption counts
  twice, as in the original script (no de-duplication);
* negation is not understood: "there are no dogs" mentions a dog.

Captions get a better CHAIR by saying less, so the scores always come together with recall (distinct true objects
named over true objects), caption length and mentions per caption.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .stats import Ratio

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
LAST_POSITION = 8
"""Mentions from this position on are pooled in the score by position."""


@dataclass(frozen=True)
class Mention:
    """An object named in a text: its canonical name and the characters `text[start:end]`."""

    name: str
    start: int
    end: int


class Vocabulary:
    """Finds objects in text: canonical names, synonyms, several words, plurals; the longest match wins.

    Args:
        names: canonical object names.
        synonyms: surface form -> canonical name.
        ignore: phrases that contain an object's name and mean none ("bear" in "teddy bear", where no toy is listed).
    """

    def __init__(self, names: Iterable[str], synonyms: Mapping[str, str] | None = None, ignore: Iterable[str] = ()):
        written = {name.lower(): name for name in names}
        written |= {surface.lower(): name for surface, name in (synonyms or {}).items()}
        self.names = frozenset(written.values())
        # What is written in the lists wins over a plural made here: "glasses" may be an object of its own.
        surfaces: dict[str, str | None] = {}
        surfaces.update({form: name for surface, name in written.items() for form in plurals(surface)})
        surfaces.update(written)
        surfaces.update({form: None for phrase in ignore for form in (phrase.lower(), *plurals(phrase.lower()))})
        self._surfaces = {" ".join(_parts(surface)): name for surface, name in surfaces.items()}
        longest_first = sorted(self._surfaces, key=lambda surface: (-len(surface), surface))
        alternatives = "|".join(r"[\s-]+".join(map(re.escape, surface.split())) for surface in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)" if alternatives else r"(?!)", re.IGNORECASE)

    def mentions(self, text: str) -> list[Mention]:
        """Every mention, in the order of the text; matches never overlap, so "hot dog" is not also a dog."""
        found = []
        for match in self._pattern.finditer(text):
            name = self._surfaces[" ".join(_parts(match.group().lower()))]
            if name is not None:
                found.append(Mention(name, match.start(), match.end()))
        return found


@dataclass(frozen=True, eq=False)
class Chair:
    """Counts per caption, all `[captions]`, and for each caption whether each mention in turn is hallucinated."""

    flags: list[tuple[bool, ...]]
    recalled: list[int]
    objects: list[int]
    words: list[int]

    @property
    def ratios(self) -> dict[str, Ratio]:
        """The scores as ratios of sums over captions, for intervals."""
        mentions = [len(flags) for flags in self.flags]
        hallucinated = [sum(flags) for flags in self.flags]
        return {
            "s": Ratio.of([count > 0 for count in hallucinated], 1),
            "i": Ratio.of(hallucinated, mentions),
            "recall": Ratio.of(self.recalled, self.objects),
            "words": Ratio.of(self.words, 1),
            "mentions": Ratio.of(mentions, 1),
        }

    @property
    def values(self) -> dict[str, object]:
        """The scores as plain numbers. Rates are fractions, `words` and `mentions` are means per caption, `silent`
        counts captions that name no object, `empty` those without a word; both stay in every mean."""
        scores: dict[str, object] = {key: ratio.value for key, ratio in self.ratios.items()}
        return scores | {
            "n": len(self.flags),
            "silent": sum(not flags for flags in self.flags),
            "empty": sum(not words for words in self.words),
            "by_position": self.by_position(),
        }

    def by_position(self) -> list[dict[str, float]]:
        """C_I of the first, second, ... mention of a caption: `position` (the last one pools the rest), `i`, `n`."""
        rows = []
        for position in range(1, LAST_POSITION + 1):
            end = position if position < LAST_POSITION else None
            flags = np.array([flag for row in self.flags for flag in row[position - 1 : end]], dtype=bool)
            if flags.size:
                rows.append({"position": position, "i": float(flags.mean()), "n": int(flags.size)})
        return rows


def chair(captions: Sequence[str], truths: Sequence[Collection[str]], vocabulary: Vocabulary) -> Chair:
    """Score captions against the canonical names of the objects that are in each image.

    Raises:
        ValueError: captions and truths differ in number.
    """
    result = Chair([], [], [], [])
    for caption, truth in zip(captions, truths, strict=True):
        mentioned = [mention.name for mention in vocabulary.mentions(caption)]
        result.flags.append(tuple(name not in truth for name in mentioned))
        result.recalled.append(len(set(mentioned) & set(truth)))
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


def _parts(surface: str) -> list[str]:
    return re.split(r"[\s-]+", surface.strip())
