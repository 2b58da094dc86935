"""AvisC: contrast with the image tokens that draw attention without being asked for.

Source: arXiv 2405.17820 (Findings of ACL 2025) and its release. From the last prompt row of the model's own pass:
each layer's attention mass on the image (mean over heads); the fewest layers whose shares of the total reach gamma; their
mean attention per image token; blind tokens are those at or above mean + lambda * std (unbiased, per row). The copy sees
only them: the embeddings of the others are zero.

    score = (1 + a) z - a z'   where p >= beta * max p, else -inf

What paper and release say apart from that, and what is ours: docs/methods/avisc.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..common.errors import UnsupportedModelError
from ..plugin.branches import prompts
from ..plugin.branches.branch import Branch, Edits
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.core.edits import Edit, Input, WeightProbe
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts
from .contrast import ContrastSettings, LogitContrast


class AvisCSettings(ContrastSettings):
    gamma: float = Field(0.5, gt=0, le=1, description="share of the image attention that the chosen layers hold")
    lam: float = Field(1.0, description="standard deviations above the mean that make a token blind")
    fill: Literal["zeros", "ones", "noise"] = Field("zeros", description="what the other tokens' embeddings become")


@register_decoder("avisc")
class AvisC(Decoder):
    summary = "contrast with only those image tokens that draw attention unasked"
    source = "arXiv 2405.17820"
    cost = "explicit weights of one prompt row; the prompt once more; twice the rows per token"
    weighs_image = True
    config = AvisCSettings
    own_prompt = True

    def __init__(self, settings: AvisCSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if facts.architecture == "qwen3_vl":
            raise UnsupportedModelError(
                "avisc empties image embeddings, but qwen3_vl adds image features between its layers too: use vcd"
            )

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return AvisCContrast(self, layout)


class AvisCContrast(LogitContrast):
    def __init__(self, decoder: AvisC, layout: Layout):
        super().__init__(decoder, layout)
        self.attention: dict[int, Tensor] = {}  # of the last prompt row, mean over heads [B, n], by layer
        self.blind: Tensor | None = None
        self.branch = Branch(lambda kwargs: prompts.same(kwargs, layout), self._edits)

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        if not step.reading:
            return {}
        rows = step.rows(self.layout.last_token)
        if rows is None:
            return {}
        layers = range(self.decoder.facts.layers)
        return {layer: [WeightProbe(partial(self._see, layer), rows)] for layer in layers}

    def _see(self, layer: int, weights: Tensor, keys: slice, first: int) -> None:
        self.attention[layer] = self.layout.of_prompt(weights[:, :, -1], keys).mean(1)

    def _edits(self, step: Step) -> Edits:
        return {0: [Input(self._empty)]} if step.reading else {}

    def _empty(self, hidden: Tensor) -> Tensor:
        """The prompt's embeddings [B, n, hidden], those of the image tokens that are not blind replaced."""
        settings = self.decoder.settings
        maps = [attention.to(hidden.device) for attention in self.attention.values()]
        image = self.layout.image.to(hidden.device)
        self.blind = blind_tokens(torch.stack(maps, dim=1), image, settings.gamma, settings.lam)
        self.attention.clear()
        fill = torch.zeros_like(hidden)
        if settings.fill == "ones":
            fill = torch.ones_like(hidden)
        elif settings.fill == "noise":
            generator = torch.Generator().manual_seed(0)
            fill = torch.randn(hidden.shape, generator=generator).to(hidden)
        return torch.where((image & ~self.blind)[..., None], fill, hidden)

    def report(self) -> dict[str, Any]:
        """blind: mask [B][n] of the blind image tokens."""
        return {} if self.blind is None else {"blind": self.blind.tolist()}


def blind_tokens(attention: Tensor, image: Tensor, gamma: float, lam: float) -> Tensor:
    """Mask [B, n] from attention [B, L, n] of the last prompt row and the image mask [B, n]."""
    seen = attention * image[:, None]
    mass = seen.sum(-1)
    share, order = (mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)).sort(-1, descending=True)
    needed = share.cumsum(-1) - share < gamma  # the layers before this one do not reach gamma yet
    chosen = torch.zeros_like(needed).scatter(1, order, needed)
    mean_map = (seen * chosen[..., None]).sum(1) / chosen.sum(1, keepdim=True)
    count = image.sum(-1, keepdim=True)
    mean = mean_map.sum(-1, keepdim=True) / count.clamp(min=1)
    spread = ((mean_map - mean).square() * image).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return image & (mean_map >= mean + lam * spread.sqrt())
