"""Sink sharing: chosen heads keep only part of the attention that idles on the first token, the rest goes to all others.

Source: arXiv 2505.15865 (EMNLP 2025) and its release, which does this to OCR heads. With p the weight of the first token:

    a_0' = beta p,    a_j' = a_j (1 - beta p) / (1 - p)

in every row of the chosen heads, prompt and answer; rows keep their sum.

What paper and release say apart from that, and what is ours: docs/methods/ocr_sink.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..branches.heads import Head, best_heads, masks
from ..calibration.sections import BoxHeads
from ..core.edits import Edit, Mass
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings
from ..core.registry import register

NOBODY = 1e-6  # mass of all other keys below which there is nobody to share with


class OCRSinkSettings(Settings):
    beta: float = Field(0.4, ge=0, le=1, description="share of its weight that the first token keeps")
    section: Literal["ocr_heads", "concept_heads"] = Field("ocr_heads", description="calibration section of the heads")
    heads: int = Field(2, ge=1, description="how many heads, best first")
    head_list: list[Head] | None = Field(None, min_length=1, description="these [layer, head] instead")


@register("ocr_sink")
class OCRSink(Method):
    summary = "heads that read share what idles on the first token"
    source = "arXiv 2505.15865"
    cost = "no extra pass; explicit weights for every row of the heads' layers"
    acts = "weights"
    needs = ("ocr_heads",)
    needs_image = False
    config = OCRSinkSettings

    def __init__(self, settings: OCRSinkSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if settings.head_list is not None:
            self.heads = facts.check_heads(settings.head_list, "ocr_sink.head_list")
        else:
            known: BoxHeads = facts.need(settings.section, "ocr_sink")
            scores = known.scores if known.hits is None else known.hits
            self.heads = best_heads(scores, settings.heads, facts, "ocr_sink.heads")
        self.masks = masks(self.heads, facts)  # [1, H] by layer

    def start(self, layout: Layout) -> OCRSinkSession:
        return OCRSinkSession(self, layout)


class OCRSinkSession(Session):
    def __init__(self, method: OCRSink, layout: Layout):
        self.method = method
        self.group = layout.first_token[:, :, None].float()  # [B, n, 1]
        self.plan: dict[int, list[Edit]] = {
            layer: [self._share(heads.to(layout.ids.device))] for layer, heads in method.masks.items()
        }

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return self.plan

    def _share(self, heads: Tensor) -> Mass:
        def rule(masses: Tensor) -> Tensor:
            return shared(masses, self.method.settings.beta) * heads.to(masses.device)[:, :, None, None]

        return Mass(lambda: self.group, rule, renormalise=True)

    def report(self) -> dict[str, Any]:
        """heads: the (layer, query head) pairs that share."""
        return {"heads": [list(head) for head in self.method.heads]}


def shared(masses: Tensor, beta: float) -> Tensor:
    """Coefficients of `Mass` that leave the group beta of its mass, from masses [B, H, R, 1]."""
    rest = 1 - masses
    return torch.where(rest > NOBODY, beta * rest / (1 - beta * masses) - 1, 0.0)
