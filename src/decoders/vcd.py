"""VCD: contrast with the same prompt over a noised picture.

Source: arXiv 2311.16922 (CVPR 2024) and its release. Noise of step t of a 1,000-step diffusion is laid over the
normalised pixels; what the model says of such a picture is its prior:

    z' = z(noised picture);  score = (1 + a) z - a z'   where p >= beta * max p, else -inf

Raw logits. Published: a = 1, beta = 0.1 (0.2 in the POPE script), t = 500 (999 for some sets), multinomial sampling. Users
could not reproduce its POPE gains, and plain greedy search beats it there (issues 5, 16 and 24 of the repository). Until
July 2024 the release overwrote the cache of the copy, so its numbers from before belong to that, not to the formula.
Ours: the noise has a seed, and every picture gets the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..plugin.branches import prompts
from ..plugin.branches.branch import Branch
from ..plugin.branches.decoder import Contrast, Decoder, FixedCopy, register_decoder
from ..plugin.branches.pictures import redrawn
from ..plugin.core.layout import Layout
from .contrast import ContrastSettings, LogitContrast, contrasted

STEPS = 1000


class VCDSettings(ContrastSettings):
    noise_step: int = Field(500, ge=0, lt=STEPS, description="diffusion step of the noise, of 1,000")
    seed: int = Field(0, description="of the noise")


@register_decoder("vcd")
class VCD(Decoder):
    summary = "contrast with a noised picture"
    source = "arXiv 2311.16922"
    cost = "the noised picture's encoding and prompt; twice the rows per token"
    config = VCDSettings
    own_prompt = True
    redraws = True
    fixed_copy = FixedCopy(pictures="redrawn")

    @classmethod
    def redraw(cls, settings: VCDSettings, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return redrawn(kwargs, lambda pixels: noised(pixels, settings.noise_step, settings.seed))

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return VCDContrast(self, layout)

    @classmethod
    def combined(cls, settings: VCDSettings, base: Tensor, weak: Tensor, written: Tensor | None = None) -> Tensor:
        return contrasted(settings, base, weak)


class VCDContrast(LogitContrast):
    def __init__(self, decoder: VCD, layout: Layout):
        super().__init__(decoder, layout)
        self.branch = Branch(self._prompt)

    def _prompt(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return prompts.same({**kwargs, **self.redrawn}, self.layout)


def noised(pixels: Tensor, step: int, seed: int) -> Tensor:
    """sqrt(abar_t) v + sqrt(1 - abar_t) e for normalised pixels v of any shape, e standard normal from the seed."""
    betas = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    kept = float(torch.cumprod(1 - betas, 0)[step])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32).to(pixels)
    return kept**0.5 * pixels + (1 - kept) ** 0.5 * noise
