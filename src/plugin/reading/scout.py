"""Runs ahead of each pass: the unedited model, and copies of it that read the prompt without its image or its question.

They have caches of their own, so that what a gate measures is of a model that was never edited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..branches import prompts, rules
from ..branches.branch import Branch, Rewrite
from ..branches.fork import Fork
from ..branches.pictures import random_pixels, redrawn
from ..branches.positions import Positions
from ..core.attention import merge
from ..core.compat import CACHE, ENCODED, new_cache, saved_cache
from ..core.host import Host
from ..core.layout import Layout, Step
from ..core.when import When
from .conversation import Conversation

Redraw = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # arguments of a forward -> those with other pictures


def drawing(when: When) -> Redraw | None:
    """The random pictures of a gate's runs; None where there are none."""
    if when.picture == "none":
        return None
    return lambda kwargs: redrawn(kwargs, lambda pixels: random_pixels(pixels, when.seed))


class Scout:
    """The runs of one gate on one prompt batch."""

    def __init__(self, host: Host, when: When, layout: Layout, conversation: Conversation, redraw: Redraw | None):
        self.host, self.when, self.layout, self.conversation, self.redraw = host, when, layout, conversation, redraw
        self.pictures = (*host.family.vision_inputs, ENCODED)
        self._other: Mapping[str, Any] = {}  # the redrawn pictures, while the copies read their prompts
        copies = [self._without(image=True)]
        if when.signal == "interaction":
            copies = [self._without(text=True), *copies, self._without(text=True, image=True)]
        self.fork = Fork(Branch(tuple(copies)), layout, lambda step: (), host.across, host.latent)
        self.cache, self.positions = new_cache(host.decoder.config), Positions(host.decoder)

    def _without(self, text: bool = False, image: bool = False) -> Rewrite:
        """The prompt without its question, without its image, or without both."""
        layout = self.layout

        def rewrite(kwargs: dict[str, Any]) -> dict[str, Any]:
            left_out = layout.query if text else torch.zeros_like(layout.query)
            if image and self.redraw is None:
                return prompts.without(kwargs, layout, left_out | layout.image, self.pictures)
            given = {**kwargs, **self._other} if image else kwargs
            if not text:
                return prompts.same(given, layout)
            return prompts.without({**given, **prompts.unasked(given)}, layout, left_out)

        return rewrite

    def value(self, logits: Tensor, weak: Tensor) -> Tensor:
        """The signal [B], from the last row's logits of the model [B, V] and of the copies [N, V]."""
        base = logits.float().to(weak.device)
        if self.when.signal == "divergence":
            return rules.divergence(base.log_softmax(-1), weak.float().log_softmax(-1))
        textless, imageless, neither = weak.float().chunk(3)
        best = base.topk(min(self.when.candidates, base.shape[-1])).indices
        return (base - textless - imageless + neither).gather(-1, best).var(-1)

    @torch.no_grad()
    def read(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Tensor:
        """Read the prompt ahead of the model: the signal [B] at its last row."""
        host, step = self.host, self.layout.unread
        with host.staged({}, step.start, self.layout.length), self.positions.noted():
            base = original(**{**kwargs, **self._own(step)}).logits
        if self.layout.turn:  # each turn anew, as the copies' prompts are made from the whole conversation
            kwargs = self.conversation.whole(kwargs, self.layout.valid, host.family)
        self._other = {} if self.redraw is None else self.redraw(kwargs)
        with host.staged(merge([]), 0, 0):
            weak = self.fork.read(original, kwargs, host.model, host.decoder, self.positions)
        self._other = {}
        return self.value(base[:, -1], weak[:, -1])

    @torch.no_grad()
    def go_on(self, original: Callable[..., Any], kwargs: dict[str, Any], step: Step) -> Tensor:
        """Read a token ahead of the model: the signal [B] behind it."""
        host, own = self.host, {**kwargs, **self._own(step)}
        host.left_uncompiled("a gate runs the model ahead of each token")
        with host.staged({}, step.start, self.layout.length):
            output, weak = self.fork.ride(original, own, host.stage, host.decoder, step)
        return self.value(output.logits[:, -1], weak[:, -1])

    def _own(self, step: Step) -> dict[str, Any]:
        """The arguments in which a pass of the unedited model differs from the caller's."""
        return {
            "attention_mask": step.mask,
            CACHE: self.cache,
            "logits_to_keep": int(step.reading),
            **{"use_cache": True, "output_hidden_states": False, "return_dict": True, "labels": None},
        }

    def resume(self, earlier: Scout) -> None:
        """Go on from the runs of the turn before."""
        self.fork.resume(earlier.fork)
        self.cache = earlier.cache

    def select(self, rows: Tensor) -> None:
        self.fork.select(rows)
        self.cache.reorder_cache(rows)

    def clear(self) -> None:
        self.fork.clear()
        self.cache = new_cache(self.host.decoder.config)

    def saved(self) -> Callable[[], None]:
        """What takes back all that the passes from now on add."""
        restore, own = saved_cache(self.cache), self.fork.saved()

        def undo() -> None:
            restore()
            own()

        return undo
