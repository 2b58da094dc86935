"""ZeroTuning: turn the attention on the first token up or down, and all other attention with it.

Source: arXiv 2505.11739 (ICLR 2026) and its release. The first token is where heads put attention that they have no use
for. Its weight is multiplied by a factor g and the row normalised again, in every row of the chosen heads:

    a_0' = g a_0 / ((g - 1) a_0 + 1),    a_i' = a_i / ((g - 1) a_0 + 1)

which is the bias log g on the first key, so it stays on the fused kernel. In a padded row the first token is the first
that is not padding.

What paper and release say apart from that, and what is ours: docs/methods/zerotuning.md.
"""

from __future__ import annotations

import torch
from pydantic import Field

from ..branches.heads import Head
from ..core.edits import Bias, Edit
from ..core.layout import Layout, Step
from ..core.method import FixedGains, Method, ModelFacts, Session, Settings
from ..core.registry import register

DEMO_GAIN = 4.0


class ZeroTuningSettings(Settings):
    gain: float | None = Field(
        None, ge=1e-6, description="factor on the first token's attention; default: the calibration's per head, else 4"
    )
    layers: list[int] | None = Field(None, min_length=1, description="layers of `gain`; default: all")
    head_list: list[Head] | None = Field(None, min_length=1, description="[layer, head] of `gain` instead")


@register("zerotuning")
class ZeroTuning(Method):
    summary = "scale the attention on the first token"
    source = "arXiv 2505.11739"
    cost = "no extra pass; a bias on the fused kernel"
    acts = "logits"
    needs_image = False
    config = ZeroTuningSettings

    def __init__(self, settings: ZeroTuningSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        gains = torch.ones(facts.layers, facts.heads)
        known = facts.calibration.first_token if facts.calibration is not None else None
        if settings.head_list is not None:
            for layer, head in facts.check_heads(settings.head_list, "zerotuning.head_list"):
                gains[layer, head] = settings.gain or DEMO_GAIN
        elif settings.gain is None and settings.layers is None and known is not None:
            gains = torch.tensor(known.gains)
        else:
            layers = facts.own(range(facts.layers)) if settings.layers is None else settings.layers
            gains[list(facts.check_layers(layers, "zerotuning.layers"))] = settings.gain or DEMO_GAIN
        self.gains = gains  # [layers, H]

    def start(self, layout: Layout) -> ZeroTuningSession:
        return ZeroTuningSession(self, layout)

    @classmethod
    def check_fixed(cls, settings: ZeroTuningSettings) -> None:
        """Its factors are known before any prompt."""

    def fixed(self) -> FixedGains:
        return FixedGains(self.gains, of="first")


class ZeroTuningSession(Session):
    def __init__(self, method: ZeroTuning, layout: Layout):
        first = layout.first_token[:, None]
        self.plan: dict[int, list[Edit]] = {}
        for layer, gains in enumerate(method.gains):
            if bool((gains != 1).any()):
                self.plan[layer] = [Bias(gains.log().to(first.device)[None, :, None] * first)]

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return self.plan
