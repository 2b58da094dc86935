"""OPERA: look one token ahead, and penalise the candidate behind which one earlier word gathers all attention.

Source: arXiv 2311.17911 (CVPR 2024) and its release, without its retrospection. The N likeliest tokens are candidates.
Each is read in a pass of its own, whose row of the last layer gives weights w: the maximum over heads, divided by its sum
over all keys. Over the rows i and columns j <= i of the answer's tokens, the candidate's included,

    phi = max over j of 1e-7 * product over i >= j of (sigma w_ij)

and a candidate's logit loses lambda phi. While the answer has at most ten tokens, the candidate among them, it gains
lambda times the mass of its own row on the image instead. Whatever is no candidate has -inf.

What paper and release say apart from that, and what is ours: docs/methods/opera.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.branches.rules import NEVER
from ..plugin.core.edits import Edit, Rows, WeightProbe
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import LARGEST, ModelFacts, Settings

SHORT = 10  # up to so many tokens the image's mass counts, and no summary
FLOOR = 1e-7  # in front of the product


class OPERASettings(Settings):
    candidates: int = Field(5, ge=1, description="N, likeliest tokens that are read ahead")
    scale: float = Field(50.0, gt=0, description="sigma, factor on each weight of the product")
    weight: float = Field(1.0, ge=0, description="lambda, of the penalty")

    @model_validator(mode="before")
    @classmethod
    def _no_way_back(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "threshold" in data:  # the release's, of its retrospection
            raise ValueError(
                "there is no retrospection, as a beam search of transformers has no way back, so no 'threshold' (see"
                " docs/methods/opera.md): leave it out"
            )
        return data


@register_decoder("opera")
class OPERA(Decoder):
    summary = "look ahead, and penalise what leans on one earlier word"
    source = "arXiv 2311.17911"
    cost = "a pass per candidate and token; explicit weights of one row in the last layer"
    config = OPERASettings
    weighs_image = True

    def __init__(self, settings: OPERASettings, facts: ModelFacts):
        super().__init__(settings, facts)
        self.layer = facts.own(range(facts.layers))[-1]
        self.candidates = min(settings.candidates, facts.vocabulary)

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return OPERAContrast(self, layout)


class OPERAContrast(Contrast):
    def __init__(self, decoder: OPERA, layout: Layout):
        self.decoder, self.layout = decoder, layout
        self.candidates = decoder.candidates
        self.row: Tensor | None = (
            None  # weights of the last row of the pass [B, answer + 1]: on each token, on the image
        )
        self.read: list[tuple[Tensor, Tensor]] = []  # of each candidate: its tokens [B] and its row
        self.penalty: Tensor | None = None
        self.memory = {"rows": torch.zeros(layout.batch, 0, 0, device=layout.ids.device)}  # the answer's [B, i, j]

    def begin(self, step: Step, ids: Tensor | None) -> None:
        self.row = None

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        if step.reading:
            return {}
        rows = Rows(step.count - 1, step.count, self.layout.valid[:, -1:])
        return {self.decoder.layer: [WeightProbe(self._see, rows)]}

    def _see(self, weights: Tensor, keys: slice, first: int) -> None:
        row = weights[:, :, -1].amax(1)
        row = row / row.sum(-1, keepdim=True)
        prompt = keys.stop - keys.start
        image = (row[:, :prompt] * self.layout.image[:, keys].to(row)).sum(-1, keepdim=True)
        self.row = torch.cat([row[:, prompt:], image], dim=1)

    def tried(self, tokens: Tensor) -> None:
        """The pass that has just run read these candidates [B]."""
        assert self.row is not None
        self.read.append((tokens, self.row))

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        settings, kept, read = self.decoder.settings, self.memory["rows"], self.read
        scores = torch.full_like(base, NEVER)
        count = kept.shape[1] + 1  # of the answer's tokens, the candidate among them
        penalties = []
        for tokens, row in read:
            own = grown(kept, row[:, :count].to(kept))
            penalty = -row[:, -1] if count <= SHORT else summary(own, settings.scale)
            place = tokens.to(base.device)[:, None, None]
            chosen = base[:, -1:].gather(-1, place) - settings.weight * penalty.to(base)[:, None, None]
            scores[:, -1:].scatter_(-1, place, chosen)
            penalties.append(penalty)
        scores[:, :-1] = base[:, :-1]  # a prompt's other rows
        self.penalty, self.read = torch.stack(penalties, dim=-1), []
        return scores

    def accept(self) -> None:
        """The row of the token that was chosen, in front of the candidates' passes."""
        if self.row is not None:
            kept = self.memory["rows"]
            self.memory = {"rows": grown(kept, self.row[:, : kept.shape[1] + 1].to(kept))}

    def report(self) -> dict[str, Any]:
        """penalty: of the candidates for the last token [B][N], likeliest first."""
        return {} if self.penalty is None else {"penalty": self.penalty.tolist()}


def grown(rows: Tensor, row: Tensor) -> Tensor:
    """The answer's rows [B, t, t] with one more, [B, t + 1]."""
    rows = torch.nn.functional.pad(rows, (0, 1))
    return torch.cat([rows, row[:, None]], dim=1)


def summary(rows: Tensor, scale: float) -> Tensor:
    """phi [B] of the answer's rows [B, t, t]."""
    before = torch.ones_like(rows).triu(1).bool()  # a row is no part of the columns behind it
    logs = (scale * rows).log().masked_fill(before, 0).sum(1)
    return (FLOOR * logs.exp()).amax(-1).clamp(max=LARGEST)
