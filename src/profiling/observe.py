"""One look at a prompt: what every layer's input, weights and head outputs say, gathered by probes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..plugin.edits import Edit, InputProbe, OutputProbe, Rows, WeightProbe
from ..plugin.layout import Layout, Step
from ..plugin.method import Method, ModelFacts, Session, Settings
from ..plugin.wrapper import observe


@dataclass
class Observation:
    """One prompt batch, by layer (lists of length L). B rows, n tokens, H heads, D hidden size.

    hidden: RMS-normalised magnitude |x| / RMS(x) of each layer's input [B, n, D]. received: attention that each token
    receives, mean over heads and the valid rows behind it [B, n]. rise: GIFT's positive change of the image weights,
    summed over question rows and image tokens [B, H]. divergence: VHD, squared [B, H].
    """

    layout: Layout
    hidden: list[Tensor] = field(default_factory=list)
    received: list[Tensor] = field(default_factory=list)
    rise: list[Tensor] = field(default_factory=list)
    divergence: list[Tensor] = field(default_factory=list)


class Look(Method):
    """An unregistered method that changes nothing."""

    name = "look"
    summary = source = cost = "profiling"
    config = Settings

    def __init__(self, settings: Settings, facts: ModelFacts):
        super().__init__(settings, facts)
        self.seen: list[Observation] = []

    def start(self, layout: Layout) -> Session:
        self.seen.append(Observation(layout))
        return LookSession(self.seen[-1], self.facts.layers)


class LookSession(Session):
    def __init__(self, observation: Observation, layers: int):
        self.to, self.layers = observation, layers
        self.text: list[Tensor] = []

    def read_text_edits(self) -> dict[int, list[Edit]]:
        return {layer: [OutputProbe(lambda out: self.text.append(out[:, -1].float()))] for layer in range(self.layers)}

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        if not step.reading:
            return {}
        every = Rows(0, step.count, torch.ones_like(self.to.layout.valid))
        return {
            layer: [
                InputProbe(self._input),
                WeightProbe(self._weights, every),
                OutputProbe(partial(self._output, layer)),
            ]
            for layer in range(self.layers)
        }

    def _input(self, hidden: Tensor) -> None:
        state = hidden.float()
        self.to.hidden.append((state * torch.rsqrt(state.square().mean(-1, keepdim=True) + 1e-6)).abs())

    def _weights(self, weights: Tensor, keys: slice, first: int) -> None:
        layout, valid = self.to.layout, self.to.layout.valid.float()
        if first == 0:  # a long prompt arrives in several pieces
            self.before = weights[:, :, :1]
            self.to.received.append(torch.zeros_like(valid))
            self.to.rise.append(torch.zeros(weights.shape[:2]))
        rows = slice(first, first + weights.shape[2])
        behind = valid.flip(1).cumsum(1).flip(1)  # valid rows that see each token
        share = torch.einsum("bhrk,br->bk", weights, valid[:, rows]) / weights.shape[1]
        self.to.received[-1] += share / behind.clamp(min=1)
        change = (weights - torch.cat([self.before, weights[:, :, :-1]], dim=2)).clamp(min=0)
        asked, image = layout.query[:, rows].float(), layout.image.float()
        self.to.rise[-1] += torch.einsum("bhrk,br,bk->bh", change, asked, image)
        self.before = weights[:, :, -1:].clone()

    def _output(self, layer: int, output: Tensor) -> None:
        last = output[torch.arange(len(output)), self.to.layout.last].float()
        self.to.divergence.append((last - self.text[layer]).square().sum(-1))


def look(model: Any, processor: Any, batches: Sequence[Any]) -> list[Observation]:
    """Read each batch of prompts (the processor's output) once, plain, and return what the probes saw."""
    methods: list[Look] = []

    def make(facts: ModelFacts) -> dict[str, Method]:
        methods.append(Look(Settings(), facts))
        return {"look": methods[0]}

    with observe(model, make, processor=processor), torch.no_grad():
        for batch in batches:
            model(**batch)
    return methods[0].seen
