"""CG-VLM, conscious gaze: push the model's gaze to the image at tokens where image and text decide together.

Source: arXiv 2512.05546 and its release. In the last row of the pass, before the softmax and over the image's keys, every
head of the chosen layers gets the same bonus, from its logits s:

    s_hj <- s_hj + alpha * mean over heads h' of |s_h'j|

It acts where the gate is open: on the signal `interaction`, the spread of what picture and text say together over the
likeliest tokens, measured ahead of each token by four runs of the plain model.

What paper and release say apart from that, and what is ours: docs/methods/cgvlm.md.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..core.edits import Edit, Keys, Reweight, boosted
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings
from ..core.registry import register
from ..core.when import When
from .secondary import Boostable, SkipSecondary

GATE = When(signal="interaction", above=1.0, picture="random")


class CGVLMSettings(Settings):
    when: When | None = Field(GATE, description="the gate; published: interaction above 1.0; null: every token")
    alpha: float = Field(0.5, ge=0, description="share of the heads' mean absolute logit that an image logit gains")
    layers: list[int] | None = Field(None, min_length=1, description="boosted; default: 5 to 18 of 32 in proportion")
    skip_secondary: SkipSecondary = True


@register("cgvlm")
class CGVLM(Method):
    summary = "boost the image where image and text decide together"
    source = "arXiv 2512.05546"
    cost = "the prompt four more times; two passes per token, of four times the rows and of one"
    acts = "weights"
    weighs_image = True
    config = CGVLMSettings

    def __init__(self, settings: CGVLMSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = facts.proportion(5, 19) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "cgvlm.layers")

    def start(self, layout: Layout) -> CGVLMSession:
        return CGVLMSession(self, layout)


class CGVLMSession(Session):
    def __init__(self, method: CGVLM, layout: Layout):
        self.method, self.layout = method, layout
        self.boostable = Boostable(layout, method.facts, method.layers, method.settings.skip_secondary)

    def resume(self, earlier: CGVLMSession) -> None:
        self.boostable.resume(earlier.boostable)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        edits, rows = self.boostable.probes(step), None
        if step.reading:
            rows = step.rows(self.layout.last_token)
            if rows is None:
                return edits
        for layer in self.method.layers:
            edits.setdefault(layer, []).append(Reweight(self._boost, rows, along=self.boostable.along(layer)))
        return edits

    def _boost(self, weights: Tensor, logits: Tensor, keys: Keys, image: Tensor) -> Tensor:
        bonus = self.method.settings.alpha * logits[..., : image.shape[-1]].abs().mean(1, keepdim=True)
        return boosted(weights, bonus, image[:, None, None])
