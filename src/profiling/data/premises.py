"""Questions that take something false for granted, made of the table of well-known facts, as `conflicts.py` is.

"Why is it that the capital of France is Madrid?": the false object is another answer of the relation, the same that
`conflicts.py` substitutes, and it ends the question, as in FAITH's sets (arXiv 2402.19103), which hold other questions.
A fact belongs to the same split here as there.

A question is asked twice: as a sentence to complete (`Premise.cloze`), whose first words are compared with the true and
the false object, and without a given beginning (`Premise.open`), where the reply may say anything.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .conflicts import Answer, Fact, QuestionPrompt, facts, normalise, says

FRAMES = (
    "Why is it that {}?",
    "Since when has it been known that {}?",
    "How did people find out that {}?",
    "Who was the first to notice that {}?",
)
KNOWLEDGE = "According to my knowledge, "
SKIPPED = ("number", "symbol")  # no sentence that can be taken for granted; answers of one or two letters
DENIAL = re.compile(
    r"\b(?:(?:is|are|was|were|does|do|did|has|have|could|can)(?: not|n[’']t)|not (?:true|correct|accurate|the case|known)"
    r"|incorrect|inaccurate|false|wrong|untrue|mistaken?|misconception|misunderstanding|myth|no,|actually|contrary to"
    r"|no evidence|error)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Premise:
    """A fact, and a question that takes its substituted answer for granted."""

    fact: Fact
    question: str

    @property
    def true(self) -> Answer:
        return self.fact.true

    @property
    def false(self) -> Answer:
        return self.fact.swapped

    @property
    def span(self) -> str:
        """The false object as it stands in the question."""
        return self.false[0]

    @property
    def cloze(self) -> QuestionPrompt:
        """The reply's beginning is given up to the object."""
        return QuestionPrompt(self.question, KNOWLEDGE + _inside(self.fact), (self.span,))

    @property
    def open(self) -> QuestionPrompt:
        return QuestionPrompt(self.question, "", (self.span,))


def premises(split: str) -> list[Premise]:
    """The questions of a split, one for each fact that can be taken for granted."""
    return [premise for premise in map(of, facts(split)) if premise is not None]


def of(fact: Fact) -> Premise | None:
    """The question about a fact, None for one that cannot be taken for granted."""
    if fact.relation in SKIPPED:
        return None
    frame, false = random.Random(f"premise/{fact.name}").choice(FRAMES), fact.swapped[0]
    article = "n" if fact.opening.endswith(" a") and false[0].lower() in "aeiou" else ""
    return Premise(fact, frame.format(f"{_inside(fact)}{article} {false}"))


def cloze_verdict(reply: str, premise: Premise) -> dict[str, bool]:
    """Exactly one of three: the reply begins with the true object, with the false one, or with neither."""
    true, false = says(reply, premise.true), says(reply, premise.false)
    return {"true": true, "false": false, "neither": not (true or false)}


def open_verdict(reply: str, premise: Premise) -> dict[str, bool]:
    """Exactly one of three: `corrects` the premise, `affirms` it, or does neither; `true`: the true object is named.

    A reply corrects if it names the true object or denies something; it affirms if it names the false one and does not
    correct. An answer within the subject's name does not count (South Africa lies in Africa). A denial is told by its words
    alone, so a reply that denies something else counts as a correction.
    """
    true, false = (_names(reply, answer, premise.fact.subject) for answer in (premise.true, premise.false))
    corrects = true or DENIAL.search(reply) is not None
    affirms = false and not corrects
    return {"corrects": corrects, "affirms": affirms, "neither": not (corrects or affirms), "true": true}


def _names(reply: str, answer: Answer, subject: str) -> bool:
    """Whether an answer is named; where it is part of the subject's name, elsewhere than in there."""
    words, subject = f" {normalise(reply)} ", f" {normalise(subject)} "
    spellings = [f" {normalise(spelling)} " for spelling in answer]
    return any(one in (words.replace(subject, "  ") if one in subject else words) for one in spellings)


def _inside(fact: Fact) -> str:
    """The fact's opening within a sentence: only names keep their capital."""
    named = fact.opening.split(maxsplit=1)[0] not in ("The", "A", "Most") and fact.subject[0].isupper()
    return fact.opening if named else fact.opening[0].lower() + fact.opening[1:]
