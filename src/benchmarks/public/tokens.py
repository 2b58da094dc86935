"""Words of a text as NLTK's word tokenizer cuts it, which the published scripts of CHAIR and AMBER read captions with.

A hyphen, a slash or an apostrophe inside a word stays in it ("wine-glass", "cat/dog", "o'clock"); a clitic at its end is a
word of its own ("dog's" is dog and 's). NLTK's contractions ("gonna") are left whole, and a full stop ends a sentence
wherever a space follows.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_ALONE = r";@#$%&?!*\[\](){}<>\"“”«»‘’„`‒-―"
_CLOSING = r"[\])}>\"'»”’]*(?:\s|$)"
_PIECE = re.compile(
    rf"\.{{2,}}|--|[{_ALONE}]"
    rf"|(?:[^\s{_ALONE}.,:-]|-(?!-)|\.(?!\.|{_CLOSING})|[,:](?=\d))+"  # a word: no stop at its end, no comma
    r"|[.,:-]"
)
_CLITIC = re.compile(r"(?<=[^'])(?:'[smd]?|'ll|'re|'ve|n't)$", re.IGNORECASE)
_QUOTE = re.compile(r"'(?!(?:re|ve|ll|[mtsdn])\b)(?=\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Token:
    """A word or a mark, and the characters `text[start:end]` that it is."""

    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """The tokens of a text, in its order."""
    found = []
    for piece in _PIECE.finditer(text):
        word, start = piece.group(), piece.start()
        cuts = [0, len(word)]
        if quote := _QUOTE.match(word):
            cuts.insert(1, quote.end())
        if clitic := _CLITIC.search(word, cuts[-2]):
            cuts.insert(-1, clitic.start())
        found += [
            Token(word[low:high], start + low, start + high) for low, high in itertools.pairwise(cuts) if low < high
        ]
    return found
