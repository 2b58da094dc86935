"""Factors on the first token's attention (ZeroTuning, arXiv 2505.11739): which heads' answers they improve.

Each head alone has its attention on the first token multiplied by a factor above 1, then by one below, in every row of
questions with a known answer. The direction is the one in which P(right answer) changes for the better over all heads
together; the 40 % of the heads that profit most from it get its factor, and no head that does not profit.

Published: the search over heads on 500 labelled examples of the task, one direction, the 40 %. In which way the factor
was set while heads were searched was not to be found.
Ours: factors 4, as in the release's demo, and 1/4; P is the probability of all tokens of the answer. A model that sees is
asked whether a thing is in a picture, a text model everyday facts, with and without a context that states another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...common.errors import CalibrationError
from ...plugin.calibration.sections import FirstToken
from ...plugin.core.edits import Bias
from ..data.tokenised import AnswerPair, Continuation
from ..job import Job, rounded
from .single import effects

FACTORS = (4.0, 0.25)
SHARE = 0.4


def first_token(job: Job, examples: Sequence[AnswerPair], *, factors: Sequence[float] = FACTORS) -> FirstToken:
    """The section of the calibration file.

    Raises:
        CalibrationError: no examples, an empty prompt or answer, or no head that profits.
    """
    asked = [Continuation(one.prompt, one.right, one.pictures) for one in examples]
    if not asked or not all(one.prompt and one.target for one in asked):
        raise CalibrationError(
            "factors on the first token need examples, each with a prompt and a right answer of tokens"
        )
    changes = effects(job, asked, factors, _on_first)[0] / len(asked)
    job.samples = len(asked)
    return FirstToken(gains=rounded(chosen(changes, factors)))


def chosen(changes: Tensor, factors: Sequence[float], share: float = SHARE) -> Tensor:
    """Factors by head [layers, heads] from the changes of P [layers, heads, factors]."""
    best = int(changes.sum((0, 1)).argmax())
    profit, gains = changes[..., best].flatten(), torch.ones(changes[..., best].numel())
    heads = profit.topk(round(share * len(profit))).indices
    heads = heads[profit[heads] > 0]
    if not len(heads):
        raise CalibrationError(
            "no head's answers profit from another attention on the first token: leave zerotuning out"
        )
    gains[heads] = factors[best]
    return gains.view(changes.shape[:2])


def _on_first(factors: Tensor) -> Bias:
    """The logarithm of factors [B, H] on the prompt's first key."""
    return Bias(factors.log()[..., None])
