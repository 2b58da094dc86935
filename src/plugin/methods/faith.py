"""FAITH: heads that carry a question's false premise into the answer are silent where they would pick it up.

Source: arXiv 2402.19103 (EMNLP 2024) and its release. The output of the false-premise heads is zero, before the output
projection, in some rows:

- `rows: question_mark` (default, the release, which the published numbers come from): the row before the question mark
  that ends the question, while the prompt is read. Its questions end with the false object.
- `rows: span` (the paper): the rows of the false object, which must be known: `attach(emphasis=...)`, marks, or the
  whole question (`span: question`), see `emphasis.py`.
- `rows: all` (ours): every row of prompt and answer.

What paper and release say apart from that, and what is ours: docs/methods/faith.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...common.errors import CalibrationError, ConfigError
from ..branches.heads import Head, masks, random_heads
from ..calibration.sections import PremiseHeads
from ..core.edits import Edit, Gain
from ..core.layout import Layout, Step
from ..core.method import FixedGains, Method, ModelFacts, Session, lacking
from ..core.registry import register
from .emphasis import Emphasis, EmphasisSettings


class FAITHSettings(EmphasisSettings):
    rows: Literal["question_mark", "span", "all"] = Field(
        "question_mark", description="where the heads are silent: see the source; `span`, `begin`, `end` are for `span`"
    )
    heads: int = Field(5, ge=1, description="how many of the calibration's heads, best first")
    head_list: list[Head] | None = Field(None, min_length=1, description="these [layer, head] instead")
    random: int | None = Field(None, description="seed; as many heads by chance instead, as a control")


@register("faith")
class FAITH(Method):
    summary = "silence the heads that believe a question's false premise"
    source = "arXiv 2402.19103"
    cost = "no extra pass; a multiplication while the prompt is read"
    needs = ("premise_heads",)
    acts = "outputs"
    needs_image = False
    config = FAITHSettings

    def __init__(self, settings: FAITHSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if settings.head_list is not None:
            heads = facts.check_heads(settings.head_list, "faith.head_list")
        else:
            known: PremiseHeads = facts.need("premise_heads", "faith")
            if settings.heads > len(known.heads):
                raise CalibrationError(
                    f"faith.heads: {settings.heads} heads were asked for, but premise_heads of '{facts.name}' has"
                    f" {len(known.heads)}: ask for fewer"
                )
            heads = facts.check_heads(known.heads, "premise_heads")[: settings.heads]
        if settings.random is not None:
            heads = random_heads(len(heads), heads, settings.random, facts, "faith.random")
        self.heads = heads
        self.factors = {layer: (~mask).float() for layer, mask in masks(heads, facts).items()}  # [1, H] by layer
        if settings.when is not None and settings.rows != "all":
            raise ConfigError(
                f"faith with 'rows: {settings.rows}' acts while the prompt is read, where no token is chosen that a gate could"
                " decide about: leave 'when' out, or set 'rows: all'"
            )
        self.emphasis = Emphasis(settings, facts, "faith") if settings.rows == "span" else None
        if settings.rows == "question_mark" and facts.text.tokenizer is None:
            raise ConfigError(
                "faith looks for the question mark in the prompt's text: pass processor=... to attach, or set 'rows' to"
                " span or all"
            )

    @classmethod
    def check_fixed(cls, settings: FAITHSettings) -> None:
        if settings.rows != "all":
            raise ConfigError(
                f"method 'faith' with 'rows: {settings.rows}' looks in each prompt for the rows in which its heads are"
                " silent, so no fixed factors stand for it: set 'rows: all', or generate with transformers"
            )

    def fixed(self) -> FixedGains:
        factors = torch.ones(self.facts.layers, self.facts.heads)
        for layer, factor in self.factors.items():
            factors[layer] = factor[0]
        return FixedGains(factors)

    def start(self, layout: Layout) -> FAITHSession:
        return FAITHSession(self, layout)


class FAITHSession(Session):
    def __init__(self, method: FAITH, layout: Layout):
        self.method = method
        self.rows: Tensor | None = None  # prompt rows [B, n]; None: every row
        if method.emphasis is not None:
            self.rows = method.emphasis(layout)
        elif method.settings.rows == "question_mark":
            self.rows = before_question_mark(layout, method.facts.text.tokenizer)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        rows = None if self.rows is None else step.rows(self.rows)
        if rows is None and self.rows is not None:
            return {}
        return {layer: [Gain(factor, rows)] for layer, factor in self.method.factors.items()}

    def idle(self) -> dict[int, str]:
        if self.rows is None:
            return {}
        return lacking(self.rows.any(-1), "it has no row that the settings name, such as one before a question mark")

    def report(self) -> dict[str, Any]:
        """heads: the silent (layer, query head) pairs. rows: in how many rows of the prompt, per batch row."""
        rows = {} if self.rows is None else {"rows": self.rows.sum(-1).tolist()}
        return {"heads": [list(head) for head in self.method.heads], **rows}


def before_question_mark(layout: Layout, tokenizer: Any) -> Tensor:
    """Mask [B, n] of the token before the last one with a question mark, from the begin of the question on."""
    marked = torch.zeros_like(layout.valid)
    tokens = layout.valid & ~layout.image & (layout.query.cumsum(-1) > 0)
    for row, positions in enumerate(tokens):
        for position in reversed(positions.nonzero().flatten().tolist()):
            if "?" in tokenizer.decode([int(layout.ids[row, position])]):
                marked[row, max(position - 1, 0)] = position > 0
                break
    return marked & layout.valid
