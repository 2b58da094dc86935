"""Instructions whose fulfilment a few lines of code can see, as in IFEval (arXiv 2311.07911), on well-known questions.

A prompt reads `Instruction: ... Task: ...`, so that methods that emphasise a passage can be told its bounds. Each fact of
`conflicts.py` is asked once, under one form of instruction drawn by its name; what is asked has a known answer, so that a
reply that follows the form but loses the content is seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from sightline.profiling.data.conflicts import Fact, QuestionPrompt, facts, normalise

WORDS = ("teacher", "garden", "silver", "window", "morning")
CLOSINGS = ("That is all.", "End of answer.", "Thank you.")
FEW = 8  # words; a plain reply to "in a full sentence" has about as many


@dataclass(frozen=True)
class Instruction:
    """A fact's question under an instruction of a form. `follows` reads a reply."""

    form: str
    fact: Fact
    text: str
    follows: Callable[[str], bool]

    @property
    def prompt(self) -> QuestionPrompt:
        """The instruction, and the question as the task."""
        return QuestionPrompt(f"Instruction: {self.text}\nTask: {self.fact.question} Answer in a full sentence.", "")


def instructions(split: str) -> list[Instruction]:
    """One instruction for each fact of the split."""
    return [_instruction(fact) for fact in facts(split)]


def verdict(reply: str, item: Instruction) -> dict[str, bool]:
    """`followed`: the reply keeps to the form; `right`: it names the true answer; `both`."""
    words = f" {normalise(reply)} "
    followed = item.follows(reply.strip())
    right = any(f" {normalise(spelling)} " in words for spelling in item.fact.true)
    return {"followed": followed, "right": right, "both": followed and right}


def _instruction(fact: Fact) -> Instruction:
    draw = random.Random(f"instruction/{fact.name}")
    form = draw.choice(FORMS)
    text, follows = _MADE[form](draw)
    return Instruction(form, fact, text, follows)


_Made = tuple[str, Callable[[str], bool]]


def _capitals(draw: random.Random) -> _Made:
    return "Write the whole reply in capital letters.", str.isupper


def _small(draw: random.Random) -> _Made:
    return "Write the whole reply in small letters, without any capital letter.", str.islower


def _first_word(draw: random.Random) -> _Made:
    word = draw.choice(WORDS).capitalize()
    return f'Begin the reply with the word "{word}".', lambda reply: _words(reply)[:1] == [word.lower()]


def _last_words(draw: random.Random) -> _Made:
    closing = draw.choice(CLOSINGS)
    return f'End the reply with the words "{closing}"', lambda reply: reply.rstrip('"').endswith(closing)


def _with_word(draw: random.Random) -> _Made:
    word = draw.choice(WORDS)
    return f'Use the word "{word}" somewhere in the reply.', lambda reply: word in _words(reply)


def _quoted(draw: random.Random) -> _Made:
    def follows(reply: str) -> bool:
        return len(reply) > 2 and reply[0] == reply[-1] == '"' and '"' not in reply[1:-1]

    return "Put the whole reply in double quotation marks.", follows


def _short(draw: random.Random) -> _Made:
    return f"Use fewer than {FEW} words.", lambda reply: 0 < len(_words(reply)) < FEW


def _numbered(draw: random.Random) -> _Made:
    def follows(reply: str) -> bool:
        lines = [line.strip() for line in reply.splitlines() if line.strip()]
        return len(lines) >= 2 and all(re.match(rf"{n}[.)]\s*\S", line) for n, line in enumerate(lines, 1))

    return "Give the reply as a numbered list of at least two lines.", follows


def _twice(draw: random.Random) -> _Made:
    def follows(reply: str) -> bool:
        sentences = [normalise(part) for part in re.split(r"[.!?\n]+", reply) if normalise(part)]
        return len(sentences) >= 2 and len(set(sentences)) == 1

    return "Say the same sentence two times.", follows


def _exclaimed(draw: random.Random) -> _Made:
    return "End the reply with three exclamation marks.", lambda reply: re.search(r"(?<!!)!{3}$", reply) is not None


_MADE: dict[str, Callable[[random.Random], _Made]] = {
    "capitals": _capitals,
    "small letters": _small,
    "first word": _first_word,
    "last words": _last_words,
    "with a word": _with_word,
    "quoted": _quoted,
    "short": _short,
    "numbered": _numbered,
    "twice": _twice,
    "exclaimed": _exclaimed,
}
FORMS = tuple(_MADE)


def _words(reply: str) -> list[str]:
    """The reply's words in lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", reply.lower())
