"""How a prompt batch is read and continued: one strategy, chosen when its prompt is read, for each kind of decoder.

- `Reading`: no decoder, the model's passes with the methods' edits.
- `Contrasted`: the decoder looks at the model alone (DoLa, SGRS).
- `Riding`: a branch that carries the methods' edits rides along (DeCoRe, HICD, JuICE).
- `Apart`: the branch reads prompts of its own and rides along behind them (VCD, CAD ...).

Gates (`gates.py`) go with each: what decides about a token runs in front of the pass that reads it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...common.errors import LayoutError
from ..branches.decoder import Contrast
from ..branches.fork import Fork
from ..branches.positions import Positions
from ..core.attention import merge
from ..core.compat import CACHE, saved_cache
from ..core.edits import Edits
from ..core.graph import keeping_graph
from ..core.host import Host
from ..core.layout import Step
from .beside import TextBeside, read_text
from .conversation import Conversation
from .gates import Gates
from .passes import Call, Whole, given, one_by_one, passes_of, rehearsed
from .prompt import Prompt
from .scout import Redraw

NOTHING = torch.empty(0)  # the branch's logits of a pass in which none rides


class Reading:
    """A prompt batch without a decoder.

    conversation: what the caller's cache holds, this prompt included. seen: tokens that the passes so far have read.
    """

    def __init__(self, host: Host, prompt: Prompt, conversation: Conversation):
        self.host, self.prompt, self.layout, self.conversation = host, prompt, prompt.layout, conversation
        self.seen = prompt.layout.turn
        self.kept: list[Any] = [conversation, prompt.gates]  # what remembers passes, and can take them back
        self.cache: Callable[[], Any] = lambda: None  # the caller's cache that holds the prompt, while it lives
        self.beside: TextBeside | None = None  # the prompt's text, where it rides in the next pass
        self.alone = True  # nothing else rides in the prompt's pass, or keeps its graph

    def read(self, original: Call, kwargs: dict[str, Any]) -> Any:
        """Read the prompt. Returns the output, scores in the place of its logits."""
        passes = self.passes(kwargs)
        self.beside = read_text(self.host, self.prompt, kwargs, self.alone and type(passes) is Whole)
        self.decide(original, kwargs)
        return self.judged(*passes.read(self.run, original, kwargs, self.layout.unread))

    def go_on(self, original: Call, kwargs: dict[str, Any], step: Step) -> Any:
        """A pass behind the prompt. Returns the output, scores in the place of its logits."""
        self.check(step.start, len(given(kwargs)))
        if self.one_by_one and step.count > 1:
            return one_by_one(partial(self.go_on, original), kwargs, step)
        for gate in self.gates.all:
            if gate.scout is not None:
                gate.open(gate.opened_at(gate.scout.go_on(original, kwargs, step)))
        return self.judged(*self.run(original, kwargs, step))

    @property
    def one_by_one(self) -> bool:
        """Whether several tokens behind the prompt are read in a pass for each."""
        return bool(self.gates)

    @property
    def gates(self) -> Gates:
        return self.prompt.gates

    def decide(self, original: Call, kwargs: dict[str, Any]) -> None:
        """Let gates that decide of the token under way decide of the first, by the plain model's reading of the prompt."""
        step, gates = self.layout.unread, self.gates
        for gate in gates.all:
            if gate.scout is not None:
                gate.open(gate.opened_at(gate.scout.read(original, kwargs)))
        if gates.rehearsing:
            output = rehearsed(self.host, merge(gates.watch(step)), original, kwargs, step)
            gates.decide(output.logits[:, -1])

    def passes(self, kwargs: Mapping[str, Any]) -> Whole:
        """In which passes the model reads its prompt."""
        return passes_of(self.host, self.prompt, kwargs, self.layout.unread)

    def run(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        """A pass of the model with its edits: the output, and the branch's logits of its last rows, if any.

        Where a gate decides by the token under way, the pass runs with it shut, and once more if it opens.
        """
        gates, scored = self.gates, step.start + step.count >= self.layout.length
        gates.unseen = not step.reading and self.host.unseen
        for gate in gates.all:
            gate.begin(scored)
        if gates.rehearsing and not step.reading:
            gates.close()
            restore, emptied = self.saved(), saved_cache(kwargs[CACHE])

            def undo() -> None:
                restore()
                emptied()

            output, weak = self.once(original, kwargs, step)
            if gates.decide(output.logits[:, -1], undo):
                output, weak = self.once(original, kwargs, step)
        else:
            output, weak = self.once(original, kwargs, step)
        for gate in gates.all if scored else ():
            gate.end(output.logits[:, -1])
        return output, weak

    def once(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        """The same with the gates as they stand."""
        with self.host.staged(self.prompt.plan(step), step.start, self.layout.length):
            output, weak = self.carry(original, kwargs, step)
        self.seen = step.start + step.count
        return output, weak

    def carry(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        """The pass itself, staged."""
        beside, self.beside = self.beside, None
        if beside is not None:
            return beside.read(original, kwargs), NOTHING
        output = None if step.reading else self.host.decode(original, kwargs, step.count)
        return (original(**kwargs) if output is None else output), NOTHING

    def judged(self, output: Any, weak: Tensor) -> Any:
        """The output with the scores that the decoder makes of its logits."""
        if self.prompt.record is not None:
            self.prompt.note(output.logits, None)
        return output

    def resume(self, earlier: Any) -> None:
        """Take over, from the reading of the turn before, what is not read again."""
        for session, before in zip(self.prompt.sessions, earlier.prompt.sessions, strict=True):
            session.resume(before)
        for scout, former in zip(self.gates.scouts, earlier.gates.scouts, strict=True):
            scout.resume(former)

    # ---- its life ----------------------------------------------------------------------------------------------------

    def follow(self, cache: Any) -> None:
        """The prompt lies in this cache from now on. Beams that reorder it reorder what is kept here, too."""
        self.cache = weakref.ref(cache, lambda _: self.clear())
        if not self.stateful:
            return
        base, kind = self.cache, type(cache)

        def reorder_cache(beam_idx: Tensor) -> None:
            kind.reorder_cache(base(), beam_idx)
            self.select(beam_idx)

        cache.reorder_cache = reorder_cache

    def select(self, rows: Tensor) -> None:
        """Take these batch rows of what is kept, as a beam search does with the cache."""
        self.layout.check_order(rows)
        self.gates.select(rows)

    @property
    def stateful(self) -> bool:
        """Whether anything is kept that must follow the cache."""
        return bool(self.gates)

    def clear(self) -> None:
        """Let go of everything that a cache which is gone would have needed."""
        self.conversation.clear()
        for scout in self.gates.scouts:
            scout.clear()

    def check(self, start: int, rows: int) -> None:
        """Raises LayoutError where the caller's cache no longer holds what is kept here."""
        if self.stateful and (start, rows) != (self.seen, self.layout.batch):
            raise LayoutError(
                f"the cache holds {start} tokens and {rows} rows were passed, but the decoder or a gate has followed"
                f" {self.seen} tokens of {self.layout.batch} rows: a cache that is cropped, repeated or selected from cannot"
                " be continued under it; read the prompt again"
            )

    def saved(self) -> Callable[[], None]:
        """What takes back all that the passes from now on add to what is kept."""
        seen, restores = self.seen, [one.saved() for one in self.kept]

        def restore() -> None:
            self.seen = seen
            for undo in restores:
                undo()

        return restore

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back what the passes inside add to what is kept."""
        restore = self.saved()
        try:
            yield
        finally:
            restore()


class Contrasted(Reading):
    """A decoder that looks at the model's own passes."""

    def __init__(self, host: Host, prompt: Prompt, conversation: Conversation, contrast: Contrast):
        super().__init__(host, prompt, conversation)
        self.contrast, self.alone = contrast, contrast.graph is None

    def scores(self, base: Tensor, weak: Tensor | None) -> Tensor:
        """What the decoder makes of logits [B, T, V] and of the branch's [N, T, V]."""
        scores, rows = self.contrast.combine(base, weak), self.contrast.contrasted
        scores = self.gates.scaled(scores, base)
        return scores if rows is None else torch.where(rows.to(scores.device)[:, None, None], scores, base)

    def passes(self, kwargs: Mapping[str, Any]) -> Whole:
        one_row = self.contrast.graph is not None
        return passes_of(self.host, self.prompt, kwargs, self.layout.unread, self.rehearsed, one_row)

    def rehearsed(self, step: Step) -> Sequence[Edits]:
        """What of the decoder's own takes part where the prompt is rehearsed."""
        return ()

    def once(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        self.contrast.begin(step, None if step.reading else kwargs.get("input_ids"))
        plan = self.prompt.plan(step, [self.contrast.watch(step)])
        with self.host.staged(plan, step.start, self.layout.length):
            output, weak = self.carry(original, kwargs, step)
        self.seen = step.start + step.count
        return output, weak

    def carry(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        graph = self.contrast.graph
        if graph is None or step.start + step.count < self.layout.length:
            return super().carry(original, kwargs, step)
        self.host.left_uncompiled("its decoder takes gradients of the logits")
        output = keeping_graph(original, kwargs, self.host.layers[graph])
        return output, NOTHING

    def judged(self, output: Any, weak: Tensor) -> Any:
        self.prompt.note(output.logits, None)
        output.logits = self.scores(output.logits.float(), None)
        return output

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        memory = self.contrast.memory
        self.contrast.memory = {name: held.index_select(0, rows.to(held.device)) for name, held in memory.items()}

    @property
    def stateful(self) -> bool:
        return bool(self.contrast.memory) or super().stateful

    def saved(self) -> Callable[[], None]:
        memory, former = self.contrast.memory, super().saved()

        def restore() -> None:
            self.contrast.memory = memory
            former()

        return restore


class Riding(Contrasted):
    """A branch whose rows ride along in the model's passes."""

    stateful = True

    def __init__(self, host: Host, prompt: Prompt, conversation: Conversation, contrast: Contrast, fork: Fork):
        super().__init__(host, prompt, conversation, contrast)
        self.fork, self.alone = fork, False
        self.kept.append(fork)

    @property
    def one_by_one(self) -> bool:
        return self.fork.branch.anew or super().one_by_one

    def rehearsed(self, step: Step) -> Sequence[Edits]:
        return [self.contrast.watch(step)] if self.fork.branch.anew else []

    def resume(self, earlier: Any) -> None:
        super().resume(earlier)
        self.fork.resume(earlier.fork)

    def carry(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        if not self.fork.rides_in(step):
            return super().carry(original, kwargs, step)
        joint = self.fork.joint
        both = None if step.reading else self.host.decode(original, kwargs, step.count, joint)
        if both is not None:
            return joint.parted(both, kwargs)
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
        self.fork.clear()


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
        read_text(self.host, self.prompt, kwargs, False)
        self.decide(original, kwargs)
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
