"""How a prompt batch is read and continued: one strategy, chosen when its prompt is read, for each kind of decoder.

- `Reading`: no decoder, the model's passes with the methods' edits.
- `Contrasted`: the decoder looks at the model alone (DoLa, SGRS).
- `Riding`: a branch that carries the methods' edits rides along (DeCoRe, HICD, JuICE).
- `Apart`: the branch reads prompts of its own and rides along behind them (VCD, CAD ...).
- `Ahead`: the unedited model and the branch run ahead of every pass, in caches of their own (CG-VLM).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...common.errors import LayoutError
from ..branches.decoder import Contrast
from ..branches.fork import Fork
from ..branches.positions import Positions
from ..core.attention import merge
from ..core.compat import CACHE, cache_undone, new_cache
from ..core.graph import keeping_graph
from ..core.host import Host
from ..core.layout import Step
from .conversation import Conversation
from .passes import Call, Whole, passes_of
from .prompt import Edits, Prompt

Redraw = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # arguments of a forward -> those with other pictures

NOTHING = torch.empty(0)  # the branch's logits of a pass in which none rides


class Reading:
    """A prompt batch without a decoder.

    conversation: what the caller's cache holds, this prompt included. seen: tokens that the passes so far have read.
    """

    def __init__(self, host: Host, prompt: Prompt, conversation: Conversation):
        self.host, self.prompt, self.layout, self.conversation = host, prompt, prompt.layout, conversation
        self.seen = prompt.layout.turn
        self.cache: Callable[[], Any] = lambda: None  # the caller's cache that holds the prompt, while it lives

    def read(self, original: Call, kwargs: dict[str, Any]) -> Any:
        """Read the prompt. Returns the output, scores in the place of its logits."""
        self.read_text()
        return self.judged(*self.passes(kwargs).read(self.run, original, kwargs, self.layout.unread))

    def go_on(self, original: Call, kwargs: dict[str, Any], step: Step) -> Any:
        """A pass behind the prompt. Returns the output, scores in the place of its logits."""
        self.check(step.start, len(given(kwargs)))
        return self.judged(*self.run(original, kwargs, step))

    def read_text(self) -> None:
        """Read the prompt without its image, where a method asks for that."""
        plan = merge([session.read_text_edits() for session in self.prompt.sessions])
        if plan:
            with self.host.staged(plan, 0, 0), torch.no_grad():
                self.host.family.read_text(self.host.model, *self.layout.text_only())

    def passes(self, kwargs: Mapping[str, Any]) -> Whole:
        """In which passes the model reads its prompt."""
        return passes_of(self.host, self.prompt, kwargs, self.layout.unread)

    def run(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        """One pass of the model with its edits: the output, and the branch's logits of its last rows, if any."""
        with self.host.staged(self.prompt.plan(step), step.start, self.layout.length):
            output, weak = self.carry(original, kwargs, step)
        self.seen = step.start + step.count
        return output, weak

    def carry(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        """The pass itself, staged."""
        return original(**kwargs), NOTHING

    def judged(self, output: Any, weak: Tensor) -> Any:
        """The output with the scores that the decoder makes of its logits."""
        if self.prompt.record is not None:
            self.prompt.note(output.logits, None)
        return output

    def resume(self, earlier: Any) -> None:
        """Take over, from the reading of the turn before, what is not read again."""
        for session, before in zip(self.prompt.sessions, earlier.prompt.sessions, strict=True):
            session.resume(before)

    # ---- its life ----------------------------------------------------------------------------------------------------

    def follow(self, cache: Any) -> None:
        """The prompt lies in this cache from now on."""
        self.cache = weakref.ref(cache, lambda _: self.clear())

    def clear(self) -> None:
        """Let go of everything that a cache which is gone would have needed."""
        self.conversation.clear()

    def check(self, start: int, rows: int) -> None:
        """Raises LayoutError where the caller's cache no longer holds what the decoder's state follows."""

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back what the passes inside add to what is kept."""
        seen = self.seen
        try:
            with self.conversation.undone():
                yield
        finally:
            self.seen = seen


class Contrasted(Reading):
    """A decoder that looks at the model's own passes."""

    def __init__(self, host: Host, prompt: Prompt, conversation: Conversation, contrast: Contrast):
        super().__init__(host, prompt, conversation)
        self.contrast = contrast

    def scores(self, base: Tensor, weak: Tensor | None) -> Tensor:
        """What the decoder makes of logits [B, T, V] and of the branch's [N, T, V]."""
        scores, rows = self.contrast.combine(base, weak), self.contrast.contrasted
        return scores if rows is None else torch.where(rows.to(scores.device)[:, None, None], scores, base)

    def passes(self, kwargs: Mapping[str, Any]) -> Whole:
        one_row = self.contrast.graph is not None
        return passes_of(self.host, self.prompt, kwargs, self.layout.unread, self.rehearsed, one_row)

    def rehearsed(self, step: Step) -> Sequence[Edits]:
        """What of the decoder's own takes part where the prompt is rehearsed."""
        return ()

    def run(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        self.contrast.begin(step, None if step.reading else kwargs.get("input_ids"))
        plan = self.prompt.plan(step, [self.contrast.watch(step)], lasting=not self.contrast.ahead)
        with self.host.staged(plan, step.start, self.layout.length):
            output, weak = self.carry(original, kwargs, step)
        self.seen = step.start + step.count
        return output, weak

    def carry(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        graph = self.contrast.graph
        if graph is None or step.start + step.count < self.layout.length:
            return super().carry(original, kwargs, step)
        output = keeping_graph(original, kwargs, self.host.layers[graph])
        return output, NOTHING

    def judged(self, output: Any, weak: Tensor) -> Any:
        self.prompt.note(output.logits, None)
        output.logits = self.scores(output.logits.float(), None)
        return output

    def follow(self, cache: Any) -> None:
        """Beams that reorder the caller's cache reorder what the decoder keeps, too."""
        super().follow(cache)
        base, kind = self.cache, type(cache)

        def reorder_cache(beam_idx: Tensor) -> None:
            kind.reorder_cache(base(), beam_idx)
            self.select(beam_idx)

        cache.reorder_cache = reorder_cache

    def select(self, rows: Tensor) -> None:
        """Take these batch rows of what the decoder keeps, as a beam search does with the cache."""
        memory = self.contrast.memory
        self.contrast.memory = {name: held.index_select(0, rows.to(held.device)) for name, held in memory.items()}

    @property
    def stateful(self) -> bool:
        """Whether anything is kept that must follow the cache."""
        return bool(self.contrast.memory)

    def check(self, start: int, rows: int) -> None:
        if self.stateful and (start, rows) != (self.seen, self.layout.batch):
            raise LayoutError(
                f"the cache holds {start} tokens and {rows} rows were passed, but the decoder has followed {self.seen}"
                f" tokens of {self.layout.batch} rows: a cache that is cropped, repeated or selected from cannot be"
                " continued under a decoder; read the prompt again"
            )

    @contextmanager
    def undone(self) -> Iterator[None]:
        memory = self.contrast.memory
        try:
            with super().undone():
                yield
        finally:
            self.contrast.memory = memory


class Riding(Contrasted):
    """A branch whose rows ride along in the model's passes."""

    stateful = True

    def __init__(self, host: Host, prompt: Prompt, conversation: Conversation, contrast: Contrast, fork: Fork):
        super().__init__(host, prompt, conversation, contrast)
        self.fork = fork

    def resume(self, earlier: Any) -> None:
        super().resume(earlier)
        self.fork.resume(earlier.fork)

    def carry(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        if not self.fork.rides_in(step):
            return super().carry(original, kwargs, step)
        return self.fork.ride(original, kwargs, self.host.stage, self.host.decoder, step)

    def judged(self, output: Any, weak: Tensor) -> Any:
        """A branch that shares the prompt, or has one of its own, has nothing to say of the prompt's rows but the last."""
        self.prompt.note(output.logits, weak)
        logits = output.logits.float()
        weak = weak.to(logits.device).float()
        scores = self.scores(logits[:, -weak.shape[1] :], weak)
        output.logits = scores if scores.shape == logits.shape else torch.cat([logits[:, : -weak.shape[1]], scores], 1)
        return output

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.fork.select(rows)

    def clear(self) -> None:
        super().clear()
        self.fork.cache.clear()

    @contextmanager
    def undone(self) -> Iterator[None]:
        grown = self.fork.cache.grown.copy()
        try:
            with super().undone():
                yield
        finally:
            self.fork.cache.grown = grown


class Apart(Riding):
    """A branch that reads prompts of its own. `redraw` gives the pictures that it sees in the place of the model's."""

    def __init__(
        self,
        host: Host,
        prompt: Prompt,
        conversation: Conversation,
        contrast: Contrast,
        fork: Fork,
        redraw: Redraw,
    ):
        super().__init__(host, prompt, conversation, contrast, fork)
        self.redraw, self.positions = redraw, Positions(host.decoder)

    def read(self, original: Call, kwargs: dict[str, Any]) -> Any:
        self.read_text()
        with self.positions.noted():
            output, _ = self.passes(kwargs).read(self.run, original, kwargs, self.layout.unread)
        return self.judged(output, self.read_own(original, kwargs))

    def read_own(self, original: Call, kwargs: dict[str, Any]) -> Tensor:
        """Read the branch's prompts, which end where the model's does. Returns logits [N, 1, V]."""
        if self.layout.turn:  # each turn anew, as its prompt is made from the whole conversation
            kwargs = self.conversation.whole(kwargs, self.layout.valid, self.host.family)
        self.contrast.redrawn = self.redraw(kwargs)
        with self.host.staged(merge([self.fork.branch.edits(Step(self.layout, 0, self.layout.length))]), 0, 0):
            weak = self.fork.read(original, kwargs, self.host.model, self.host.decoder, self.positions)
        self.contrast.redrawn = {}
        return weak


class Ahead(Apart):
    """The unedited model and the branch run ahead of each pass; the contrast weighs what both say."""

    def __init__(
        self,
        host: Host,
        prompt: Prompt,
        conversation: Conversation,
        contrast: Contrast,
        fork: Fork,
        redraw: Redraw,
    ):
        super().__init__(host, prompt, conversation, contrast, fork, redraw)
        self.unedited = new_cache(host.decoder.config)

    def read(self, original: Call, kwargs: dict[str, Any]) -> Any:
        self.read_text()
        step = self.layout.unread
        with torch.no_grad():
            with self.host.staged({}, step.start, self.layout.length), self.positions.noted():
                base = original(**{**kwargs, **self._unedited(step)}).logits
            self._weigh(base, self.read_own(original, kwargs))
        return self.judged(*self.passes(kwargs).read(self.run, original, kwargs, step))

    def go_on(self, original: Call, kwargs: dict[str, Any], step: Step) -> Any:
        self.check(step.start, len(given(kwargs)))
        host, own = self.host, {**kwargs, **self._unedited(step)}
        with torch.no_grad(), host.staged({}, step.start, self.layout.length):
            output, weak = self.fork.ride(original, own, host.stage, host.decoder, step)
        self._weigh(output.logits, weak)
        return self.judged(*self.run(original, kwargs, step))

    def resume(self, earlier: Any) -> None:
        super().resume(earlier)
        self.unedited = earlier.unedited

    def _unedited(self, step: Step) -> dict[str, Any]:
        """The arguments in which a pass of the unedited model differs from the caller's."""
        valid = self.layout.valid
        answered = valid.new_ones(len(valid), max(0, step.start + step.count - self.layout.length))
        return {
            "attention_mask": torch.cat([valid, answered], dim=1).long(),
            CACHE: self.unedited,
            "logits_to_keep": int(step.reading),
            **{"use_cache": True, "output_hidden_states": False},
        }

    def _weigh(self, base: Tensor, weak: Tensor) -> None:
        weak = weak.float()
        self.contrast.weigh(base[:, -weak.shape[1] :].float().to(weak.device), weak)

    def rehearsed(self, step: Step) -> Sequence[Edits]:
        return [self.contrast.watch(step)]

    def carry(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        return Reading.carry(self, original, kwargs, step)

    def judged(self, output: Any, weak: Tensor) -> Any:
        return Contrasted.judged(self, output, weak)

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.unedited.reorder_cache(rows)

    def clear(self) -> None:
        super().clear()
        self.unedited = new_cache(self.host.decoder.config)

    @contextmanager
    def undone(self) -> Iterator[None]:
        with cache_undone(self.unedited), super().undone():
            yield


def given(kwargs: Mapping[str, Any]) -> Tensor:
    """The tokens of a pass [B, count], or their embeddings."""
    ids = kwargs.get("input_ids")
    return kwargs["inputs_embeds"] if ids is None else ids
