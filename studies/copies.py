"""Texts that a language model must copy as they stand, against its habit: made of `eval/data/texts.yaml`.

Five forms: a *quotation* of a proverb with a strange last word; a proverb to be *ended* with a given word (the trap of
MemoTrap, with other proverbs); a well-known *list* with two neighbours swapped; a *record* of made-up names and numbers;
a *code*. For the first three the usual text is known, and a reply that gives it instead is counted as memory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from sightline.profiling.data.conflicts import QuestionPrompt, capital, read_table, says, split_of

KNOWN = ("quotation", "ending", "list")  # forms whose usual text is known
FORMS = (*KNOWN, "record", "code")
LISTS, LIST_LENGTH = 2, 5
RECORDS, CODES = 25, 25
CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXYZ23456789"


@dataclass(frozen=True)
class Copy:
    """`wanted` is the text to give, `usual` the one that memory suggests, where there is one."""

    form: str
    name: str
    prompt: QuestionPrompt
    wanted: str
    usual: str | None = None


def copies(split: str) -> list[Copy]:
    """The texts of a split, form by form. A proverb's two forms lie in the same split."""
    return [copy for copy in _copies() if split_of(copy.name) == split]


def verdict(reply: str, copy: Copy) -> dict[str, bool]:
    """Whether a reply begins with the wanted text (word for word, without case and punctuation), or with the usual."""
    return {"exact": says(reply, (copy.wanted,)), "memory": copy.usual is not None and says(reply, (copy.usual,))}


@cache
def _copies() -> tuple[Copy, ...]:
    table = read_table("texts.yaml")
    made = [form(*entry) for form in (_quotation, _ending) for entry in table["proverbs"]]
    made += [copy for sequence in table["sequences"] for copy in _lists(sequence)]
    made += [_record(number, table["syllables"]) for number in range(RECORDS)]
    made += [_code(number) for number in range(CODES)]
    return tuple(made)


def _quotation(start: str, usual: str, other: str) -> Copy:
    prompt = QuestionPrompt(
        f'Context: The sign says: "{start} {other}."\nQuestion: What does the sign say?', 'The sign says: "'
    )
    return Copy("quotation", start, prompt, f"{start} {other}", f"{start} {usual}")


def _ending(start: str, usual: str, other: str) -> Copy:
    prompt = QuestionPrompt(f'Context: End the sentence with the word "{other}".\nQuestion: {start} ...', start)
    return Copy("ending", start, prompt, other, usual)


def _lists(sequence: list[str]) -> list[Copy]:
    starts = random.Random(f"list/{sequence[0]}").sample(range(len(sequence) - LIST_LENGTH + 1), LISTS)
    return [_list(f"list/{sequence[0]}/{start}", sequence[start : start + LIST_LENGTH]) for start in sorted(starts)]


def _list(name: str, usual: list[str]) -> Copy:
    place = random.Random(name).randrange(1, LIST_LENGTH - 2)  # neither the first nor the last item moves
    swapped = [*usual[:place], usual[place + 1], usual[place], *usual[place + 2 :]]
    return _stated("list", name, "list reads:", ", ".join(swapped), ", ".join(usual))


def _record(number: int, syllables: list[str]) -> Copy:
    name = f"record/{number}"
    draw = random.Random(name)
    person = " ".join(capital("".join(draw.choices(syllables, k=2))) for _ in range(2))
    numbers = draw.randint(100, 999), draw.randint(1801, 1999), draw.randint(12, 98)
    return _stated("record", name, "record reads:", "{}, room {}, born {}, {} points".format(person, *numbers))


def _code(number: int) -> Copy:
    name = f"code/{number}"
    draw = random.Random(name)
    code = "-".join("".join(draw.choices(CODE_LETTERS, k=3)) for _ in range(3))
    return _stated("code", name, "code of the safe is", code)


def _stated(form: str, name: str, what: str, text: str, usual: str | None = None) -> Copy:
    question = "What is the code of the safe?" if form == "code" else f"What does the {form} read?"
    prompt = QuestionPrompt(f"Context: The {what} {text}.\nQuestion: {question}", f"The {what}")
    return Copy(form, name, prompt, text, usual)
