"""CAD, context-aware decoding: contrast with the same question without its context.

Source: arXiv 2305.14739 (NAACL 2024) and its release. What the model would say from memory is taken away:

    score = (1 + a) z(context, question) - a z(question)

Raw logits, no plausibility cutoff. Published: a = 0.5 for summaries, 1 for knowledge conflicts. The release's script
filters by top-p, in half precision; here filters are `generate`'s own. Which tokens are the context is told by
`attach(context=...)`, or by text marks: the context is what stands between `begin` and `end`.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..common.errors import ConfigError, LayoutError
from ..plugin.branches import prompts
from ..plugin.branches.branch import Branch
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.core.layout import Layout
from ..plugin.core.method import ModelFacts
from ..plugin.tracing.words import characters
from .contrast import ContrastSettings, LogitContrast


class CADSettings(ContrastSettings):
    alpha: float = Field(0.5, description="strength of the contrast")
    beta: float = Field(0.0, ge=0, le=1, description="plausibility cutoff, relative to the likeliest token; 0: none")
    begin: str | None = Field(None, min_length=1, description="text behind which the context begins")
    end: str | None = Field(None, min_length=1, description="text before which it ends")
    drop_marks: bool = Field(True, description="leave `begin` out of the copy's prompt too; `end` always stays")


@register_decoder("cad")
class CAD(Decoder):
    summary = "contrast with the same question without its context"
    source = "arXiv 2305.14739"
    cost = "the prompt without its context once more; twice the rows per token"
    needs_image = False
    config = CADSettings
    own_prompt = True

    def __init__(self, settings: CADSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if facts.marks.context is None and (settings.begin is None or settings.end is None):
            raise ConfigError(
                "cad does not know the context: pass attach(context=FUNCTION), which marks its tokens, or set 'begin' and"
                " 'end' to the texts around it"
            )
        if facts.marks.context is None and facts.text.tokenizer is None:
            raise ConfigError("cad finds 'begin' and 'end' in the prompt's text: pass processor=... to attach")

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return CADContrast(self, layout)

    def context(self, layout: Layout) -> Tensor:
        """Which tokens are the context [B, n]. Raises LayoutError for a row in which none is, or all are."""
        facts = self.facts
        marked = facts.marks.context(layout.ids) if facts.marks.context is not None else self._between_marks(layout)
        if not isinstance(marked, Tensor) or marked.shape != layout.ids.shape:
            shape = list(marked.shape) if isinstance(marked, Tensor) else type(marked).__name__
            raise LayoutError(f"the context function returned {shape}: return a mask of shape {list(layout.ids.shape)}")
        marked = marked.to(layout.ids.device).bool() & layout.valid
        if bool((marked & layout.image).any()):
            raise LayoutError("the context holds image tokens: cad takes text away; use pai_guidance for the image")
        for row, count in enumerate(marked.sum(-1).tolist()):
            if count == 0:
                raise LayoutError(
                    f"the context of row {row} is empty, so the branch would equal the model: check the marks or the"
                    " context function, or run this prompt outside the attachment"
                )
            if bool(marked[row, layout.last[row]]):
                raise LayoutError(
                    f"the context of row {row} reaches the end of the prompt, so nothing is left to answer: it must end"
                    " before the last token"
                )
        return marked

    def _between_marks(self, layout: Layout) -> Tensor:
        settings = self.settings
        marked = torch.zeros_like(layout.valid)
        for row, valid in enumerate(layout.valid):
            positions = valid.nonzero().flatten().tolist()
            text, spans = characters(self.facts.text.tokenizer, layout.ids[row, positions].tolist())
            mark = text.find(settings.begin)
            start = mark + len(settings.begin)
            stop = text.find(settings.end, start)
            if mark < 0 or stop < 0:
                missing = settings.begin if mark < 0 else settings.end
                raise LayoutError(f"cad: row {row} of the prompt has no {missing!r}, which bounds its context")
            low = mark if settings.drop_marks else start
            for position, (first, last) in zip(positions, spans, strict=True):
                marked[row, position] = first < last and first >= low and last <= stop
        return marked


class CADContrast(LogitContrast):
    def __init__(self, decoder: CAD, layout: Layout):
        super().__init__(decoder, layout)
        self.context = decoder.context(layout)
        self.branch = Branch(self._prompt)

    def _prompt(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return prompts.without(kwargs, self.layout, self.context)

    def report(self) -> dict[str, Any]:
        """context: number of context tokens per row."""
        return {"context": self.context.sum(-1).tolist()}
