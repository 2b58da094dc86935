"""PAI's logit refinement: guidance away from the same prompt without its image.

Source: arXiv 2407.21771 (ECCV 2024) and its release. The copy reads the prompt without the image tokens, in a cache of
its own:

    score = gamma (log p - log p') + log p'   where p >= 0.1 max p, else -inf

README values: gamma 1.1 (2 in the parser), together with the attention boost, the method `pai`. The release runs the copy
without the boost, as here; there its prompt pass with the image is not boosted either, which looks like an accident
(`pai` with `prompt: false`). A row without an image among others keeps the model's own scores.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..plugin.branches import prompts, rules
from ..plugin.branches.branch import Branch
from ..plugin.branches.decoder import Contrast, Decoder, FixedCopy, register_decoder
from ..plugin.core.layout import Layout
from ..plugin.core.method import Settings


class GuidanceSettings(Settings):
    gamma: float = Field(1.1, ge=1, description="strength of the guidance; 1: plain")
    beta: float = Field(0.1, ge=0, le=1, description="plausibility cutoff, relative to the likeliest token; 0: none")


@register_decoder("pai_guidance")
class Guidance(Decoder):
    summary = "guide away from the same prompt without its image"
    source = "arXiv 2407.21771"
    cost = "the prompt's text once more; twice the rows per token"
    config = GuidanceSettings
    own_prompt = True
    fixed_copy = FixedCopy(pictures="none")

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return GuidanceContrast(self, layout)

    @classmethod
    def combined(cls, settings: GuidanceSettings, base: Tensor, weak: Tensor, written: Tensor | None = None) -> Tensor:
        return rules.plausible(rules.guidance(base, weak, settings.gamma), base, settings.beta)


class GuidanceContrast(Contrast):
    def __init__(self, decoder: Guidance, layout: Layout):
        self.decoder = decoder
        self.branch = Branch(prompts.without_image(layout, decoder.facts.pictures))

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        assert weak is not None
        return self.decoder.combined(self.decoder.settings, base, weak)
