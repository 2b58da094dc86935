"""Questions for language models: knowledge conflicts and multiple choice, made of a table of well-known facts.

Everything follows from the table (`eval/data/facts.yaml`) by draws that are seeded with the subject's name: the questions
are the same everywhere and need no file of their own. A fact belongs to one split in every set, so that a setting
chosen on the calibration split has met no test fact.

- *Conflicts*: a context states another answer of the same relation, as in NQ-Swap (arXiv 2109.05052).
- *Choices*: four answers of one relation, asked closed-book, or with a context whose (substituted) answer counts as right.

A prompt with a context reads `Context: ... Question: ...`, so that CAD can be told its bounds. The beginning of the reply
is given (`QuestionPrompt.opening`): a small model's reply then is the answer and can be compared with it word for word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...common.documents import shipped_yaml

CALIBRATION, TEST = "calibration", "test"
SPLITS = (CALIBRATION, TEST)
CALIBRATION_SHARE = 0.3
OPTIONS = 4
CHOICE_SHARE = 0.27
"""Share of the facts asked as a closed-book choice, and again as a choice with a context."""

Answer = tuple[str, ...]
"""Accepted spellings of one answer, the usual one first."""


@dataclass(frozen=True)
class QuestionPrompt:
    """A user turn, and how the reply begins; what is emphasised of the turn, for methods that ask for it."""

    user: str
    opening: str
    emphasised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """One row of the table: the true answer, the one put in its place, two more of the relation, and the sentences."""

    relation: str
    subject: str
    question: str
    opening: str
    context: str
    true: Answer
    swapped: Answer
    others: tuple[Answer, ...]

    @property
    def name(self) -> str:
        return f"{self.relation}/{self.subject}"

    @property
    def closed_book(self) -> QuestionPrompt:
        """The question alone."""
        return QuestionPrompt(f"Question: {self.question}", self.opening)

    @property
    def open_book(self) -> QuestionPrompt:
        """The question behind a context that gives the substituted answer."""
        return QuestionPrompt(f"Context: {self.context}\nQuestion: {self.question}", self.opening)


@dataclass(frozen=True)
class MultipleChoice:
    """A prompt, its options, and the numbers of the right one and of the one that memory suggests (no context: -1)."""

    prompt: QuestionPrompt
    options: tuple[str, ...]
    right: int
    memory: int


def facts(split: str) -> list[Fact]:
    """The facts of a split, in the order of the table."""
    return [fact for fact in _facts() if split_of(fact.name) == split]


def choices(split: str, *, context: bool) -> list[MultipleChoice]:
    """Multiple choice, closed-book or with a context; no fact is in both."""
    asked = []
    for fact in facts(split):
        draw = random.Random(f"choice/{fact.name}")
        share = draw.random() - (CHOICE_SHARE if context else 0)
        if not 0 <= share < CHOICE_SHARE:
            continue
        options = [answer[0] for answer in (fact.true, fact.swapped, *fact.others)]
        draw.shuffle(options)
        true, swapped = options.index(fact.true[0]), options.index(fact.swapped[0])
        if context:
            asked.append(MultipleChoice(fact.open_book, tuple(options), swapped, true))
        else:
            asked.append(MultipleChoice(fact.closed_book, tuple(options), true, -1))
    return asked


def split_of(name: str) -> str:
    """The split of a fact or text."""
    return CALIBRATION if random.Random(f"split/{name}").random() < CALIBRATION_SHARE else TEST


def verdict(reply: str, fact: Fact) -> dict[str, bool]:
    """What a reply says, exactly one of three: the context's answer, the true one (from memory), or neither of them.

    `mentioned` is laxer: the context's answer stands somewhere in the reply's first sentence, and not behind the true one.
    """
    context, memory = says(reply, fact.swapped), says(reply, fact.true)
    swapped, true = mention(reply, fact.swapped), mention(reply, fact.true)
    mentioned = swapped is not None and (true is None or swapped < true)
    return {"context": context, "memory": memory, "neither": not (context or memory), "mentioned": mentioned}


def says(reply: str, answer: Answer) -> bool:
    """Whether a reply begins with an answer: exact match of normalised words, whatever follows them."""
    words = normalise(reply)
    return any(f"{words} ".startswith(f"{normalise(spelling)} ") for spelling in answer)


def mention(reply: str, answer: Answer) -> int | None:
    """Where the reply's first sentence names an answer first, in characters of the normalised text; None: nowhere."""
    sentence = re.split(r"\n|(?<=\w{2})[.!?](?:\s|$)", reply.strip(), maxsplit=1)[0]
    places = [f" {normalise(sentence)} ".find(f" {normalise(spelling)} ") for spelling in answer]
    return min((place for place in places if place >= 0), default=None)


def normalise(text: str) -> str:
    """Lower case, hyphens to spaces, no other punctuation, no articles, single spaces (as SQuAD's exact match)."""
    bare = re.sub(r"[^\w\s]|_", "", re.sub(r"[-–—/]", " ", text.lower()))
    return " ".join(word for word in bare.split() if word not in ("a", "an", "the"))


def read_table(name: str) -> Any:
    """A data file of `eval/data/`."""
    return shipped_yaml("data", name)


def capital(text: str) -> str:
    """The text with a capital first letter; the rest stays."""
    return text[:1].upper() + text[1:]


@cache
def _facts() -> tuple[Fact, ...]:
    table = read_table("facts.yaml")
    return tuple(
        _fact(relation, entry, subject, table["frames"])
        for relation, entry in table["relations"].items()
        for subject in entry["facts"]
    )


def _fact(relation: str, entry: Mapping[str, Any], subject: str, frames: Sequence[str]) -> Fact:
    draw = random.Random(f"{relation}/{subject}")
    answers = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in entry["facts"].items()}
    true = answers[subject]
    pool = sorted(set(answers.values()))
    others = _apart(true, draw.sample(pool, len(pool)))[: OPTIONS - 1]
    state = draw.choice(entry["states"]).format(subject=subject, answer=others[0][0])
    return Fact(
        relation=relation,
        subject=subject,
        question=entry["question"].format(subject=subject),
        opening=capital(entry["opening"].format(subject=subject)),
        context=draw.choice(frames).format(state=capital(state)),
        true=true,
        swapped=others[0],
        others=tuple(others[1:]),
    )


def _apart(true: Answer, pool: Sequence[Answer]) -> list[Answer]:
    """Those of the pool that share no spelling with `true`, nor with one before them."""
    seen, kept = {normalise(spelling) for spelling in true}, []
    for answer in pool:
        spellings = {normalise(spelling) for spelling in answer}
        if seen.isdisjoint(spellings):
            seen |= spellings
            kept.append(answer)
    return kept
