"""SID: contrast with the same model that sees only the image tokens which it looks at least.

Source: arXiv 2408.02032 (ICLR 2025) and its release. At every token anew, by the attention (mean over heads) that layer 1
of the model pays to the image from the last row: from layer 2 on the copy sees the least attended share of the image
tokens, in all rows of the pass; below it is the model.

    score = (1 + a) z - a z'   where p >= beta * max p, else -inf

What paper and release say apart from that, and what is ours: docs/methods/sid.md.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..plugin.branches.branch import Branch
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.core.edits import HIDDEN, Bias, Edit, Edits, Rows, WeightProbe
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts, lacking
from .contrast import ContrastSettings, LogitContrast


class SIDSettings(ContrastSettings):
    alpha: float = Field(0.5, description="strength of the contrast; the parser's 1 never acts in the release")
    share: float = Field(
        100 / 576, gt=0, lt=1, description="of the image tokens, the least attended, that the copy sees; LLaVA-1.5: 100"
    )
    layer: int = Field(2, ge=1, description="first layer in which the copy sees fewer; the one before it decides which")


@register_decoder("sid")
class SID(Decoder):
    summary = "contrast with only those image tokens that are looked at least"
    source = "arXiv 2408.02032"
    cost = "explicit weights of one row in layer 1; twice the rows from layer 2 on, prompt included"
    weighs_image = True
    config = SIDSettings

    def __init__(self, settings: SIDSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        facts.check_layers([settings.layer - 1, settings.layer], "sid.layer")

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return SIDContrast(self, layout)


class SIDContrast(LogitContrast):
    def __init__(self, decoder: SID, layout: Layout):
        super().__init__(decoder, layout)
        self.visible: Tensor | None = None  # image tokens that the copy sees [B, n]
        self._hiding: Edits = {}
        self.branch = Branch("beside", lambda step: self._hiding, decoder.settings.layer, anew=True)

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        if step.start + step.count < self.layout.length:
            return {}
        last = Rows(step.count - 1, step.count, self.layout.valid[:, -1:])
        return {self.decoder.settings.layer - 1: [WeightProbe(self._see, last)]}

    def _see(self, weights: Tensor, keys: slice, first: int) -> None:
        attention = self.layout.of_prompt(weights[:, :, -1], keys).mean(1)
        image = self.layout.image.to(attention.device)
        self.visible = least_attended(attention, image, self.decoder.settings.share)
        hidden = [Bias(torch.where(image & ~self.visible, HIDDEN, 0.0)[:, None])]
        facts = self.decoder.facts
        self._hiding = dict.fromkeys(facts.own(range(self.decoder.settings.layer, facts.layers)), hidden)

    def idle(self) -> dict[int, str]:
        images = self.layout.image.sum(-1)
        fewer = kept(images, self.decoder.settings.share) < images
        return lacking(fewer, "its copy sees all image tokens: so large a share of so few is all of them")

    def report(self) -> dict[str, Any]:
        """visible: mask [B][n] of the image tokens that the copy saw at the last token."""
        return {} if self.visible is None else {"visible": self.visible.tolist()}


def least_attended(attention: Tensor, image: Tensor, share: float) -> Tensor:
    """Mask [B, n] of that share of each row's image tokens, at least one, from attention [B, n]; the first of equals."""
    order = attention.masked_fill(~image, torch.inf).argsort(dim=-1, stable=True)
    return image & (order.argsort(dim=-1) < kept(image.sum(-1, keepdim=True), share))


def kept(tokens: Tensor, share: float) -> Tensor:
    """How many of so many image tokens that share is, at least one."""
    return (share * tokens).round().clamp(min=1)
