"""DoLa: contrast the last layer with an early one of the same pass.

Source: arXiv 2309.03883 (ICLR 2024) and its release. At each step, of the candidate layers' distributions q the one that
differs most from the last layer's, p, is taken (m is the mean of p and q):

    distance = (KL(m || p) + KL(m || q)) / 2,    score = log p - log p_early   where p >= beta * max p, else -inf

That distance is the release's, and that of transformers 4.50, which had a DoLa of its own. The paper names the
Jensen-Shannon divergence, (KL(p || m) + KL(q || m)) / 2, which takes other layers in most steps: `form: paper`. The release
takes one layer for a whole batch, by the mean of its distances; here each row has its own.

Candidates are numbered by the hidden state that enters a layer, so 0 is the embedding. `low` and `high` are transformers'
rule: every second layer of the first half, and of the second from its first layer on (0-14 and 16-30 of 32, as in the
release; 15-29 of 30); of models with more than 40 layers, of the first and the last 20. With tied embeddings `low` leaves 0
out, whose readout is the input token itself. The release reads early states without the final norm; `norm: true` applies
it. beta 0.1. The release's repetition penalty of 1.2 is `generate`'s own argument.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..plugin.branches import rules
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.branches.early import EarlyContrast
from ..plugin.core.layout import Layout
from ..plugin.core.method import ModelFacts, Settings

DEEP, BUCKET = 40, 20  # models with more layers than the one have candidates in so many at either end


class DoLaSettings(Settings):
    layers: Literal["low", "high"] | Annotated[list[int], Field(min_length=1)] = Field(
        "low", description="candidates: a half of the model, or numbers"
    )
    form: Literal["released", "paper"] = Field(
        "released", description="what differs most: KL from the mean to each (released), or Jensen-Shannon (paper)"
    )
    beta: float = Field(0.1, ge=0, le=1, description="plausibility cutoff, relative to the likeliest token; 0: none")
    norm: bool = Field(False, description="apply the final norm to early states (the release does not)")


@register_decoder("dola")
class DoLa(Decoder):
    summary = "contrast the last layer with the early layer that differs most"
    source = "arXiv 2309.03883"
    cost = "one readout per candidate layer and token; no second branch"
    needs_image = False
    config = DoLaSettings

    def __init__(self, settings: DoLaSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        named = {"low": low_layers(facts.layers, facts.tied), "high": high_layers(facts.layers)}
        wanted = facts.own(named[settings.layers]) if isinstance(settings.layers, str) else settings.layers
        self.layers = facts.check_layers(wanted, "dola.layers")

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return DoLaContrast(self)


class DoLaContrast(EarlyContrast):
    def __init__(self, decoder: DoLa):
        super().__init__(decoder.layers, decoder.facts)
        self.settings: DoLaSettings = decoder.settings

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        distances = {"released": rules.divergence_from_mean, "paper": rules.divergence}
        measure, final = distances[self.settings.form], base.log_softmax(-1)
        best, furthest, self.chosen = torch.zeros_like(final), None, None
        for number, logits in enumerate(self.readouts(final, self.settings.norm)):
            early = logits.log_softmax(-1)
            distance = measure(final, early)
            if furthest is None or self.chosen is None:
                best, furthest, self.chosen = early, distance, torch.zeros_like(distance, dtype=torch.long)
                continue
            further = distance > furthest
            best = torch.where(further[..., None], early, best)
            furthest = torch.where(further, distance, furthest)
            self.chosen = torch.where(further, number, self.chosen)
        return rules.plausible(final - best, final, self.settings.beta)


def low_layers(layers: int, tied: bool) -> range:
    """Candidates in the first half of a model, without the embedding where the readout is the same matrix."""
    first = min(2, layers - 1) if tied else 0
    return range(first, max(layers // 2 if layers <= DEEP else BUCKET, first + 1), 2)


def high_layers(layers: int) -> range:
    """Candidates in the second half of a model."""
    return range(layers // 2 if layers <= DEEP else layers - BUCKET, layers, 2)
