"""LocoRE, local coherence reinforcement: a generated token looks harder at the tokens generated just before it.

Source: arXiv 2601.20279 (ICLR 2026), the part without gradients; it is not in the release. The attention from the token
at position P + 1 to the generated token at position j is multiplied by

    1 + beta  where  P - j <= w

so the row's own key is left out, w + 1 earlier ones are in, and prompt rows and the first generated token stay plain.

What paper and release say apart from that, and what is ours: docs/methods/locore.md.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.edits import Edit, Keys, Reweight, log_weights, own_key, visible
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings
from ..core.registry import register


class LocoRESettings(Settings):
    beta: float = Field(0.15, ge=0, description="what the factor on recent generated tokens exceeds 1 by")
    window: int = Field(32, ge=0, description="distance w up to which a token counts as recent")
    form: Literal["weights", "logits"] = Field("weights", description="multiply behind or before the softmax")
    renormalise: bool = Field(True, description="normalise the row again (`form: weights`)")
    layers: list[int] | None = Field(None, min_length=1, description="default: 9 to 14 of 32 in proportion")


@register("locore")
class LocoRE(Method):
    summary = "look harder at the tokens generated last"
    source = "arXiv 2601.20279"
    cost = "no extra pass; explicit weights in decode steps"
    acts = "weights"
    needs_image = False
    config = LocoRESettings

    def __init__(self, settings: LocoRESettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = facts.proportion(9, 15) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "locore.layers")

    def start(self, layout: Layout) -> LocoRESession:
        return LocoRESession(self)


class LocoRESession(Session):
    def __init__(self, method: LocoRE):
        self.method = method

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        if step.reading:
            return {}
        return {layer: [Reweight(self._reinforce, headwise=True)] for layer in self.method.layers}

    def _reinforce(self, weights: Tensor, logits: Tensor, keys: Keys) -> Tensor:
        settings = self.method.settings
        recent = recent_keys(logits, keys.answer, settings.window)
        if settings.form == "logits":  # on top of what earlier methods made of the weights
            return (log_weights(weights) + settings.beta * torch.where(recent, logits, 0.0)).softmax(-1)
        weights = weights * (1 + settings.beta * recent)
        return weights / weights.sum(-1, keepdim=True) if settings.renormalise else weights


def recent_keys(logits: Tensor, first: int | Tensor, window: int) -> Tensor:
    """Which keys are generated tokens 1 to window + 1 before the row's own: [B, 1, R, K].

    logits: masked, [B, H, R, K]. first: column of the first generated token; negative where a sliding cache dropped it.
    """
    columns = torch.arange(logits.shape[-1], device=logits.device)
    own = own_key(logits)
    return (columns >= first) & (columns < own) & (own - columns <= window + 1) & visible(logits)
