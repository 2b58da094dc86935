"""CG-VLM, conscious gaze: push the model's gaze to the image at tokens where image and text decide together.

Source: arXiv 2512.05546 and its release. Ahead of each token four runs of the plain model say what comes next, over the
picture and the text, without the one, the other, and both. Their interaction for token y, and its spread over the top-k
tokens of the full run, are

    I_y = l(full) - l(text masked) - l(image masked) + l(both masked),    D = var I (unbiased, of raw logits)

The gate is open where D exceeds the threshold. There, in the last row of the pass, before the softmax and over the image's
keys, every head of the chosen layers gets the same bonus, from its logits s:

    s_hj <- s_hj + alpha * mean over heads h' of |s_h'j|

What paper and release say apart from that, and what is ours: docs/methods/cgvlm.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..plugin.branches import prompts
from ..plugin.branches.branch import Branch, Rewrite
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.branches.pictures import redrawn
from ..plugin.core.edits import Edit, Reweight, Rows, boosted
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts, Settings, lacking
from ..plugin.methods.secondary import Boostable, SkipSecondary


class CGVLMSettings(Settings):
    alpha: float = Field(0.5, ge=0, description="share of the heads' mean absolute logit that an image logit gains")
    threshold: float = Field(1.0, description="spread of the interaction above which the gate opens")
    candidates: int = Field(50, ge=2, description="k, likeliest tokens over which the spread is taken")
    layers: list[int] | None = Field(None, min_length=1, description="boosted; default: 5 to 18 of 32 in proportion")
    picture: Literal["random", "none"] = Field("random", description="the masked image: random pixels, or left out")
    seed: int = Field(0, description="of the random pixels")
    skip_secondary: SkipSecondary = True


@register_decoder("cgvlm")
class CGVLM(Decoder):
    summary = "boost the image where image and text decide together"
    source = "arXiv 2512.05546"
    cost = "the prompt four more times; two passes per token, of four times the rows and of one"
    own_prompt = True
    weighs_image = True
    config = CGVLMSettings

    def __init__(self, settings: CGVLMSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = facts.proportion(5, 19) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "cgvlm.layers")
        self.redraws = settings.picture == "random"

    def redraw(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if not self.redraws:
            return {}
        return redrawn(kwargs, lambda pixels: random_pixels(pixels, self.settings.seed))

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return CGVLMContrast(self, layout)


class CGVLMContrast(Contrast):
    ahead = True

    def __init__(self, decoder: CGVLM, layout: Layout):
        self.decoder, self.layout = decoder, layout
        self.branch = Branch((self._masked(text=True), self._masked(image=True), self._masked(text=True, image=True)))
        self.spread = torch.zeros(layout.batch, 1)  # D of the pass [B, T]
        self.open = self.spread > 0
        self.boostable = Boostable(layout, decoder.facts, decoder.layers, decoder.settings.skip_secondary)
        self.memory = {"opened": layout.ids.new_zeros(layout.batch)}  # how often it was

    def _masked(self, text: bool = False, image: bool = False) -> Rewrite:
        """The prompt without its question, without its image, or without both."""
        layout = self.layout

        def rewrite(kwargs: dict[str, Any]) -> dict[str, Any]:
            left_out = layout.query if text else torch.zeros_like(layout.query)
            if image and not self.decoder.redraws:
                return prompts.without(kwargs, layout, left_out | layout.image, self.decoder.facts.pictures)
            given = {**kwargs, **self.redrawn} if image else kwargs
            return (
                prompts.without({**given, **unasked(given)}, layout, left_out) if text else prompts.same(given, layout)
            )

        return rewrite

    def weigh(self, base: Tensor, weak: Tensor) -> None:
        settings = self.decoder.settings
        textless, imageless, neither = weak.chunk(3)
        best = base.topk(min(settings.candidates, base.shape[-1])).indices
        self.spread = (base - textless - imageless + neither).gather(-1, best).var(-1)
        self.open = (self.spread > settings.threshold).to(self.layout.ids.device)
        opened = self.memory["opened"]
        self.memory = {"opened": opened + self.open.sum(-1).to(opened)}

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        edits, count, rows = self.boostable.probes(step), self.open.shape[1], step.count
        last = step.start + rows >= self.layout.length
        if not last or not bool(self.open.any()):
            return edits
        for layer in self.decoder.layers:
            boost = Reweight(partial(self._boost, layer), Rows(rows - count, rows, self.open))
            edits.setdefault(layer, []).append(boost)
        return edits

    def _boost(self, layer: int, weights: Tensor, logits: Tensor, keys: slice) -> Tensor:
        image = self.boostable[layer][:, keys].to(logits.device)[:, None, None]
        bonus = self.decoder.settings.alpha * logits[..., : image.shape[-1]].abs().mean(1, keepdim=True)
        return boosted(weights, bonus, image)

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        return base

    def idle(self) -> dict[int, str]:
        return lacking(self.layout.query.any(-1), "it has no question token behind the image to leave out")

    def report(self) -> dict[str, Any]:
        """spread: D of the last row [B]; opened: how many rows of the answer were boosted [B]."""
        return {"spread": self.spread[:, -1].tolist(), "opened": self.memory["opened"].tolist()}


def unasked(kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a Q-Former that reads the question [pictures, m] gets of empty text: the first and the last token."""
    ids, mask = kwargs.get("qformer_input_ids"), kwargs.get("qformer_attention_mask")
    if ids is None:
        return {}
    seen = torch.ones_like(ids) if mask is None else mask
    last = ids.shape[1] - 1 - seen.flip(-1).argmax(-1)
    ends = torch.stack([seen.argmax(-1), last], dim=-1)
    return {"qformer_input_ids": ids.gather(1, ends), "qformer_attention_mask": torch.ones_like(ends)}


def random_pixels(pixels: Tensor, seed: int) -> Tensor:
    """A picture of any shape, uniformly random between the smallest and the largest value of the given one."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(pixels.shape, generator=generator, dtype=torch.float32).to(pixels)
    return pixels.amin() + (pixels.amax() - pixels.amin()) * share
