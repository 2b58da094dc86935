"""Head gain: every head's output times a fixed factor, known before any prompt is read.

Sources of the factors:
- Causal Head Gating (arXiv 2505.13737): the calibration's `head_gates` has a gate in [0, 1] for each head, fitted by
  gradients once, offline. Heads that interfere with right answers come out near 0, all others near 1 (`section:
  head_gates`, the default).
- Head Pursuit (arXiv 2510.21518): the calibration's `word_heads` ranks heads by how much of what they write is words of
  a concept, for example the names of objects. The best `heads` get one `gain`: -1 suppresses the concept, 5 enhances it
  (both published, for 8 to 32 heads, about 1 % of all; `section: word_heads`).
- Any heads (`head_list`), or a whole table (`gains`).

The factor applies before the output projection, in every row of prompt and answer.

Ours: the gates are used as they are; the paper reads roles off them and does not run the model with them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from ...common.errors import CalibrationError
from ..branches.heads import Head, best_heads
from ..calibration.sections import HeadGates, WordHeads
from ..core.edits import Edit, Gain
from ..core.layout import Layout, Step
from ..core.method import FixedGains, Method, ModelFacts, Session, Settings
from ..core.registry import register

SUPPRESS = -1.0  # Head Pursuit's


class HeadGainSettings(Settings):
    section: Literal["head_gates", "word_heads"] = Field("head_gates", description="calibration section of the factors")
    gain: float = Field(SUPPRESS, description="factor on the chosen heads' output (`word_heads`, `head_list`)")
    heads: int = Field(8, ge=1, description="how many heads of `word_heads`, best first")
    head_list: list[Head] | None = Field(None, min_length=1, description="these [layer, head] instead")
    gains: list[list[float]] | None = Field(None, description="factors [layer][head] instead")


@register("head_gain")
class HeadGain(Method):
    summary = "scale the outputs of chosen heads by fixed factors"
    source = "arXiv 2505.13737, 2510.21518"
    cost = "no extra pass; a multiplication per token"
    needs = ("head_gates",)
    acts = "outputs"
    needs_image = False
    config = HeadGainSettings

    def __init__(self, settings: HeadGainSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        shape = facts.layers, facts.heads
        self.gains = torch.ones(shape)  # [layers, H]
        if settings.gains is not None:
            if len(settings.gains) != shape[0] or any(len(row) != shape[1] for row in settings.gains):
                raise CalibrationError(
                    f"head_gain.gains must be {shape[0]} lists of {shape[1]} numbers, one for each head of '{facts.name}'"
                )
            self.gains = torch.tensor(settings.gains)
        elif settings.head_list is not None:
            self._scale(facts.check_heads(settings.head_list, "head_gain.head_list"))
        elif settings.section == "word_heads":
            ranked: WordHeads = facts.need("word_heads", "head_gain")
            self._scale(best_heads(ranked.scores, settings.heads, facts, "head_gain.heads"))
        else:
            fitted: HeadGates = facts.need("head_gates", "head_gain")
            self.gains = torch.tensor(fitted.gates)
        self.plan: dict[int, list[Edit]] = {
            layer: [Gain(gains[None])] for layer, gains in enumerate(self.gains) if bool((gains != 1).any())
        }

    def _scale(self, heads: tuple[tuple[int, int], ...]) -> None:
        for layer, head in heads:
            self.gains[layer, head] = self.settings.gain

    @classmethod
    def check_fixed(cls, settings: HeadGainSettings) -> None:
        """Its factors are known before any prompt."""

    def fixed(self) -> FixedGains:
        return FixedGains(self.gains)

    def start(self, layout: Layout) -> HeadGainSession:
        return HeadGainSession(self)


class HeadGainSession(Session):
    def __init__(self, method: HeadGain):
        self.method = method

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return self.method.plan

    def report(self) -> dict[str, Any]:
        """head_map [layers][heads]: the factors."""
        return {"head_map": self.method.gains.tolist()}
