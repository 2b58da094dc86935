"""HICD: contrast the model with itself, the heads that make it right dispersed.

Source: arXiv 2503.12908 (Findings of ACL 2025) and its release. Heads that matter for right answers more than for wrong
ones (calibration section `inducing_heads`) are made to look at all keys alike; such a copy errs more:

    score = log_softmax(log p + a (log p - log p'))

What paper and release say apart from that, and what is ours: docs/methods/hicd.md.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ..plugin.branches import rules
from ..plugin.branches.branch import Branch, Edits
from ..plugin.branches.decoder import Contrast, Decoder, FixedCopy, register_decoder
from ..plugin.branches.heads import Head, best_heads, dispersed, marked
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts, Settings


class HICDSettings(Settings):
    heads: int = Field(30, ge=0, description="how many heads are dispersed, by inducing score")
    head_list: list[Head] | None = Field(None, min_length=1, description="these [layer, head] instead")
    alpha: float = Field(1.1, description="strength of the contrast")
    beta: float = Field(0.0, ge=0, le=1, description="plausibility cutoff, relative to the likeliest token; 0: none")
    span: Literal["all", "prompt"] = Field("all", description="dispersed rows: all, or the prompt's alone (released)")


@register_decoder("hicd")
class HICD(Decoder):
    summary = "contrast with the model whose truth-telling heads are dispersed"
    source = "arXiv 2503.12908"
    cost = "twice the rows from the first dispersed layer on, prompt included"
    needs = ("inducing_heads",)
    needs_image = False
    config = HICDSettings

    def __init__(self, settings: HICDSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if settings.head_list is not None:
            self.heads = facts.check_heads(settings.head_list, "hicd.head_list")
        else:
            scores = facts.need("inducing_heads", "hicd", "decoder").scores
            self.heads = best_heads(scores, settings.heads, facts, "hicd.heads")
        self.edits = dispersed(self.heads, facts)

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return HICDContrast(self)

    @classmethod
    def check_fixed(cls, settings: HICDSettings) -> None:
        """Its heads are known before any prompt."""

    def fixed(self) -> FixedCopy:
        return FixedCopy("disperse", marked(self.heads, self.facts), self.settings.span)

    @classmethod
    def combined(cls, settings: HICDSettings, base: Tensor, weak: Tensor, written: Tensor | None = None) -> Tensor:
        first, second = base.log_softmax(-1), weak.log_softmax(-1)
        scores = rules.contrast(first, second, settings.alpha)
        return rules.plausible(scores, first, settings.beta).log_softmax(-1)


class HICDContrast(Contrast):
    def __init__(self, decoder: HICD):
        self.decoder = decoder
        self.branch = Branch("beside", self._edits, min(decoder.edits))

    def _edits(self, step: Step) -> Edits:
        return self.decoder.edits if step.reading or self.decoder.settings.span == "all" else {}

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        assert weak is not None
        return self.decoder.combined(self.decoder.settings, base, weak)

    def report(self) -> dict[str, Any]:
        """heads: the dispersed (layer, query head) pairs."""
        return {"heads": [list(head) for head in self.decoder.heads]}
