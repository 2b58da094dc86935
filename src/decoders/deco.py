"""DeCo: add the logits of the earlier layer that is surest of what may come next.

Source: arXiv 2410.11779 and its release. Candidates are the fewest of the k likeliest tokens whose probabilities sum to
the share `top_p`. Of the chosen layers' readouts (with the final norm), the layer m whose largest probability p_m of any
candidate is the largest is taken:

    score = z + alpha p_m z_m   for the candidates, else -inf

Layers are numbered by the hidden state that enters them. alpha 0 still cuts off what is no candidate.

What paper and release say apart from that, and what is ours: docs/methods/deco.md.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.branches.early import EarlyContrast
from ..plugin.branches.rules import NEVER
from ..plugin.core.layout import Layout
from ..plugin.core.method import ModelFacts, Settings


class DeCoSettings(Settings):
    alpha: float = Field(0.6, ge=0, description="strength of the earlier layer's logits")
    top_p: float = Field(0.9, gt=0, le=1, description="share of the probability that the candidates reach")
    top_k: int = Field(20, ge=1, description="how many they are at most")
    layers: list[int] | None = Field(
        None, min_length=1, description="layers whose entering state is read out; default: 20 to 28 of 32 in proportion"
    )


@register_decoder("deco")
class DeCo(Decoder):
    summary = "add the logits of the earlier layer that is surest"
    source = "arXiv 2410.11779"
    cost = "one readout per candidate layer and token; no second branch"
    needs_image = False
    config = DeCoSettings

    def __init__(self, settings: DeCoSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = facts.proportion(20, 29) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "deco.layers")

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return DeCoContrast(self)


class DeCoContrast(EarlyContrast):
    def __init__(self, decoder: DeCo):
        super().__init__(decoder.layers, decoder.facts)
        self.settings: DeCoSettings = decoder.settings

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        candidates = likeliest(base.softmax(-1), self.settings.top_k, self.settings.top_p)
        surest, logits = base.new_full(base.shape[:2], -1.0), torch.zeros_like(base)
        self.chosen = torch.zeros_like(surest, dtype=torch.long)
        for number, early in enumerate(self.readouts(base, norm=True)):
            sure = early.softmax(-1).masked_fill(~candidates, 0).amax(-1)
            surer = sure > surest
            self.chosen = torch.where(surer, number, self.chosen)
            logits = torch.where(surer[..., None], early, logits)
            surest = torch.where(surer, sure, surest)
        return (base + self.settings.alpha * surest[..., None] * logits).masked_fill(~candidates, NEVER)


def likeliest(chances: Tensor, count: int, share: float) -> Tensor:
    """Mask [.., V] of the fewest tokens whose probabilities sum to `share`, of the `count` likeliest."""
    best, tokens = chances.topk(min(count, chances.shape[-1]))
    needed = best.cumsum(-1) - best < share
    needed[..., 0] = True  # whatever the share is rounded to
    return torch.zeros_like(chances, dtype=torch.bool).scatter(-1, tokens, needed)
