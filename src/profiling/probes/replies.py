"""How long the plain model's replies are: what the guard of `plugin/guard.py` measures a boosted reply by."""

from __future__ import annotations

import torch

from ...common.errors import CalibrationError
from ...models.observe import Batch
from ...plugin.calibration.sections import Replies
from ...plugin.core.edits import Edit
from ...plugin.core.layout import Layout, Step
from ...plugin.core.method import ModelFacts, Session
from ..job import Job, Sums

NEW_TOKENS = 512  # CHAIR's usual limit


def measure_replies(job: Job) -> Replies:
    """The section of the calibration file. Raises CalibrationError where every reply is empty."""
    seen = job.total("lengths", _lengths)
    if not float(seen["tokens"]):
        raise CalibrationError(
            "replies: the model answers every prompt with nothing, so there is no length to guard by"
        )
    return Replies(tokens=round(float(seen["tokens"] / seen["replies"]), 2))


def _lengths(batch: Batch) -> Sums:
    _, replies = batch.answer(_Blind, NEW_TOKENS)
    counts = {"tokens": sum(map(len, replies)), "replies": len(replies)}
    return {name: torch.tensor(float(count)) for name, count in counts.items()}


class _Blind(Session):
    """Looks at nothing."""

    def __init__(self, layout: Layout, facts: ModelFacts):
        pass

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return {}
