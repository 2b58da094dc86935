"""JuICE: run twice, and add to the second run what chosen heads said in the first.

Source: arXiv 2503.10996 (ICML 2025) and its release. Heads that favour the wanted answer under knowledge conflict
(calibration section `conflict_heads`) are enlarged, those that disfavour it suppressed: at every position, the second
run's head output gets + a_e (enhance) or - a_s (suppress) times the *first*, clean run's output of the same head, through
that head's slice of W_O. The logits of the second run are the answer; nothing is contrasted.

What paper and release say apart from that, and what is ours: docs/methods/juice.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..common.errors import ConfigError
from ..plugin.branches.branch import Branch, Edits
from ..plugin.branches.decoder import Contrast, Decoder, FixedCopy, register_decoder
from ..plugin.branches.heads import Head, masks
from ..plugin.core.edits import Add, Edit, OutputProbe
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts, Settings


class JuICESettings(Settings):
    heads: int = Field(5, ge=1, description="how many heads of each kind are taken from the calibration")
    enhance: list[Head] | None = Field(None, description="[layer, head] to enlarge; default: calibration")
    suppress: list[Head] | None = Field(None, description="[layer, head] to suppress; default: calibration")
    alpha_enhance: float = Field(1.0, ge=0, description="how much of an enlarged head's clean output is added")
    alpha_suppress: float = Field(1.0, ge=0, description="how much of a suppressed head's clean output is taken away")


@register_decoder("juice")
class JuICE(Decoder):
    summary = "run twice; add to the second run what chosen heads said in the first"
    source = "arXiv 2503.10996"
    cost = "twice the rows from the first chosen layer on, prompt included"
    needs = ("conflict_heads",)
    needs_image = False
    config = JuICESettings

    def __init__(self, settings: JuICESettings, facts: ModelFacts):
        super().__init__(settings, facts)
        enhance, suppress = settings.enhance, settings.suppress
        if enhance is None and suppress is None:
            found = facts.need("conflict_heads", "juice", "decoder")
            enhance, suppress = found.enhance[: settings.heads], found.suppress[: settings.heads]
        factors: dict[Head, float] = dict.fromkeys(
            facts.check_heads(enhance or (), "juice.enhance"), settings.alpha_enhance
        )
        for head in facts.check_heads(suppress or (), "juice.suppress"):
            factors[head] = factors.get(head, 0.0) - settings.alpha_suppress
        self.heads = {head: factor for head, factor in factors.items() if factor}
        if not self.heads:
            raise ConfigError("juice: no head is changed, so the second run equals the first: give heads and strengths")
        self.factors: dict[int, Tensor] = {}  # [1, 1, H, 1] by layer
        for layer, mask in masks(list(self.heads), facts).items():
            row = mask[0].float()
            for head in mask[0].nonzero().flatten().tolist():
                row[head] = self.heads[layer, head]
            self.factors[layer] = row[None, None, :, None]

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return JuICEContrast(self)

    @classmethod
    def check_fixed(cls, settings: JuICESettings) -> None:
        """Its heads are known before any prompt."""

    def fixed(self) -> FixedCopy:
        factors = torch.zeros(self.facts.layers, self.facts.heads)
        for (layer, head), factor in self.heads.items():
            factors[layer, head] = factor
        return FixedCopy("add", factors, "all")

    @classmethod
    def combined(cls, settings: JuICESettings, base: Tensor, weak: Tensor, written: Tensor | None = None) -> Tensor:
        return weak


class JuICEContrast(Contrast):
    def __init__(self, decoder: JuICE):
        self.decoder = decoder
        self.clean: dict[int, Tensor] = {}  # the first run's head outputs of this pass [B, q, H, d], by layer
        self.branch = Branch("beside", self._edits, min(decoder.factors))

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        return {layer: [OutputProbe(partial(self.clean.__setitem__, layer))] for layer in self.decoder.factors}

    def _edits(self, step: Step) -> Edits:
        return {layer: [Add(partial(self._addition, layer))] for layer in self.decoder.factors}

    def _addition(self, layer: int, output: Tensor) -> Tensor:
        return self.clean.pop(layer) * self.decoder.factors[layer].to(output)

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        assert weak is not None
        return self.decoder.combined(self.decoder.settings, base, weak)

    def report(self) -> dict[str, Any]:
        """heads: what is added of each head, by "layer-head"."""
        return {"heads": {f"{layer}-{head}": factor for (layer, head), factor in self.decoder.heads.items()}}
