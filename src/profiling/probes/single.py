"""What a change of one head does to the probability of an answer, for each head alone.

The heads of a layer ride in one batch, which starts at that layer: below it is the plain pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...plugin.core.edits import Edit, Input, InputProbe
from ..data.tokenised import Continuation
from ..job import Job, Sums
from .direct import Direct, Edits, row_by_row

TOKENS = 512  # in a batch of heads, for each example that the job takes at once

Change = Callable[[Tensor], Edit]  # factors [B, H], 1 where a head is left alone -> the edit of a layer


@torch.no_grad()
def effects(
    job: Job, asked: Sequence[Continuation], factors: Sequence[float], change: Change, *, kinds: int = 1
) -> Tensor:
    """Summed change of P(target) [kinds, layers, heads, factors]; the kinds of prompts take turns."""
    with Direct(job.model) as direct:
        facts = direct.facts
        read: dict[int, _Read] = {}

        def look(some: Sequence[tuple[int, int]]) -> Sums:
            found = torch.zeros(kinds, facts.layers, facts.heads, len(factors))
            for number, layer in some:
                if number not in read:
                    read.clear()  # layers come prompt by prompt
                    read[number] = _Read(direct, asked[number])
                found[number % kinds, layer] += read[number].effects(layer, factors, change, TOKENS * job.pace.size)
            return {"effects": found}

        items = list(itertools.product(range(len(asked)), facts.own(range(facts.layers))))
        return job.add("effects", look, items)["effects"]


class _Read:
    """A prompt as the plain model reads it: P(target), and the hidden states that enter each layer."""

    def __init__(self, direct: Direct, asked: Continuation):
        self.direct, self.asked = direct, asked
        self.entering: dict[int, Tensor] = {}
        watch: Edits = {
            layer: [InputProbe(partial(self.entering.__setitem__, layer))] for layer in range(direct.facts.layers)
        }
        self.plain = self._probability(watch, 1)

    def effects(self, layer: int, factors: Sequence[float], change: Change, tokens: int) -> Tensor:
        """Change of P(target) by each head of a layer [heads, factors]; `tokens` go into one batch."""
        heads, device = self.direct.facts.heads, self.direct.model.device
        single = torch.cartesian_prod(torch.arange(heads), torch.arange(len(factors)))
        changed = []
        for chunk in single.split(max(1, tokens // (len(self.asked.prompt) + len(self.asked.target)))):
            table = torch.ones(len(chunk), heads)
            table[torch.arange(len(chunk)), chunk[:, 0]] = torch.tensor(factors, dtype=torch.float32)[chunk[:, 1]]
            below = self.entering[layer].expand(len(chunk), -1, -1)
            edits: Edits = {layer: [Input(partial(_replaced, below)), change(table.to(device))]}
            with self.direct.without_layers(layer):  # they would repeat the plain pass
                changed.append(self._probability(edits, len(chunk)) - self.plain)
        return torch.cat(changed).view(heads, len(factors))

    def _probability(self, edits: Edits, rows: int) -> Tensor:
        """P(target) of `rows` copies of the prompt under `edits` [rows]."""
        size = len(self.asked.target)
        ids = torch.tensor([*self.asked.prompt, *self.asked.target[:-1]]).expand(rows, -1)
        more = row_by_row([self.asked.pictures] * rows, ids.shape[1])
        logits = self.direct(edits, ids, named=1, logits_to_keep=size, **more)[:, -size:].float()
        target = torch.tensor(self.asked.target, device=logits.device).expand(rows, -1)
        return logits.log_softmax(-1).gather(-1, target[..., None]).sum((1, 2)).exp().cpu()


def _replaced(by: Tensor, hidden: Tensor) -> Tensor:
    return by
