"""Focus Directions: heads that find the relevant context look for it a little harder.

Source: arXiv 2503.23306 and its release. Per chosen head, two learned vectors are added after the rotation, q + f d_q and
k + f d_k, in every row. The same f d_k is added to every key, so whatever it adds to the logits is the same for all keys
of a row and the softmax drops it; what is left is, per key,

    b_j = f (d_q . k_j) / sqrt(d)

which is what adding f d_q to the query alone gives, on the fused kernel, for prompt and generated keys alike.

What paper and release say apart from that, and what is ours: docs/methods/focus.md.
"""

from __future__ import annotations

import torch
from pydantic import Field

from ...common.errors import CalibrationError
from ..calibration.sections import FocusHeads
from ..core.edits import Edit, Shift
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings
from ..core.registry import register


class FocusSettings(Settings):
    factor: float = Field(0.2, description="how much of its direction is added to a head's queries")
    heads: int = Field(20, ge=1, description="how many of the calibration's heads, in its order")


@register("focus")
class Focus(Method):
    summary = "turn the queries of contextual heads towards what is relevant"
    source = "arXiv 2503.23306"
    cost = "no extra pass; an addition to the queries"
    acts = "queries"
    needs = ("focus_heads",)
    needs_image = False
    config = FocusSettings

    def __init__(self, settings: FocusSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        known: FocusHeads = facts.need("focus_heads", "focus")
        size = facts.head_size or len(known.directions[0])
        wrong = [len(direction) for direction in known.directions if len(direction) != size]
        if wrong or len(known.directions) != len(known.heads):
            raise CalibrationError(
                f"focus_heads: {len(known.heads)} heads of '{facts.name}' need as many directions of {size} numbers, and"
                f" there are {len(known.directions)}" + (f", one of {wrong[0]} numbers" if wrong else "")
            )
        self.heads = facts.check_heads(known.heads, "focus_heads")[: settings.heads]
        offsets: dict[int, torch.Tensor] = {}
        for (layer, head), direction in zip(self.heads, known.directions, strict=False):
            offsets.setdefault(layer, torch.zeros(facts.heads, size))[head] = settings.factor * torch.tensor(direction)
        self.plan: dict[int, list[Edit]] = {layer: [Shift(offset)] for layer, offset in sorted(offsets.items())}

    def start(self, layout: Layout) -> FocusSession:
        return FocusSession(self)


class FocusSession(Session):
    def __init__(self, method: Focus):
        self.method = method

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return self.method.plan
