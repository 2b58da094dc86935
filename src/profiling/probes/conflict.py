"""Conflict heads: which heads favour a target answer whatever the context says (JuICE, arXiv 2503.10996).

Each head alone is enlarged, then suppressed: a times its output goes through its slice of W_O once more, at every
position, which is a gain of 1 + a. Its effect is the mean change of P(target). Kept are heads whose mean effect is
above zero for every kind of prompt (clean, substitution conflict, coherent conflict); they are ranked by the sum.

Published: 4 samples, a in {1, 3, 5, 10, 30} to enlarge and {-1, -2, -5} to suppress, 5 or 10 heads of each. Ours:
P(target) is the probability of all of its tokens, so that an answer of two tokens counts as one of one; the heads of a
layer ride in one batch, which starts at that layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...common.errors import CalibrationError
from ...plugin.calibration.files import ConflictHeads
from ...plugin.core.edits import Gain, Input, InputProbe
from ..data.tokenised import Conflict, Continuation
from ..job import Job, Sums
from .direct import Direct, Edits

KINDS = ("clean", "substitution", "coherent")
TOKENS = 512  # in a batch of heads, for each example that the job takes at once


def conflict_heads(
    job: Job,
    examples: Sequence[Conflict],
    *,
    n: int = 10,
    enlarge: Sequence[float] = (1, 3, 5, 10, 30),
    suppress: Sequence[float] = (-1, -2, -5),
) -> ConflictHeads:
    """The section of the calibration file: at most `n` heads of each kind, best first.

    Args:
        enlarge, suppress: the factors a, above and below zero.

    Raises:
        CalibrationError: no examples, an empty prompt or target, or factors of the wrong sign.
    """
    if not all(a > 0 for a in enlarge) or not all(a < 0 for a in suppress) or not enlarge or not suppress:
        raise CalibrationError("JuICE's factors are above 0 to enlarge and below 0 to suppress, at least one of each")
    mean, split = effects(job, examples, (*enlarge, *suppress)), len(enlarge)
    enhance, suppressed = choose(mean[..., :split].mean(-1), n), choose(mean[..., split:].mean(-1), n)
    return ConflictHeads(enhance=enhance, suppress=suppressed, source=None)


def choose(effects: Tensor, n: int) -> list[tuple[int, int]]:
    """The best heads by effects [kinds, layers, heads]: above zero for every kind, ranked by the sum."""
    total = effects.sum(0)
    kept = (effects > 0).all(0).nonzero().tolist()
    return [(layer, head) for layer, head in sorted(kept, key=lambda at: -float(total[at[0], at[1]]))[:n]]


@torch.no_grad()
def effects(job: Job, examples: Sequence[Conflict], factors: Sequence[float]) -> Tensor:
    """Mean change of P(target) [kinds, layers, heads, factors] over the examples."""
    prompts: list[Continuation] = [getattr(example, kind) for example in examples for kind in KINDS]
    if not prompts:
        raise CalibrationError("conflict heads need at least one example")
    if not all(asked.prompt and asked.target for asked in prompts):
        raise CalibrationError("a conflict example has an empty prompt or target")
    with Direct(job.model) as direct:
        facts = direct.facts
        read: dict[int, _Read] = {}

        def look(some: Sequence[tuple[int, int]]) -> Sums:
            found = torch.zeros(len(KINDS), facts.layers, facts.heads, len(factors))
            for number, layer in some:
                if number not in read:
                    read.clear()  # layers come prompt by prompt
                    read[number] = _Read(direct, prompts[number])
                found[number % len(KINDS), layer] += read[number].effects(layer, factors, TOKENS * job.pace.size)
            return {"effects": found}

        seen = job.add("effects", look, list(itertools.product(range(len(prompts)), range(facts.layers))))
    job.samples = len(examples)
    return seen["effects"] / len(examples)


class _Read:
    """A prompt as the plain model reads it: P(target), and the hidden states that enter each layer."""

    def __init__(self, direct: Direct, asked: Continuation):
        self.direct, self.asked = direct, asked
        self.entering: dict[int, Tensor] = {}
        watch: Edits = {
            layer: [InputProbe(partial(self.entering.__setitem__, layer))] for layer in range(direct.facts.layers)
        }
        self.plain = _probability(direct, asked, watch, 1)

    def effects(self, layer: int, factors: Sequence[float], tokens: int) -> Tensor:
        """Change of P(target) by each head of a layer [heads, factors]; `tokens` go into one batch."""
        heads, device = self.direct.facts.heads, self.direct.model.device
        strengths = torch.tensor([float(a) for a in factors])
        single = torch.cartesian_prod(torch.arange(heads), torch.arange(len(factors)))
        changed = []
        for chunk in single.split(max(1, tokens // (len(self.asked.prompt) + len(self.asked.target)))):
            gains = torch.ones(len(chunk), heads)
            gains[torch.arange(len(chunk)), chunk[:, 0]] += strengths[chunk[:, 1]]
            below = self.entering[layer].expand(len(chunk), -1, -1)
            edits: Edits = {layer: [Input(partial(_replaced, below)), Gain(gains.to(device))]}
            with self.direct.without_layers(layer):  # they would repeat the plain pass
                changed.append(_probability(self.direct, self.asked, edits, len(chunk)) - self.plain)
        return torch.cat(changed).view(heads, len(factors))


def _replaced(by: Tensor, hidden: Tensor) -> Tensor:
    return by


def _probability(direct: Direct, asked: Continuation, edits: Edits, rows: int) -> Tensor:
    """P(target) of `rows` copies of a prompt under `edits` [rows]."""
    size = len(asked.target)
    ids = torch.tensor([*asked.prompt, *asked.target[:-1]]).expand(rows, -1)
    logits = direct(edits, ids, logits_to_keep=size)[:, -size:].float()
    target = torch.tensor(asked.target, device=logits.device).expand(rows, -1)
    return logits.log_softmax(-1).gather(-1, target[..., None]).sum((1, 2)).exp().cpu()
