"""Questions for a model that sees: is this thing in the picture? The right answer is known from the boxes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ... import testbed
from ...common.chat import text_tokenizer
from ...common.errors import CalibrationError
from ...models.prompting import batch_inputs
from ...models.samples import Example
from ...plugin.core.families import find_family
from ..data.tokenised import AnswerPair
from .direct import pictures_of

ANSWERS = ("Yes", "No")


@dataclass(frozen=True)
class PresenceQuestion:
    """A question about the thing `name`, which is in the picture or not."""

    name: str
    there: bool
    choice: AnswerPair


def choices(model: Any, processor: Any, examples: Sequence[Example], *, seed: int = 0) -> list[AnswerPair]:
    """The questions of `asked`."""
    return [question.choice for question in asked(model, processor, examples, seed=seed)]


def asked(model: Any, processor: Any, examples: Sequence[Example], *, seed: int = 0) -> list[PresenceQuestion]:
    """For each example one question about a thing that is there and one about a thing that is only in other pictures.

    Raises:
        CalibrationError: the examples have no boxed objects, or all the same ones.
    """
    rng = random.Random(seed)
    names = sorted({region.label for example in examples for region in example.objects})
    tokenizer, vision = text_tokenizer(processor), find_family(model).vision_inputs
    yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ANSWERS)
    found = []
    for example in examples:
        present = sorted({region.label for region in example.objects})
        absent = [name for name in names if name not in present]
        for pool, right, wrong in ((present, yes, no), (absent, no, yes)):
            if pool:
                name = rng.choice(pool)
                inputs = batch_inputs(model, processor, [replace(example, text=testbed.QUESTION.format(name))])
                prompt = inputs["input_ids"][0].tolist()
                choice = AnswerPair(prompt, right, wrong, pictures_of(inputs, vision))
                found.append(PresenceQuestion(name, pool is present, choice))
    if not found:
        raise CalibrationError("the questions for a model that sees need pictures whose objects are boxed: none are")
    if len({question.there for question in found}) < 2:
        raise CalibrationError(
            "the questions for a model that sees need pictures of different objects: in these no picture lacks any, so that"
            " the right answer is always Yes"
        )
    return found
