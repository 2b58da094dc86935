"""The language of the testbed: caption and question wordings, and the words its tokenizer knows.

A caption names the scene, lists the clear objects first and ends on the small, faint and covered ones.
"""

from __future__ import annotations

import re
import string

import numpy as np

from .kinds import KINDS, article, plural
from .scenes import SYNONYMS
from .sprites import CATEGORIES

CAPTION_PROMPT = "Please describe this image in detail."
CAPTION_PROMPTS = (
    CAPTION_PROMPT,
    "Describe this image.",
    "What is in the image?",
    "Please describe the picture.",
    "What can you see in this picture?",
    "Describe the image in detail.",
)
_QUESTIONS = (
    "Is there {} in the image?",
    "Is there {} in the picture?",
    "Can you see {} in this image?",
    "Is there {} in the image? Please answer yes or no.",
)
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class _Question(str):
    """``QUESTION.format("dog")``: the existence question, with the article the name needs."""

    def format(self, *args: object, **_: object) -> str:
        return str.format(self, article(str(args[0])))


#: The existence question; ``QUESTION.format(name)`` writes "a", "an" or "a pair of" as the name needs.
QUESTION: str = _Question("Is there {} in the image?")


def question(name: str, rng: np.random.Generator | None = None) -> str:
    """The existence question about an object, in the usual wording, or in any of them when `rng` is given."""
    wording = _QUESTIONS[0] if rng is None else _QUESTIONS[int(rng.integers(len(_QUESTIONS)))]
    return wording.format(article(name))


def quantity(name: str, count: int) -> str:
    """("dog", 1) -> "a dog"; ("dog", 2) -> "two dogs"."""
    return article(name) if count == 1 else f"{COUNT_WORDS[count]} {plural(name)}"


def listing(parts: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption(kind: str, counts: dict[str, int], rng: np.random.Generator) -> str:
    """A description of objects already in the order they should be named: two sentences, in one of a few wordings."""
    parts = [quantity(name, min(count, 9)) for name, count in counts.items()]
    split = max(1, min(len(parts) - 1, (len(parts) + 1) // 2)) if len(parts) > 1 else len(parts)
    first, rest = parts[:split], parts[split:]
    scene = KINDS[kind].phrase
    style = int(rng.integers(4))
    if style < 2:
        text = f"The image shows {scene} with {listing(first)}."
    elif style == 2:
        text = f"This is a picture of {scene} with {listing(first)}."
    else:
        text = f"In this image of {scene} you can see {listing(first)}."
    if not rest:
        return text
    ending = (
        f" There is also {listing(rest)}.",
        f" There is also {listing(rest)}.",
        f" In the background there is {listing(rest)}.",
        f" You can also see {listing(rest)}.",
    )[int(rng.integers(4))]
    return text + ending


def count_question(name: str) -> str:
    """How many of an object there are."""
    return f"How many {plural(name)} are there in the image?"


_FORMS = re.compile(
    r"\b(" + "|".join(re.escape(form) for form in sorted(SYNONYMS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)


def mentions(text: str) -> list[str]:
    """Canonical object names in the order a text first mentions them (longest form first: "hot dog" is no dog)."""
    return list(dict.fromkeys(SYNONYMS[match.lower()] for match in _FORMS.findall(text)))


def vocabulary() -> tuple[list[str], list[str]]:
    """Whole words (each with the space before it as "▁") and the single characters every other word falls apart to."""
    texts = [
        "USER ASSISTANT SYSTEM",
        *CAPTION_PROMPTS,
        *(wording.format("") for wording in _QUESTIONS),
        "How many are there in the image? Please answer with one word. Please answer this question with one word.",
        "The image shows with This is a picture of In this image of you can see and There is also",
        "In the background there is You can also see a an pair of Yes No no yes not none do does it its on near next to",
        "Describe briefly what photo scene objects object list all which any other visible here looks like some something",
        *(kind.phrase for kind in KINDS.values()),
        *KINDS,
        *CATEGORIES,
        *SYNONYMS,
        *COUNT_WORDS,
    ]
    words = {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    words |= {word.capitalize() for word in words} | {word.lower() for word in words}
    whole = sorted(f"▁{word}" for word in words if len(word) > 1)
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    return [*whole, "▁a", "▁A", "▁I"], letters
