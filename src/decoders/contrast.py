"""The contrast of raw logits that CAD, ICD, VCD, AvisC and SID share; they differ in what the copy reads.

score = (1 + a) z - a z'   where p >= beta * max p, else -inf
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from ..plugin.branches import rules
from ..plugin.branches.decoder import Contrast, Decoder
from ..plugin.core.layout import Layout
from ..plugin.core.method import Settings


class ContrastSettings(Settings):
    alpha: float = Field(1.0, description="strength of the contrast")
    beta: float = Field(0.1, ge=0, le=1, description="plausibility cutoff, relative to the likeliest token; 0: none")


def contrasted(settings: Any, base: Tensor, weak: Tensor) -> Tensor:
    """The scores of both runs' logits."""
    return rules.plausible(rules.contrast(base, weak, settings.alpha), base, settings.beta)


class LogitContrast(Contrast):
    """Contrasts raw logits by the decoder's `alpha` and `beta`; a subclass makes the branch's prompt."""

    def __init__(self, decoder: Decoder, layout: Layout):
        self.decoder: Any = decoder
        self.layout = layout

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        assert weak is not None
        return contrasted(self.decoder.settings, base, weak)
