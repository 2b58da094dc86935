"""Which tokens of an answer name a thing in the picture."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...benchmarks.public import coco
from ...benchmarks.public.chair import Vocabulary, Words
from ...common.chat import text_tokenizer
from ...models.samples import Example

LEGIBLE = 0.75  # share of a written word that an answer must hold in one piece to name it


def vocabulary(examples: Sequence[Example]) -> Words:
    """The words for the objects of the examples, with synonyms where they are the testbed's or COCO's."""
    from ... import testbed

    names = {region.label for example in examples for region in example.objects}
    if names <= set(testbed.CATEGORIES):
        return Vocabulary(testbed.CATEGORIES, testbed.SYNONYMS)
    return coco.vocabulary() if names <= set(coco.categories()) else Vocabulary(names)


@dataclass(frozen=True)
class Naming:
    """A thing that an answer names: its label, the answer's tokens that do, and how much of the label they say."""

    label: str
    tokens: range
    share: float = 1.0


def named_objects(text: str, spans: Sequence[tuple[int, int]], labels: set[str], words: Words) -> list[Naming]:
    """The first mention of each label. `spans` are the characters of each token."""
    found: dict[str, Naming] = {}
    for mention in words.mentions(text):
        if mention.name in labels and mention.name not in found:
            found[mention.name] = Naming(mention.name, tokens_of(spans, mention.start, mention.end))
    return list(found.values())


def named_words(text: str, spans: Sequence[tuple[int, int]], labels: set[str]) -> list[Naming]:
    """Written words that the answer repeats, at least three quarters of each in one piece."""
    found = []
    for label in sorted(labels):
        matcher = difflib.SequenceMatcher(None, label.lower(), text.lower(), autojunk=False)
        match = matcher.find_longest_match()
        if match.size >= LEGIBLE * len(label):
            found.append(Naming(label, tokens_of(spans, match.b, match.b + match.size), match.size / len(label)))
    return found


def spelled(processor: Any, tokens: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of an answer, and the characters that each token added to it."""
    tokenizer = text_tokenizer(processor)
    ends = [len(tokenizer.decode(tokens[: stop + 1], skip_special_tokens=True)) for stop in range(len(tokens))]
    return tokenizer.decode(tokens, skip_special_tokens=True), list(zip([0, *ends], ends, strict=False))


def tokens_of(spans: Sequence[tuple[int, int]], start: int, stop: int) -> range:
    """The tokens that hold any of the characters."""
    inside = [index for index, (first, last) in enumerate(spans) if first < stop and last > start]
    return range(inside[0], inside[-1] + 1) if inside else range(0)
