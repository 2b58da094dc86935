"""PASTA, post-hoc attention steering: chosen heads look away from everything but the passages that the user emphasises.

Source: arXiv 2311.02262 (ICLR 2024) and its release. In every row of the chosen heads the attention on prompt tokens
outside the emphasised spans is multiplied by alpha and the row normalised again, which is the bias log alpha on their
logits; generated tokens keep theirs.

What paper and release say apart from that, and what is ours: docs/methods/pasta.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field

from ..branches.heads import Head, best_heads, masks
from ..core.edits import Bias, Edit
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, lacking
from ..core.registry import register
from .emphasis import Emphasis, EmphasisSettings


class PASTASettings(EmphasisSettings):
    alpha: float = Field(0.01, gt=0, description="factor on the attention outside the emphasised spans")
    share: float = Field(0.05, gt=0, le=1, description="share of all heads that are steered, the best retrieval heads")
    head_list: list[Head] | None = Field(None, min_length=1, description="these [layer, head] instead")


@register("pasta")
class PASTA(Method):
    summary = "chosen heads look only at what the user emphasises"
    source = "arXiv 2311.02262"
    cost = "no extra pass; a bias on the fused kernel"
    acts = "logits"
    needs = ("retrieval_heads",)
    needs_image = False
    config = PASTASettings

    def __init__(self, settings: PASTASettings, facts: ModelFacts):
        super().__init__(settings, facts)
        self.emphasis = Emphasis(settings, facts, "pasta")
        if settings.head_list is not None:
            heads = facts.check_heads(settings.head_list, "pasta.head_list")
        else:
            scores = facts.need("retrieval_heads", "pasta").scores
            heads = best_heads(
                scores,
                math.ceil(settings.share * len(facts.own(range(facts.layers))) * facts.heads),
                facts,
                "pasta.share",
            )
        self.heads = masks(heads, facts)  # [1, H] by layer

    def start(self, layout: Layout) -> PASTASession:
        return PASTASession(self, layout)


class PASTASession(Session):
    def __init__(self, method: PASTA, layout: Layout):
        self.span = method.emphasis(layout)
        outside = layout.valid & ~self.span & self.span.any(-1, keepdim=True)
        bias = torch.where(outside, math.log(method.settings.alpha), 0.0)[:, None]  # [B, 1, n]
        self.plan: dict[int, list[Edit]] = {
            layer: [Bias(bias * heads[:, :, None].to(bias))] for layer, heads in method.heads.items()
        }

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return self.plan

    def idle(self) -> dict[int, str]:
        return lacking(self.span.any(-1), "nothing of it is emphasised")

    def report(self) -> dict[str, Any]:
        """emphasised: number of emphasised tokens per row."""
        return {"emphasised": self.span.sum(-1).tolist()}
