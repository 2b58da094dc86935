"""Which words of an answer are weakly grounded in the picture, from the trace of its tokens.

A word is judged at its first token, where the choice falls. Where the calibration has the section `grounding`, its
weighted sum of trace columns is the word's score, and a word below its threshold is weak; the numbers hold for greedy
answers of the plain model and the heads that they were measured with. Anywhere else a rule of thumb stands in, which is
not measured: weak is a word at which the model is less sure than between two equal choices (entropy above ln 2) and
looks less at the picture than at the answer's words on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..calibration.sections import Grounding
from .words import content_spans

UNSURE = math.log(2)


def word_table(table: Sequence[Mapping[str, Any]], grounding: Grounding | None) -> list[dict[str, Any]]:
    """One row per content word.

    It has `row`, `word`, its characters `start` to `end` in the answer's text, its tokens' first and last `position`, the
    trace of the first, `score` (None without a calibrated one) and `weak`.

    Args:
        table: `Plug.trace`, with texts and without special tokens.
        grounding: the calibrated score, if it holds for this trace.
    """
    answers: dict[int, list[Mapping[str, Any]]] = {}
    for token in table:
        answers.setdefault(token["row"], []).append(token)
    return [word for tokens in answers.values() for word in _words_of(tokens, grounding)]


def _words_of(tokens: Sequence[Mapping[str, Any]], grounding: Grounding | None) -> list[dict[str, Any]]:
    text = answer_text(tokens)
    words = []
    for start, end in content_spans(text):
        inside = [
            token for token, (low, high) in zip(tokens, _spans(tokens), strict=True) if low < end and high > start
        ]
        first = {key: value for key, value in inside[0].items() if key not in ("text", "token")}
        place = {"word": text[start:end], "start": start, "end": end, "last": inside[-1]["position"]}
        words.append({**first, **place, "score": None if grounding is None else score(inside[0], grounding)})
    look = sum(word["image"] for word in words) / max(len(words), 1)
    for word in words:
        if grounding is not None:
            word["weak"] = word["score"] < grounding.threshold
        else:
            word["weak"] = word["entropy"] > UNSURE and word["image"] < look
    return words


def score(token: Mapping[str, Any], grounding: Grounding) -> float:
    """How well a word is grounded whose first token this is."""
    return sum(weight * token[name] for name, weight in grounding.weights.items())


def answer_text(tokens: Sequence[Mapping[str, Any]]) -> str:
    return "".join(token["text"] for token in tokens)


def _spans(tokens: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The characters of each token in the text that all spell."""
    spans, end = [], 0
    for token in tokens:
        spans.append((end, end + len(token["text"])))
        end += len(token["text"])
    return spans
