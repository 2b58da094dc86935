"""A refusal leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sightline import SightlineError

from tests.helpers import tiny
from tests.helpers.engine import (
    Answer,
    Snapshot,
    assert_message,
    calibration,
    generate,
    prompts,
)


@contextmanager
def refused(case: tiny.TinyCase, kind: type[SightlineError], *words: str) -> Iterator[None]:
    """The block raises `kind` with `words` in its message, and the model comes out as it went in."""
    data = calibration(case)  # runs the model once, so that transformers has installed its own hooks
    before = generate(case.model, prompts(case, "one"))
    snapshot = Snapshot(case.model)
    assert data
    with pytest.raises(kind) as caught:
        yield
    assert_message(caught.value, *words)
    _assert_untouched(case, snapshot, before)


def _assert_untouched(case: tiny.TinyCase, snapshot: Snapshot, before: Answer) -> None:
    after = generate(case.model, prompts(case, "one"))
    snapshot.assert_same(case.model)
    assert after.same_bits(before)
