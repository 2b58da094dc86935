"""GIFT, gaze-shift guided attention: image tokens that the question made the model look at stay in view.

Source: arXiv 2510.22067 (ICML 2026) and its release; checked against the release's behaviour.

Saliency, once per prompt, from the weights a of the saliency layers: for each question row i the positive change
max(a_i - a_(i-1), 0) over the image columns (the first row against the token just before it); per layer the half of the
heads with the largest total; mean over layers, those heads and rows; clamped to mean +- 3 std (unbiased), scaled to
[0, 1] -> s_j; multiplier m_j = exp(alpha s_j).
Enhancement, in the last prompt row and every decode row of the enhanced layers: the half of the heads with the largest
visual mass gets a_j * m_j on the image; r is the ratio of visual mass after to before, over those heads, one number per
layer; the half with the largest mass on the question gets a_j * beta * r there; rows are normalised again.

What paper and release say apart from that, and what is ours: docs/methods/gift.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...common.errors import ConfigError
from ..calibration.files import Gaze
from ..core.edits import Edit, Mass, WeightProbe
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings, lacking
from ..core.registry import register
from .secondary import Boostable, SkipSecondary


class GIFTSettings(Settings):
    alpha: float | None = Field(
        None, ge=0, le=50, description="strength of the image multiplier, at most e^alpha; default: the calibration's"
    )
    beta: float = Field(1.0, ge=0, description="factor on the question's share of the gain")
    saliency_layers: list[int] | None = Field(None, min_length=1, description="default: the calibration's")
    enhanced_layers: list[int] | None = Field(None, min_length=1, description="default: the calibration's")
    words: Literal["all", "content"] = Field("all", description="question rows: all, or content words (needs a tagger)")
    skip_secondary: SkipSecondary = True


@register("gift")
class GIFT(Method):
    summary = "keep the image regions that the question points at in view"
    source = "arXiv 2510.22067"
    cost = "no extra pass (one token held back where saliency comes late); explicit weights for one row"
    acts = "weights"
    needs = ("gaze",)
    weighs_image = True
    config = GIFTSettings

    def __init__(self, settings: GIFTSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        alpha, saliency, enhanced = settings.alpha, settings.saliency_layers, settings.enhanced_layers
        if alpha is None or saliency is None or enhanced is None:
            gaze: Gaze = facts.need("gaze", "gift")
            alpha = gaze.alpha if alpha is None else alpha
            saliency, enhanced = saliency or gaze.saliency_layers, enhanced or gaze.enhanced_layers
        self.alpha = alpha
        self.saliency_layers = facts.check_layers(saliency, "gift.saliency_layers")
        self.enhanced_layers = facts.check_layers(enhanced, "gift.enhanced_layers")
        self.kept_heads = facts.heads // 2
        if settings.words == "content" and facts.text.words is None:
            raise ConfigError(
                "gift: 'words: content' needs a tagger and a processor: pass processor=..., and install spaCy with its"
                " model en_core_web_sm or pass tagger=..., or use 'words: all'"
            )

    def start(self, layout: Layout) -> GIFTSession:
        return GIFTSession(self, layout)


class GIFTSession(Session):
    def __init__(self, method: GIFT, layout: Layout):
        self.method, self.layout = method, layout
        self.hold_back = method.saliency_layers[-1] >= method.enhanced_layers[0]
        words = method.facts.text.words if method.settings.words == "content" else None
        self.words = layout.query if words is None else words(layout.ids, layout.query)
        self.change: dict[int, Tensor] = {}  # positive change summed over the question rows [B, H, n], by layer
        self.before: dict[int, Tensor] = {}  # weights of the row before the next chunk [B, H, n]
        self.gaze: Tensor | None = None  # the map s [B, n]
        self.groups: dict[int | None, tuple[Tensor, Tensor]] = {}  # by layer; None: layers without secondary sinks
        self.boostable = Boostable(layout, method.facts, method.enhanced_layers, method.settings.skip_secondary)

    def resume(self, earlier: GIFTSession) -> None:
        self.boostable.resume(earlier.boostable)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        edits, rows = self.boostable.probes(step), None
        if step.reading:
            # One row more than the question, to compare its first row with.
            wanted = self.words | torch.nn.functional.pad(self.words[:, 1:], (0, 1))
            spoken = step.rows(wanted)
            if spoken is not None and not self.change:  # read once, where a prompt is passed twice
                for layer in self.method.saliency_layers:
                    see = self._see(layer, step.start)
                    edits.setdefault(layer, []).append(WeightProbe(see, spoken))
            answer = torch.arange(self.layout.length, device=self.layout.ids.device) >= self.layout.last[:, None]
            rows = step.rows(answer)
            if rows is None:
                return edits
        for layer in self.method.enhanced_layers:
            keys, basis = partial(self._groups, layer, 0), partial(self._groups, layer, 1)
            edits.setdefault(layer, []).append(Mass(keys, self._rule, basis, renormalise=True, rows=rows))
        return edits

    def _see(self, layer: int, start: int) -> Any:
        def see(weights: Tensor, keys: slice, first: int) -> None:
            seen = self.layout.of_prompt(weights, keys)
            before = self.before.get(layer, seen[:, :, 0])[:, :, None]
            rise = (seen - torch.cat([before, seen[:, :, :-1]], dim=2)).clamp(min=0)
            counted = self.words[:, start + first : start + first + seen.shape[2]].to(seen)
            total = torch.einsum("bhrn,br->bhn", rise, counted) * self.layout.image[:, None].to(seen)
            self.change[layer] = self.change[layer] + total if layer in self.change else total
            self.before[layer] = seen[:, :, -1].clone()

        return see

    def _groups(self, layer: int, which: int) -> Tensor:
        """The layer's image, question and image * m [B, n, 3], or, `which` 1, image * (m - 1) and question [B, n, 2]."""
        key = layer if layer in self.boostable.layers else None
        if key not in self.groups:
            if self.gaze is None:
                self.gaze = self._saliency()
                self.before.clear()
            image, raised = self.layout.image.float(), self.boostable[layer].to(self.gaze.device)
            multiplier = torch.exp(self.method.alpha * self.gaze * raised)
            # A row with a flat map has nothing to keep in view: its question is left alone too, whatever beta.
            query = (self.layout.query & self.gaze.any(-1, keepdim=True)).float()
            masses = torch.stack([image, query, image * multiplier], dim=-1)
            self.groups[key] = masses, torch.stack([image * (multiplier - 1), query], dim=-1)
        return self.groups[key][which]

    def _saliency(self) -> Tensor:
        """Saliency s [B, n] in [0, 1], zero outside the image."""
        if not self.change:
            return torch.zeros_like(self.layout.image, dtype=torch.float32)
        device = self.layout.image.device
        return saliency(
            [c.to(device) for c in self.change.values()], self.words.sum(-1), self.layout.image, self.method.kept_heads
        )

    def _rule(self, masses: Tensor) -> Tensor:
        return enhance(masses, self.method.kept_heads, self.method.settings.beta)

    def idle(self) -> dict[int, str]:
        return lacking(self.words.any(-1), "it has no question token behind the image")

    def report(self) -> dict[str, Any]:
        """saliency: [B][n], the map over the prompt's tokens."""
        return {"saliency": self._saliency().tolist()}


