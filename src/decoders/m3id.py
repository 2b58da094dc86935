"""M3ID: contrast with the prompt without its image, the more the longer the answer is.

Source: arXiv 2403.14003 (CVPR 2024), which has no public code; the form is that of its ports. The copy reads the prompt
without the image tokens. At the answer's t-th token, with log-probabilities l of the model and l' of the copy:

    score = l + (1 - g) / g (l - l'),  g = exp(-lambda t)   where p >= beta max p, else -inf

What the paper adds to that, and how its ports differ: docs/methods/m3id.md.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..plugin.branches import prompts, rules
from ..plugin.branches.branch import Branch
from ..plugin.branches.decoder import Contrast, Decoder, FixedCopy, register_decoder
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import LARGEST, Settings


class M3IDSettings(Settings):
    lam: float = Field(0.02, ge=0, description="lambda, how fast the image's trace in the model is taken to fade")
    first: int = Field(1, ge=0, description="t of the answer's first token (AvisC's port: 1, ONLY's: 0)")
    beta: float = Field(0.1, ge=0, le=1, description="plausibility cutoff, relative to the likeliest token; 0: none")


@register_decoder("m3id")
class M3ID(Decoder):
    summary = "contrast with the prompt without its image, growing with the answer"
    source = "arXiv 2403.14003"
    cost = "the prompt's text once more; twice the rows per token"
    config = M3IDSettings
    own_prompt = True
    fixed_copy = FixedCopy(pictures="none")

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return M3IDContrast(self, layout)

    @classmethod
    def combined(cls, settings: M3IDSettings, base: Tensor, weak: Tensor, written: Tensor | None = None) -> Tensor:
        assert written is not None
        scores = rules.contrast(base.log_softmax(-1), weak.log_softmax(-1), strength(settings, written))
        return rules.plausible(scores, base, settings.beta)


class M3IDContrast(Contrast):
    def __init__(self, decoder: M3ID, layout: Layout):
        self.decoder, self.layout = decoder, layout
        self.branch = Branch(prompts.without_image(layout, decoder.facts.pictures))
        self.written = 0  # tokens of the answer that the last row of the pass has read

    def begin(self, step: Step, ids: Tensor | None) -> None:
        self.written = step.start + step.count - self.layout.length

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        assert weak is not None
        written = self.written - torch.arange(base.shape[1] - 1, -1, -1).to(base)
        return self.decoder.combined(self.decoder.settings, base, weak, written[:, None])

    def report(self) -> dict[str, Any]:
        """strength: (1 - g) / g at the last token."""
        return {"strength": float(strength(self.decoder.settings, torch.tensor(max(self.written, 0))))}


def strength(settings: M3IDSettings, written: Tensor) -> Tensor:
    """(1 - g) / g where so many tokens of the answer have been read."""
    return torch.expm1(settings.lam * (settings.first + written).clamp(min=0)).clamp(max=LARGEST)
