"""A layer whose cache keeps the newest keys only, and whose attention is not told of it (Moshi): what a copy beside sees."""

from __future__ import annotations

import pytest
import sightline
from sightline import UnsupportedModelError

from tests.helpers.engine import assert_message
from tests.zoo.prove import Subject

DECORE = {"decoder": {"decore": {"head_list": [[1, 0]]}}}


def test_a_prompt_that_is_longer_than_the_window_is_refused() -> None:
    """The model's mask has no window while it reads a prompt, and its cache has one behind it."""
    subject = Subject("text", "moshi")
    window = subject.model.config.sliding_window
    with sightline.attach(subject.model, DECORE):
        subject.answer(subject.prompts((window, window - 2)))
        with pytest.raises(UnsupportedModelError) as caught:
            subject.answer(subject.prompts((window + 1, 4)))
    assert_message(caught.value, f"last {window} keys", f"{window + 1} tokens", "shorter prompt")