def saliency(change: list[Tensor], rows: Tensor, image: Tensor, kept: int) -> Tensor:
    """The map s [B, n] from the summed positive changes [B, H, n] of each layer and the number of question rows [B]."""
    kept_changes = []
    for layer in change:
        top = layer.sum(-1).topk(kept, dim=-1).indices
        kept_changes.append(layer.gather(1, top[:, :, None].expand(-1, -1, layer.shape[-1])).mean(1))
    score = torch.stack(kept_changes).mean(0) / rows.clamp(min=1)[:, None]

    count = image.sum(-1, keepdim=True).clamp(min=2)
    mean = (score * image).sum(-1, keepdim=True) / count
    std = (((score - mean).square() * image).sum(-1, keepdim=True) / (count - 1)).sqrt()
    score = score.clamp(mean - 3 * std, mean + 3 * std)
    low = score.masked_fill(~image, torch.inf).amin(-1, keepdim=True)
    high = score.masked_fill(~image, -torch.inf).amax(-1, keepdim=True)
    flat = ~(high > low)
    return torch.where(flat | ~image, torch.zeros_like(score), (score - low) / torch.where(flat, 1.0, high - low))


def enhance(masses: Tensor, kept: int, beta: float) -> Tensor:
    """Coefficients [B, H, R, 2] of the multiplied image and of the question.

    masses: [B, H, R, 3] of the image, the question and the multiplied image.
    """
    both = masses[..., :2]
    chosen = torch.zeros_like(both).scatter_(1, both.topk(kept, dim=1).indices, 1.0)  # who looks, who listens
    before, after = (masses[..., ::2] * chosen[..., :1]).sum(1, keepdim=True).unbind(-1)
    looked = before > 0
    ratio = torch.where(looked, after / torch.where(looked, before, 1.0), 1.0)
    return torch.stack([chosen[..., 0], chosen[..., 1] * (beta * ratio - 1)], dim=-1)
