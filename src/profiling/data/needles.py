"""Needles in a haystack: a made-up fact inside filler text, and a question that only it answers (arXiv 2404.15574).

Ours: the facts, the filler and the wording of the prompt. Unlike the release, a needle goes back to the end of the
sentence before it by the text, not by the token ids of one vocabulary, so that depths stay different under any
tokenizer; its tokens are found by tokenising in place; and no prompt is longer than the model reads.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...common.chat import text_tokenizer
from ...common.errors import CalibrationError
from ...models.prompting import cloze, common, encode
from .texts import NEEDLES, Needle, sentences

ANSWER = 50  # most tokens of an answer
PASS = 0.5  # a run counts if the answer recalls more than this share of the needle's words
LENGTHS = 4
SHORTEST, LONGEST = 500, 2000  # tokens of a prompt, unless lengths are given


@dataclass(frozen=True)
class NeedleTest:
    """One prompt: a needle at a depth (0 to 1) of a prompt of at most `length` tokens.

    `ids` are the prompt's tokens; those from `start` up to `stop` are the needle's answer.
    """

    needle: Needle
    length: int
    depth: float
    ids: tuple[int, ...]
    start: int
    stop: int

    def passed(self, said: str) -> bool:
        return recall(said, self.needle.answer) > PASS


def recall(said: str, answer: str) -> float:
    """Share of the answer's words that were said (ROUGE-1 recall, without stemming: a copy needs none)."""
    wanted, found = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, said))
    return (wanted & found).total() / max(1, wanted.total())


def default_lengths(model: Any) -> list[int]:
    """Prompt lengths that fit the model, in tokens."""
    room = (_context(model) or LONGEST + ANSWER) - ANSWER
    longest = min(room, LONGEST)
    shortest = min(SHORTEST, longest // 2)
    return [shortest + (longest - shortest) * i // (LENGTHS - 1) for i in range(LENGTHS)]


def trials(
    model: Any,
    tokenizer: Any,
    *,
    lengths: Sequence[int] | None = None,
    depths: int = 5,
    seed: int = 0,
    needles: Sequence[Needle] | None = None,
    haystack: str | None = None,
) -> list[NeedleTest]:
    """Every needle at every length and depth, in an order in which neighbours share most of their beginning.

    Args:
        lengths: tokens of the whole prompt, at most; by default four from 500 to 2000, less where the model reads less.
        depths: how many depths, evenly from the start to the end of the haystack.
        seed: of the generated filler.
        haystack: text to hide the needles in, in place of the filler.

    Raises:
        CalibrationError: a length that the model cannot read or that leaves no room for a haystack, a haystack that is
            too short or answers a question itself, a needle without its answer.
    """
    needles = NEEDLES if needles is None else needles
    lengths = default_lengths(model) if lengths is None else list(lengths)
    if not needles or not lengths or depths < 1:
        raise CalibrationError("a needle test needs at least one needle, one length and one depth")
    context = _context(model)
    if context is not None and max(lengths) + ANSWER > context:
        raise CalibrationError(
            f"a prompt of {max(lengths)} tokens and an answer of {ANSWER} do not fit this model, which reads {context}:"
            " give shorter lengths"
        )
    hay = _hay(tokenizer, sentences(seed) if haystack is None else _split(haystack), max(lengths), haystack is None)
    for needle in needles:
        _check(needle, [sentence for sentence, _ in hay])
    shares = [i / max(1, depths - 1) for i in range(depths)]
    found = [_trial(tokenizer, n, hay, length, share) for length in lengths for n in needles for share in shares]
    return sorted(found, key=lambda trial: trial.start)


def _context(model: Any) -> int | None:
    """How many tokens the model reads, if its config says so."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _split(text: str) -> list[str]:
    return [sentence for sentence in re.split(r"(?<=[.!?。！？])\s*(?=\S)", text.strip()) if sentence]


def _hay(tokenizer: Any, found: Iterable[str], length: int, endless: bool) -> list[tuple[str, int]]:
    """Sentences with their sizes in tokens, as many as a prompt of `length` tokens may hold."""
    hay, total = [], 0
    for sentence in found:
        size = len(text_tokenizer(tokenizer)(" " + sentence, add_special_tokens=False)["input_ids"])
        hay.append((sentence, size))
        total += size
        if total >= length:
            return hay
    raise CalibrationError(
        f"the haystack has {total} tokens, but prompts of {length} were asked for: give more text or shorter lengths"
    )


def _check(needle: Needle, hay: list[str]) -> None:
    if needle.answer not in needle.text:
        raise CalibrationError(f"the needle {needle.text!r} does not hold its answer {needle.answer!r} word for word")
    for sentence in hay:
        if recall(sentence, needle.answer) > PASS:
            raise CalibrationError(
                f"the haystack answers {needle.question!r} itself ({sentence!r}): choose another text or needle"
            )


def _trial(tokenizer: Any, needle: Needle, hay: list[tuple[str, int]], length: int, depth: float) -> NeedleTest:
    """The prompt, with as much hay as fits."""
    bare = len(encode(tokenizer, _prompt(tokenizer, [needle.text], needle)))
    ends = list(itertools.accumulate((size for _, size in hay), initial=0))  # tokens before each sentence
    count = max(i for i, end in enumerate(ends) if i == 0 or bare + end <= length)
    while count > 0:
        place = max(i for i in range(count + 1) if ends[i] <= depth * ends[count])
        lines = [sentence for sentence, _ in hay[:count]]
        prompt = _prompt(tokenizer, [*lines[:place], needle.text, *lines[place:]], needle)
        ids = encode(tokenizer, prompt)
        if len(ids) <= length:
            break
        count -= 1  # sizes of sentences need not add up exactly
    else:
        raise CalibrationError(
            f"a prompt of {length} tokens has no room for a haystack: the question and the needle alone take {bare}"
        )
    at = prompt.index(needle.text) + needle.text.index(needle.answer)
    start, stop = (common(encode(tokenizer, prompt[:end]), ids) for end in (at, at + len(needle.answer)))
    return NeedleTest(needle, length, depth, tuple(ids), start, stop)


def _prompt(tokenizer: Any, lines: Sequence[str], needle: Needle) -> str:
    question = f"Answer the question with a sentence from the text above.\nQuestion: {needle.question}"
    return cloze(tokenizer, f"{' '.join(lines)}\n\n{question}")
