"""DeCoRe: contrast the model with itself, its retrieval heads masked.

Source: arXiv 2410.18860 (Findings of EMNLP 2025) and its release. A copy that cannot look things up in its context
answers from memory; what the context adds is the difference:

    score = (1 + a) log p - a log p'

a is a number (static, 0.5), or the entropy of p at each step (the default; natural logarithm; `scale` divides it by
ln |V|, `cap` clips it, both off in the release), or the gain H(p') - H(p), which may be negative (release only).

What paper and release say apart from that, and what is ours: docs/methods/decore.md.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ..common.errors import CalibrationError
from ..plugin.branches import rules
from ..plugin.branches.branch import Branch
from ..plugin.branches.decoder import Contrast, Decoder, FixedCopy, register_decoder
from ..plugin.branches.heads import Head, best_heads, dispersed, marked, random_heads, silenced
from ..plugin.calibration.sections import how_to_get
from ..plugin.core.layout import Layout
from ..plugin.core.method import ModelFacts, Settings


class DeCoReSettings(Settings):
    heads: int = Field(50, ge=0, description="how many heads are masked, by retrieval score")
    by: Literal["retrieval_heads", "concept_heads", "visual_heads"] = Field(
        "retrieval_heads", description="calibration section whose scores choose the heads; the others: ours, for images"
    )
    head_list: list[Head] | None = Field(None, min_length=1, description="these [layer, head] instead")
    random: int | None = Field(None, description="a seed: mask as many heads by chance instead, as a control")
    alpha: float | Literal["entropy", "entropy_gain"] = Field("entropy", description="strength of the contrast")
    scale: bool = Field(False, description="divide the entropy by ln |V|")
    cap: float | None = Field(None, gt=0, description="largest strength")
    mask: Literal["query", "output"] = Field("query", description="query: uniform attention (released); output: zero")
    span: Literal["auto", "last", "prompt"] = Field(
        "auto",
        description="masked rows: from the last prompt token on, or all; auto: all only where answers are scored",
    )


@register_decoder("decore")
class DeCoRe(Decoder):
    summary = "contrast with the model whose retrieval heads are masked"
    source = "arXiv 2410.18860"
    cost = "twice the rows from the first masked layer on; the prompt is shared"
    needs = ("retrieval_heads",)
    needs_image = False
    config = DeCoReSettings

    def __init__(self, settings: DeCoReSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if settings.head_list is not None:
            self.heads = facts.check_heads(settings.head_list, "decore.head_list")
        else:
            scores = facts.need(settings.by, "decore", "decoder").scores
            if scores is None:
                raise CalibrationError(
                    f"decore: the calibration's section '{settings.by}' has no head scores:"
                    f" {how_to_get(settings.by, facts.name)}"
                )
            self.heads = best_heads(scores, settings.heads, facts, "decore.heads")
        if settings.random is not None:
            self.heads = random_heads(len(self.heads), self.heads, settings.random, facts, "decore.random")
        self.edits = (dispersed if settings.mask == "query" else silenced)(self.heads, facts)

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return DeCoReContrast(self, scoring)

    @classmethod
    def check_fixed(cls, settings: DeCoReSettings) -> None:
        """Its heads are known before any prompt."""

    def fixed(self) -> FixedCopy:
        change: Literal["disperse", "silence"] = "disperse" if self.settings.mask == "query" else "silence"
        return FixedCopy(change, marked(self.heads, self.facts), "all" if self.settings.span == "prompt" else "last")

    @classmethod
    def combined(cls, settings: DeCoReSettings, base: Tensor, weak: Tensor, written: Tensor | None = None) -> Tensor:
        first, second = base.log_softmax(-1), weak.log_softmax(-1)
        return rules.contrast(first, second, _strength(settings, first, second))


class DeCoReContrast(Contrast):
    def __init__(self, decoder: DeCoRe, scoring: bool):
        self.decoder = decoder
        everywhere = decoder.settings.span == "prompt" or (decoder.settings.span == "auto" and scoring)
        self.branch = Branch("beside" if everywhere else "shared", lambda step: decoder.edits, min(decoder.edits))

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        assert weak is not None
        return self.decoder.combined(self.decoder.settings, base, weak)

    def report(self) -> dict[str, Any]:
        """heads: the masked (layer, query head) pairs."""
        return {"heads": [list(head) for head in self.decoder.heads]}


def _strength(settings: DeCoReSettings, base: Tensor, weak: Tensor) -> float | Tensor:
    """How strong the contrast is at each step, from log-probabilities of the model and of the copy."""
    if not isinstance(settings.alpha, str):
        return settings.alpha if settings.cap is None else min(settings.alpha, settings.cap)
    strength = rules.entropy(base)
    if settings.alpha == "entropy_gain":
        strength = rules.entropy(weak) - strength
    if settings.scale:
        strength = strength / math.log(base.shape[-1])
    return strength if settings.cap is None else strength.clamp(max=settings.cap)
