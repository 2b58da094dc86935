"""Everyday facts for choosing heads, none of them in the sets that decoders are evaluated on (`eval/data/facts.yaml`).

A fact gives the questions that HICD and JuICE choose heads by: closed-book, with a context that states another answer
of the same relation, and with one that argues for it. All facts are common knowledge, the sentences are ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ...models.prompting import cloze, encode_answer
from .tokenised import AnswerPair, Conflict, Continuation

Target = Literal["context", "parametric"]


@dataclass(frozen=True)
class FactQuestion:
    """What a fact answers: `opening` + an answer is a sentence; `true` makes it right, `other` wrong."""

    question: str
    opening: str
    true: str
    other: str


# question, opening of the answer, subject = answer
RELATIONS = (
    (
        "What is the opposite of {}?",
        "The opposite of {} is",
        "hot = cold, big = small, up = down, happy = sad, open = closed, early = late, rich = poor, strong = weak, "
        "wet = dry, loud = quiet, fast = slow, old = young",
    ),
    (
        "Which day comes after {}?",
        "The day after {} is",
        "Monday = Tuesday, Tuesday = Wednesday, Wednesday = Thursday, Thursday = Friday, Friday = Saturday, "
        "Saturday = Sunday, Sunday = Monday",
    ),
    (
        "Which month comes after {}?",
        "The month after {} is",
        "January = February, February = March, March = April, April = May, May = June, June = July, July = August, "
        "August = September, September = October, October = November, November = December, December = January",
    ),
    (
        "What is the name for a person who {}?",
        "A person who {} is called a",
        "bakes bread = baker, flies a plane = pilot, teaches pupils = teacher, grows crops = farmer, treats the sick = "
        "doctor, paints pictures = painter, writes poems = poet, cuts hair = barber, puts out fires = firefighter, "
        "sells meat = butcher",
    ),
    (
        "What is the plural of the word {}?",
        "The plural of the word {} is",
        "mouse = mice, foot = feet, tooth = teeth, child = children, man = men, woman = women, goose = geese, "
        "knife = knives, leaf = leaves, person = people",
    ),
    (
        "Which tool do people need to {}?",
        "The tool that people need to {} is a",
        "drive in a nail = hammer, sweep the floor = broom, dig a hole = shovel, cut a plank = saw, turn a screw = "
        "screwdriver, sew on a button = needle, measure a fever = thermometer, look at the stars = telescope, "
        "paint a wall = brush, climb to the roof = ladder",
    ),
)
SUPPORT = (
    "Teachers explain it to every class, and the books in the library say so too.",
    "It was not always well known, but several careful studies have shown it.",
    "Whoever doubts it can ask the people of the town, who all give the same answer.",
)


def facts(seed: int = 0) -> list[FactQuestion]:
    """All facts in a random order; the wrong answer is that of another fact of the relation."""
    found = list(_facts(random.Random(seed)))
    random.Random(seed).shuffle(found)
    return found


def _facts(rng: random.Random) -> Iterator[FactQuestion]:
    for question, opening, table in RELATIONS:
        pairs = [entry.strip().split(" = ") for entry in table.split(",")]
        for subject, answer in pairs:
            other = rng.choice([a for s, a in pairs if answer != a and subject != a])
            yield FactQuestion(question.format(subject), opening.format(subject), answer, other)


def choices(tokenizer: Any, *, seed: int = 0) -> list[AnswerPair]:
    """HICD's examples: every fact closed-book, right if true, and with a context, right if the context says so."""
    found = []
    for fact in facts(seed):
        context = f"{fact.opening} {fact.other}."
        for text, right, wrong in (
            (f"Question: {fact.question}", fact.true, fact.other),
            (f"Context: {context}\nQuestion: {fact.question}", fact.other, fact.true),
        ):
            opened = cloze(tokenizer, text, fact.opening)
            (prompt, first), (_, second) = (encode_answer(tokenizer, opened, answer) for answer in (right, wrong))
            found.append(AnswerPair(prompt, first, second))
    return found


def conflicts(tokenizer: Any, *, target: Target = "context", samples: int = 4, seed: int = 0) -> list[Conflict]:
    """JuICE's examples: sentences to complete, each under three contexts.

    They come without a context, with one that states another answer, and with one that argues for it. The target is what the context says (`context`; without a conflict, a context that tells the
    truth) or what is true (`parametric`).
    """
    rng, found = random.Random(seed), []
    for fact in facts(seed)[:samples]:
        goal = fact.true if target == "parametric" else fact.other
        clean = "" if target == "parametric" else f"{fact.opening} {fact.true}. "
        stated = f"{fact.opening} {fact.other}. "
        texts = (
            (clean, fact.true),
            (stated, goal),
            (f"{stated}{rng.choice(SUPPORT)} ", goal),
        )
        found.append(
            Conflict(*(Continuation(*encode_answer(tokenizer, text + fact.opening, goal)) for text, goal in texts))
        )
    return found
