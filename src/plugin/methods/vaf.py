"""VAF (ClearSight): amplify the image's logits in the middle layers, and dampen those of the system prompt.

Source: arXiv 2503.13107 (ClearSight, CVPR 2025) and its release. In the rows behind the image and in every row of
the answer, for all heads of the chosen layers, before the softmax:

    s_j <- e s_j  for image keys j,    s_j <- u s_j  for the keys in front of the image, the first token included

A negative logit turns the other way: times 1.15 it gets smaller.

What paper and release say apart from that, and what is ours: docs/methods/vaf.md.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ..core.edits import Edit, Keys, Reweight, boosted
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings
from ..core.registry import register


class VAFSettings(Settings):
    enhance: float = Field(1.15, ge=0, description="e, factor on the logits of image keys; 1: none")
    suppress: float = Field(0.95, ge=0, description="u, factor on those of the keys in front of the image; 1: none")
    layers: list[int] | None = Field(None, min_length=1, description="edited; default: 9 to 14 of 32 in proportion")


@register("vaf")
class VAF(Method):
    summary = "scale the logits of the image up and of the system prompt down"
    source = "arXiv 2503.13107"
    cost = "no extra pass; explicit weights for the edited rows"
    acts = "weights"
    weighs_image = True
    config = VAFSettings

    def __init__(self, settings: VAFSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = facts.proportion(9, 15) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "vaf.layers")

    def start(self, layout: Layout) -> VAFSession:
        return VAFSession(self, layout)


class VAFSession(Session):
    def __init__(self, method: VAF, layout: Layout):
        self.method, self.layout = method, layout
        seeing = layout.image.any(-1, keepdim=True)
        system = layout.valid & (layout.image.cumsum(-1) == 0) & seeing
        e, u = method.settings.enhance - 1, method.settings.suppress - 1
        self.change = e * layout.image.float() + u * system.float()  # what a logit gains, as a share of it [B, n]

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        rows = None
        if step.reading:
            rows = step.rows(self.layout.after_image)
            if rows is None:
                return {}
        return {
            layer: [Reweight(self._scale, rows, headwise=True, along=lambda: (self.change,))]
            for layer in self.method.layers
        }

    def _scale(self, weights: Tensor, logits: Tensor, keys: Keys, change: Tensor) -> Tensor:
        change = change[:, None, None]
        return boosted(weights, change * logits[..., : change.shape[-1]], torch.ones_like(change, dtype=torch.bool))
