"""Objects in a text as the published CHAIR script finds them (Rohrbach et al., EMNLP 2018), with its table of synonyms.

Words are cut as NLTK cuts them and put into the singular; two words that stand together may be one ("train track" is no
train, "baby cub" no person); then every word that the table has is a mention. `strict` keeps what the script's tool for
singulars gets wrong: the singulars bus, minibus and airbus, and the plurals ties, canoes and magpies, are not found, and
minibuses are buses. The script's fork with WordNet's singulars has none of these slips.
"""

from __future__ import annotations

from collections.abc import Mapping

from .chair import Mention, plurals
from .tokens import tokens

_PAIRS = [
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "laptop computer",
    "home plate",
    "train track",
]
"""Two words that are one. "stove top oven", which the script lists beside them, has three: it never finds it."""
_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
_SLIPS: dict[str, str | None] = {
    **dict.fromkeys(("bus", "minibus", "airbus", "ties", "canoes", "magpies")),
    "minibuses": "bus",
    "airbuses": "bus",
}


class ScriptWords:
    """Finds objects in text by the script's rule, as `chair.Vocabulary` does by ours.

    Args:
        table: word -> category, both as the synonyms file has them.
        strict: with the script's slips.
    """

    def __init__(self, table: Mapping[str, str], *, strict: bool = False):
        self.names = frozenset(table.values())
        self._table = dict(table)
        self._pairs = {pair: pair for pair in _PAIRS}
        self._pairs |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
        self._pairs |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
        self._pairs |= {"bow tie": "tie", "toilet seat": "toilet"}
        known = {word for phrase in (*table, *self._pairs) for word in phrase.split(" ")}
        self._singular: dict[str, str | None] = {form: word for word in sorted(known) for form in plurals(word)}
        self._singular |= {word: word for word in known}
        self._singular |= _SLIPS if strict else {}

    def category(self, name: str) -> str | None:
        return self._table.get(name.lower())

    def mentions(self, text: str) -> list[Mention]:
        cut = tokens(text)
        words = [self._singular.get(token.text.lower()) or "" for token in cut]
        found: list[tuple[str, int, int]] = []  # a word, and the first and the last of its tokens
        i = 0
        while i < len(words):
            pair = self._pairs.get(" ".join(words[i : i + 2]))
            size = 1 if pair is None else 2
            found.append((words[i] if pair is None else pair, i, i + size - 1))
            i += size
        seats = {"seat"} if any(word == "toilet" for word, _, _ in found) else set()
        return [
            Mention(self._table[word], cut[first].start, cut[last].end)
            for word, first, last in found
            if word in self._table and word not in seats
        ]
