"""DoLa: contrast the last layer with an early one of the same pass.

Source: arXiv 2309.03883 (ICLR 2024) and its release. At each step, of the candidate layers' distributions the one that
differs most from the last layer's (Jensen-Shannon) is taken:

    score = log p - log p_early   where p >= beta * max p, else -inf

Candidates are numbered by the hidden state that enters a layer, so 0 is the embedding: `low` takes the even layers of the
first half, `high` those of the second (the release's buckets for a 32-layer model: 0-14 and 16-30). With tied embeddings
`low` leaves 0 out, whose readout is the input token itself. The release reads early states without the final norm;
`norm: true` applies it. beta 0.1. The release's repetition penalty of 1.2 is `generate`'s own argument.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..plugin.branches import rules
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.core.edits import Edit, InputProbe
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts, Settings


class DoLaSettings(Settings):
    layers: Literal["low", "high"] | Annotated[list[int], Field(min_length=1)] = Field(
        "low", description="candidates: a half of the model, or numbers"
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
        half = facts.layers // 2
        first = 2 if facts.tied else 0
        buckets = {"low": range(first, max(half, first + 1), 2), "high": range(half + half % 2, facts.layers, 2)}
        wanted = facts.own(buckets[settings.layers]) if isinstance(settings.layers, str) else settings.layers
        self.layers = facts.check_layers(wanted, "dola.layers")

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return DoLaContrast(self)


class DoLaContrast(Contrast):
    def __init__(self, decoder: DoLa):
        self.decoder = decoder
        self.states: dict[int, Tensor] = {}  # hidden state [B, q, hidden] that enters each candidate, of the last pass
        self.chosen: Tensor | None = None  # index of the candidate taken in the last pass [B, T]

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        return {layer: [InputProbe(partial(self.states.__setitem__, layer))] for layer in self.decoder.layers}

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        settings, readout = self.decoder.settings, self.decoder.facts.readout
        final = base.log_softmax(-1)
        rows = base.shape[1]
        best, furthest, self.chosen = torch.zeros_like(final), None, None
        for number, state in enumerate(self.states.values()):
            early = readout(state[:, -rows:], settings.norm).to(final).log_softmax(-1)
            distance = rules.divergence(final, early)
            if furthest is None or self.chosen is None:
                best, furthest, self.chosen = early, distance, torch.zeros_like(distance, dtype=torch.long)
                continue
            further = distance > furthest
            best = torch.where(further[..., None], early, best)
            furthest = torch.where(further, distance, furthest)
            self.chosen = torch.where(further, number, self.chosen)
        self.states.clear()
        return rules.plausible(final - best, final, settings.beta)

    def report(self) -> dict[str, Any]:
        """layers: the early layer taken for each row of the last pass [B][T]."""
        if self.chosen is None:
            return {}
        return {"layers": [[self.decoder.layers[i] for i in row] for row in self.chosen.tolist()]}
