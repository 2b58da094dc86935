"""The question sets of the language-model evaluation: what is asked, how it is answered, what an answer is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from sightline.profiling.data import conflicts, premises
from sightline.profiling.data.conflicts import Fact, MultipleChoice, QuestionPrompt

from . import copies, instructions

REPLY_TOKENS = 10  # a long name; the opening makes the reply begin with the answer
COPY_TOKENS = {"quotation": 20, "ending": 8, "list": 24, "record": 36, "code": 20}  # the longest text and some more
OPEN_TOKENS = 40  # two sentences

Item = TypeVar("Item")
Outcomes = dict[str, bool]
Groups = dict[str, list[bool]]  # group name -> which items are in it


class QuestionSet(Protocol):
    """Prompts, what a model answers to them, and what an answer is worth.

    `groups` are the parts of the set that scores are given for; `lengths`: the tokens of each prompt's longest reply, none
    where answers are scored.
    """

    name: str
    prompts: list[QuestionPrompt]
    groups: Groups
    lengths: list[int]

    def ask(self, model: Any, tokenizer: Any, inputs: Any, rows: Sequence[int]) -> list[Any]:
        """Answers to the prompts of these numbers, whose model inputs are given."""
        ...

    def outcomes(self, number: int, answer: Any) -> Outcomes:
        """What the answer to prompt `number` is, score by score."""
        ...


@dataclass
class ReplySet:
    """Prompts answered by a short greedy reply, which `judge` reads."""

    name: str
    prompts: list[QuestionPrompt]
    groups: Groups
    lengths: list[int]
    judge: Callable[[int, str], Outcomes]

    def ask(self, model: Any, tokenizer: Any, inputs: Any, rows: Sequence[int]) -> list[str]:
        """The replies, without special tokens."""
        longest = max(self.lengths[row] for row in rows)
        ids = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def outcomes(self, number: int, answer: str) -> Outcomes:
        return self.judge(number, answer)


@dataclass
class ChoiceSet:
    """Prompts answered by the most probable of their options, as `sightline.score` sees it."""

    name: str
    choices: list[MultipleChoice]
    has_context: bool
    prompts: list[QuestionPrompt] = field(init=False)
    groups: Groups = field(init=False)
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = [choice.prompt for choice in self.choices]
        self.groups = {"all": [True] * len(self.choices)}
        self.lengths = [0] * len(self.choices)

    def ask(
        self, model: Any, tokenizer: Any, inputs: Any, rows: Sequence[int]
    ) -> list[tuple[list[float], list[float]]]:
        """Per prompt the log-probability of each option's text, and the same per token."""
        from sightline import score

        texts = [[f" {option}" for option in self.choices[row].options] for row in rows]
        tokens = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in row] for row in texts]
        scored = score(model, inputs, tokens)
        return [([option.logprob for option in row], [option.mean for option in row]) for row in scored]

    def outcomes(self, number: int, answer: tuple[list[float], list[float]]) -> Outcomes:
        """`accuracy` and `normalised` (per token): the right option is the best; `memory`: the true one is instead."""
        choice = self.choices[number]
        best, best_mean = (best_option(scores) for scores in answer)
        found = {"accuracy": best == choice.right, "normalised": best_mean == choice.right}
        return found | ({"memory": best == choice.memory} if self.has_context else {})


def best_option(scores: Sequence[float]) -> int | None:
    """The number of the highest score; None where all are ruled out (a cutoff's -inf)."""
    best = int(np.argmax(scores))
    return None if math.isinf(scores[best]) else best


def question_sets(split: str, known: Sequence[bool], limit: int | None = None) -> list[QuestionSet]:
    """The sets of a split. `known`: which facts plain answers closed-book; `limit`: as for `some`."""
    asked, texts = some(conflicts.facts(split), limit), some(copies.copies(split), limit)
    told = some(instructions.instructions(split), limit)
    return [
        ReplySet(
            "conflicts",
            [fact.open_book for fact in asked],
            {"all": [True] * len(asked), "known": list(known)},
            [REPLY_TOKENS] * len(asked),
            lambda number, reply: conflicts.verdict(reply, asked[number]),
        ),
        ReplySet(
            "copies",
            [copy.prompt for copy in texts],
            _by_form(texts, copies.FORMS),
            [COPY_TOKENS[copy.form] for copy in texts],
            lambda number, reply: copies.verdict(reply, texts[number]),
        ),
        ChoiceSet("choices with context", some(conflicts.choices(split, context=True), limit), True),
        ChoiceSet("choices closed-book", some(conflicts.choices(split, context=False), limit), False),
        ReplySet(
            "instructions",
            [item.prompt for item in told],
            _by_form(told, instructions.FORMS),
            [OPEN_TOKENS] * len(told),
            lambda number, reply: instructions.verdict(reply, told[number]),
        ),
        *_premise_sets(asked, known),
    ]


def _by_form(items: Sequence[copies.Copy] | Sequence[instructions.Instruction], forms: Sequence[str]) -> Groups:
    """All items, and those of each form."""
    return {"all": [True] * len(items)} | {form: [item.form == form for item in items] for form in forms}


def _premise_sets(facts: Sequence[Fact], known: Sequence[bool]) -> list[QuestionSet]:
    """False-premise questions about facts: as sentences to complete, and without a given beginning."""
    pairs = [(premise, flag) for premise, flag in zip(map(premises.of, facts), known, strict=True) if premise]
    asked = [premise for premise, _ in pairs]
    groups = {"all": [True] * len(asked), "known": [flag for _, flag in pairs]}
    return [
        ReplySet(
            "premises",
            [premise.cloze for premise in asked],
            groups,
            [REPLY_TOKENS] * len(asked),
            lambda number, reply: premises.cloze_verdict(reply, asked[number]),
        ),
        ReplySet(
            "premises open",
            [premise.open for premise in asked],
            groups,
            [OPEN_TOKENS] * len(asked),
            lambda number, reply: premises.open_verdict(reply, asked[number]),
        ),
    ]


def some(items: list[Item], limit: int | None) -> list[Item]:
    """At most `limit` of the items, spread evenly over the list; all when None."""
    step = 1 if limit is None else max(1, -(-len(items) // limit))
    return items[::step]


def closed_book_set(facts: Sequence[Fact]) -> ReplySet:
    """The facts' questions without any context; `true`: answered rightly."""
    return ReplySet(
        "closed-book",
        [fact.closed_book for fact in facts],
        {"all": [True] * len(facts)},
        [REPLY_TOKENS] * len(facts),
        lambda number, reply: {"true": conflicts.says(reply, facts[number].true)},
    )
