"""Content words, of questions and answers. The tagger is optional."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

CONTENT = {"NOUN", "PROPN", "VERB", "ADJ", "ADV", "NUM"}  # GIFT's parts of speech
_FUNCTION_WORDS = (  # English words that say little by themselves, for want of a tagger
    "a an the this that these those some any each every all both few many much more most other another such no not"
    " i you he she it we they me him her us them my your his its our their mine yours who whom whose which what one ones"
    " there here where when why how and or but nor so yet if then than as because while although though"
    " of in on at by for with without to from into onto over under above below between among through across along around"
    " behind beside near next about against before after during up down out off inside outside"
    " is are was were be been being am do does did doing have has had having can could may might must shall should will"
    " would also too very just only still even again yes"
)
FUNCTION = frozenset(_FUNCTION_WORDS.split())
WORD = re.compile(r"\w+(?:['’-]\w+)*")
UNFINISHED = "\ufffd"  # what decoding puts for bytes that are no character yet
Tagger = Callable[[str], list[tuple[int, int]]]  # text -> character spans of its content words


@cache
def spacy_tagger() -> Tagger | None:
    """spaCy's `en_core_web_sm` as a tagger, or None where it is not installed."""
    try:
        import spacy

        pipeline = spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        return None
    return lambda text: [(t.idx, t.idx + len(t.text)) for t in pipeline(text) if t.pos_ in CONTENT]


def content_spans(text: str) -> list[tuple[int, int]]:
    """Characters of a text's content words, by the tagger; without it, of all words but English function words."""
    tagger = spacy_tagger()
    if tagger is not None:
        return tagger(text)
    return [match.span() for match in WORD.finditer(text) if match.group().lower() not in FUNCTION]


def content_words(tokenizer: Any, tagger: Tagger) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (ids [B, n], query mask [B, n]) -> mask of the query tokens that belong to content words."""

    def narrow(ids: Tensor, query: Tensor) -> Tensor:
        kept = torch.zeros_like(query)
        for row in range(len(ids)):
            positions = query[row].nonzero().flatten().tolist()
            text, characters_of = characters(tokenizer, ids[row, positions].tolist())
            spans = tagger(text) if positions else []
            for position, (start, end) in zip(positions, characters_of, strict=True):
                kept[row, position] = any(start < high and end > low for low, high in spans)
        return kept

    return narrow


def characters(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text that tokens decode to, and each token's characters in it.

    A token's characters are what decoding gains when it is added. Exact for byte-pair and sentence-piece alike; tokens
    that spell one character together, of which decoding shows a mark at first, share its span.
    """
    begun = [tokenizer.decode(tokens[: i + 1]) for i in range(len(tokens))]
    whole = [len(text.rstrip(UNFINISHED)) for text in begun]
    ends = [length + text.endswith(UNFINISHED) for length, text in zip(whole, begun, strict=True)]
    return (begun[-1] if begun else ""), list(zip([0, *whole[:-1]][: len(ends)], ends, strict=True))
