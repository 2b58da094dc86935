"""Spans of the prompt that the user emphasises, for methods that raise the attention they get.

They are told by `attach(emphasis=...)`, a function from token ids or texts that stand in the prompt, or by marks in the
prompt's text. A mark that the model shall not see is taken out before tokenising:

    text, passages = unmark("Name a city. <emphasis>Answer in one word.</emphasis>")

and `attach(emphasis=passages)` finds the passages again. Spans that overlap are united: a token is emphasised or it is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ...common.errors import ConfigError, LayoutError
from ..core.layout import Layout
from ..core.method import ModelFacts, Settings
from ..tracing.words import characters

BEGIN, END = "<emphasis>", "</emphasis>"
Emphasised = Callable[[Tensor], Tensor] | Sequence[str]  # ids [B, n] -> mask [B, n], or texts that stand in the prompt


class EmphasisSettings(Settings):
    span: Literal["marked", "question", "image"] = Field(
        "marked", description="what is emphasised: what attach(emphasis=...) or the marks say, the question, the image"
    )
    begin: str = Field(
        BEGIN, min_length=1, description="mark before an emphasised passage; the marks stay in the prompt"
    )
    end: str = Field(END, min_length=1, description="mark behind it")


def unmark(text: str, begin: str = BEGIN, end: str = END) -> tuple[str, list[str]]:
    """The text without its marks, and the passages that they enclosed. Raises LayoutError for a mark without partner."""
    spans = _enclosed(text, begin, end, "the text")
    marks = re.compile(f"{re.escape(begin)}|{re.escape(end)}")
    passages = [marks.sub("", text[start:stop]).strip() for start, stop in spans]
    return marks.sub("", text), [passage for passage in passages if passage]


class Emphasis:
    """Finds the emphasised tokens of prompts. Raises ConfigError where nothing can tell them."""

    def __init__(self, settings: EmphasisSettings, facts: ModelFacts, method: str):
        self.settings, self.facts, self.method = settings, facts, method
        self.texts: Sequence[str] | None = None
        if facts.marks.emphasis is not None and not callable(facts.marks.emphasis):
            self.texts = [facts.marks.emphasis] if isinstance(facts.marks.emphasis, str) else list(facts.marks.emphasis)
            if not self.texts or not all(isinstance(text, str) and text for text in self.texts):
                raise ConfigError(
                    f"emphasis={facts.marks.emphasis!r} names no passage: pass texts that stand in the prompt"
                )
        if settings.begin == settings.end:
            raise ConfigError(f"{method}: 'begin' and 'end' are both {settings.begin!r}: give two different marks")
        if settings.span == "image" and facts.across:
            raise ConfigError(
                f"{method}: '{facts.name}' reads its image by cross-attention and has no image tokens to emphasise: set 'span'"
                " to marked or question"
            )
        if settings.span == "marked" and not callable(facts.marks.emphasis) and facts.text.tokenizer is None:
            raise ConfigError(
                f"{method} finds emphasised passages in the prompt's text: pass processor=... to attach, or"
                " emphasis=FUNCTION, which marks their tokens, or set 'span' to question or image"
            )

    def __call__(self, layout: Layout) -> Tensor:
        """Mask [B, n]. Raises LayoutError for a passage that does not stand in the prompt, or a mark without partner."""
        if self.settings.span == "image":
            return self._some(layout.image)
        if self.settings.span == "question":
            return self._some(layout.query)
        if callable(self.facts.marks.emphasis):
            return self._some(self._told(self.facts.marks.emphasis(layout.ids), layout))
        marked = torch.zeros_like(layout.valid)
        for row, tokens in enumerate(layout.valid & ~layout.image):
            positions = tokens.nonzero().flatten().tolist()
            text, places = characters(self.facts.text.tokenizer, layout.ids[row, positions].tolist())
            spans = self._marked(text, row) if self.texts is None else self._passages(text, row)
            for position, (first, last) in zip(positions, places, strict=True):
                marked[row, position] = any(first < stop and last > start for start, stop in spans)
        return marked

    def _told(self, marked: Tensor, layout: Layout) -> Tensor:
        """What the caller's function has marked [B, n]; it may have answered anything."""
        if not isinstance(marked, Tensor) or marked.shape != layout.ids.shape:
            shape = list(marked.shape) if isinstance(marked, Tensor) else type(marked).__name__
            raise LayoutError(
                f"the emphasis function returned {shape}: return a mask of shape {list(layout.ids.shape)}"
            )
        marked = marked.to(layout.ids.device).bool()
        outside = (marked & ~layout.valid).any(-1).nonzero().flatten().tolist()
        if outside:
            raise LayoutError(
                f"the emphasis function marks padding in row {outside[0]}, outside the prompt: count positions from the end"
                " of left-padded rows, or tell the tokens by their ids"
            )
        return marked

    def _marked(self, text: str, row: int) -> list[tuple[int, int]]:
        settings = self.settings
        spans = _enclosed(text, settings.begin, settings.end, f"{self.method}: row {row} of the prompt")
        if not any(start < stop for start, stop in spans):
            raise LayoutError(
                f"{self.method}: row {row} of the prompt has nothing between {settings.begin!r} and {settings.end!r}: mark"
                " a passage, or run this prompt outside the attachment"
            )
        return spans

    def _passages(self, text: str, row: int) -> list[tuple[int, int]]:
        spans = []
        for passage in self.texts or ():
            found = [match.span() for match in re.finditer(re.escape(passage), text)]
            if not found:
                raise LayoutError(
                    f"{self.method}: the emphasised passage {passage!r} does not stand in row {row} of the prompt: check its"
                    " spelling, and that truncation has not cut it"
                )
            spans += found
        return spans

    def _some(self, marked: Tensor) -> Tensor:
        if not bool(marked.any()):
            raise LayoutError(
                f"{self.method}: no token of the prompt is emphasised (span: {self.settings.span}): check what marks them,"
                " or run this prompt outside the attachment"
            )
        return marked


def _enclosed(text: str, begin: str, end: str, where: str) -> list[tuple[int, int]]:
    """Character spans between the outermost marks. Raises LayoutError for a mark without partner."""
    spans, opened = [], []
    for mark in re.finditer(f"{re.escape(begin)}|{re.escape(end)}", text):
        if mark.group() == begin:
            opened.append(mark.end())
        elif not opened:
            raise LayoutError(f"{where}: {end!r} at character {mark.start()} ends nothing: put {begin!r} before it")
        else:
            start = opened.pop()
            if not opened:
                spans.append((start, mark.start()))
    if opened:
        raise LayoutError(
            f"{where}: {begin!r} at character {opened[-1] - len(begin)} never closes: put {end!r} behind the passage, and"
            " check that truncation has not cut it"
        )
    return spans
