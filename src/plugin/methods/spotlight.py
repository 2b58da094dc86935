"""Spotlight: the passages that the user emphasises get at least a given share of the attention.

Source: arXiv 2505.12025 (EACL 2026) and its release. Where the emphasised tokens hold the mass m < t of a row, their
logits are raised; a row that already gives them t, or sees none of them, is left alone.

The bias that brings m to t exactly is logit(t) - logit(m) (`form: exact`, the default, ours). The release adds
log(t / m), which reaches only t / (1 + t - m) (`form: released`).
What m is has three readings: `head`, each row of each head by itself, so that every head reaches t (default, ours);
`row`, the mean over the heads of a query row, as the paper defines it; `layer`, one mean over all heads and rows of the
pass, as the release computes it. With `row` and `layer` all heads get one bias, and only equal ones would reach t; a
head that ignores the passage for a reason is pushed less than under `head`. `layer` counts early rows that cannot see the
passage yet, lets later rows decide what is done to earlier ones, and needs a prompt whose rows fit in one chunk.

What paper and release say apart from that, and what is ours: docs/methods/spotlight.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...common.errors import LayoutError
from ..core.edits import NO_MASS, Edit, Mass, move
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, lacking
from ..core.registry import register
from .emphasis import Emphasis, EmphasisSettings


class SpotlightSettings(EmphasisSettings):
    target: float = Field(0.2, ge=1e-6, le=0.9999, description="least attention mass on the emphasised tokens")
    form: Literal["exact", "released"] = Field("exact", description="bias logit(t) - logit(m), or log(t / m)")
    scope: Literal["head", "row", "layer"] = Field("head", description="what the mass m is a mean over; see the source")
    layers: list[int] | None = Field(None, min_length=1, description="default: all")


@register("spotlight")
class Spotlight(Method):
    summary = "give what the user emphasises a least share of the attention"
    source = "arXiv 2505.12025"
    cost = "no extra pass; explicit weights for every row"
    acts = "weights"
    needs_image = False
    config = SpotlightSettings

    def __init__(self, settings: SpotlightSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        self.emphasis = Emphasis(settings, facts, "spotlight")
        layers = facts.own(range(facts.layers)) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "spotlight.layers")

    def start(self, layout: Layout) -> SpotlightSession:
        return SpotlightSession(self, layout)


class SpotlightSession(Session):
    def __init__(self, method: Spotlight, layout: Layout):
        self.method, self.layout = method, layout
        self.whole_prompt = method.settings.scope == "layer"
        self.span = method.emphasis(layout)
        self.group = self.span[:, :, None].float()  # [B, n, 1]

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        mass = Mass(lambda: self.group, self._rule(step), renormalise=True)
        return {layer: [mass] for layer in self.method.layers}

    def _rule(self, step: Step) -> Callable[[Tensor], Tensor]:
        valid = self.layout.valid[:, step.start : step.start + step.count] if step.reading else None

        def rule(masses: Tensor) -> Tensor:
            if self.method.settings.scope == "layer" and valid is not None and masses.shape[2] != valid.shape[1]:
                raise LayoutError(
                    f"spotlight: 'scope: layer' takes its mean over the {valid.shape[1]} rows of the prompt, which are too"
                    " many to weigh at once: use 'scope: row', or a shorter prompt"
                )
            return raised(masses, valid, self.method.settings)

        return rule

    def idle(self) -> dict[int, str]:
        return lacking(self.span.any(-1), "nothing of it is emphasised")

    def report(self) -> dict[str, Any]:
        """emphasised: number of emphasised tokens per row."""
        return {"emphasised": self.span.sum(-1).tolist()}


def raised(masses: Tensor, valid: Tensor | None, settings: SpotlightSettings) -> Tensor:
    """Coefficients of `Mass` from the masses [B, H, R, 1] of the emphasised tokens; `valid` [B, R]: rows that count."""
    mean = masses
    if settings.scope != "head":
        mean = masses.mean(1, keepdim=True)
    if settings.scope == "layer":
        counted = torch.ones_like(mean) if valid is None else valid.to(mean)[:, None, :, None]
        mean = (mean * counted).sum(2, keepdim=True) / counted.sum(2, keepdim=True).clamp(min=1)
    if settings.form == "exact":
        change = move(settings.target)(mean)
    else:
        held = mean > NO_MASS
        change = torch.where(held, settings.target / torch.where(held, mean, 1.0) - 1, 0.0)
    return torch.where(mean < settings.target, change, 0.0).expand_as(masses)
