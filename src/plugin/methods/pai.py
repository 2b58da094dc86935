"""PAI, pay attention to image: raise the image's attention logits at the row that answers.

Source: arXiv 2407.21771 (ECCV 2024) and its release. In the last prompt row and every decode row, for all heads of the
chosen layers, before the softmax and over image keys:

    e_j <- e_j + alpha |e_j|

Published: alpha 0.2 and layers 2 to the last in the README (other values per model in the paper), with the logit
refinement, the decoder `pai_guidance`. In the release, with the refinement on, the prompt's pass goes without the boost,
which looks like an accident; here it is boosted, unless `prompt: false` asks for what was released. The boost grows with
the logit and can run away: captions get longer or break down.
Ours, where the calibration says what it needs: the boost ends behind a reply of twice the plain model's length
(`guard.py`), and secondary sinks among the image tokens stay as they are (`secondary.py`).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..core.edits import Edit, Keys, Reweight, boosted
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session
from ..core.registry import register
from .guard import GuardSettings, ReplyGuard
from .secondary import Boostable, SkipSecondary

FIRST_LAYER = 2


class PAISettings(GuardSettings):
    alpha: float = Field(0.2, ge=0, description="share of its absolute value that an image logit gains")
    layers: list[int] | None = Field(None, min_length=1, description="boosted layers; default: from 2 on")
    prompt: bool = Field(
        True,
        description="boost the prompt's last row too; false: the answer's rows alone (released, with its refinement)",
    )
    skip_secondary: SkipSecondary = True


@register("pai")
class PAI(Method):
    summary = "raise the image's attention logits in proportion to their size"
    source = "arXiv 2407.21771"
    cost = "no extra pass; explicit weights for one row"
    acts = "weights"
    weighs_image = True
    config = PAISettings

    def __init__(self, settings: PAISettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = settings.layers if settings.layers is not None else range(FIRST_LAYER, facts.layers)
        self.layers = facts.check_layers(layers, "pai.layers")
        self.guard = ReplyGuard(settings, facts)

    def start(self, layout: Layout) -> PAISession:
        return PAISession(self, layout)


class PAISession(Session):
    def __init__(self, method: PAI, layout: Layout):
        self.method, self.layout = method, layout
        self.boostable = Boostable(layout, method.facts, method.layers, method.settings.skip_secondary)

    def resume(self, earlier: PAISession) -> None:
        self.boostable.resume(earlier.boostable)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        edits, rows = self.boostable.probes(step), None
        if step.reading:
            rows = step.rows(self.layout.last_token)
            if rows is None or not self.method.settings.prompt:
                return edits
        for layer in self.method.layers:
            edits.setdefault(layer, []).append(
                Reweight(self._boost, rows, headwise=True, along=self.boostable.along(layer))
            )
        return edits

    def _boost(self, weights: Tensor, logits: Tensor, keys: Keys, image: Tensor) -> Tensor:
        bonus = self.method.settings.alpha * logits[..., : image.shape[-1]].abs()
        return boosted(weights, bonus, image[:, None, None] & self.method.guard.within(logits, keys))
