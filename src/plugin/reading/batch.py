"""One prompt batch under way: what was decided for it, and what is kept beside the caller's cache."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from ...common.errors import LayoutError
from ..branches.decoder import Contrast
from ..branches.twin import Twin
from ..core.attention import Plan, merge
from ..core.layout import Layout, Step
from ..core.method import Session
from ..tracing.record import Record


class Run:
    """One prompt batch: its layout, a session per method, the decoder's contrast, the record of its answer, and the

    plan of its decode steps. `across`: see `Host`.
    """

    def __init__(
        self,
        layout: Layout,
        sessions: list[Session],
        contrast: Contrast | None,
        record: Record | None = None,
        across: frozenset[int] = frozenset(),
    ):
        self.layout, self.sessions, self.contrast, self.record = layout, sessions, contrast, record
        self.decode_plan: Plan | None = None
        self.cache: weakref.ref[Any] | None = None  # the cache that holds this prompt
        self.twin: Twin | None = None
        if contrast is not None and contrast.branch is not None:
            self.twin = Twin(contrast.branch, layout, lambda step: [s.edits(step) for s in sessions], across)
        self.seen = 0  # tokens of the sequence that the passes so far have read
        self.ahead: DynamicCache | None = None  # of the unedited model that runs ahead, where the contrast asks for it

    def plan(self, step: Step) -> Plan:
        if not step.reading and self.decode_plan is not None:
            return self.decode_plan
        watched = [one.watch(step) for one in (self.contrast, self.record) if one is not None]
        plan = merge([*(session.edits(step) for session in self.sessions), *watched])
        if not step.reading and (self.contrast is None or not self.contrast.ahead):
            self.decode_plan = plan
        return plan

    def follow(self, cache: Any) -> None:
        """Tie what the decoder keeps to the caller's cache: beams that reorder one reorder both."""
        self.cache = weakref.ref(cache, lambda _: self.clear())
        if self.contrast is None:
            return
        base, kind = self.cache, type(cache)

        def reorder_cache(beam_idx: Tensor) -> None:
            kind.reorder_cache(base(), beam_idx)
            self.select(beam_idx)

        cache.reorder_cache = reorder_cache

    def select(self, rows: Tensor) -> None:
        """Take these batch rows of what the decoder keeps, as a beam search does with the cache."""
        assert self.contrast is not None
        if self.twin is not None:
            self.twin.select(rows)
        if self.ahead is not None:
            self.ahead.reorder_cache(rows)  # type: ignore[arg-type]
        memory = self.contrast.memory
        self.contrast.memory = {name: held.index_select(0, rows.to(held.device)) for name, held in memory.items()}

    def clear(self) -> None:
        """Let go of all keys and values."""
        self.ahead = None
        if self.twin is not None:
            self.twin.clear()

    def check(self, start: int, rows: int) -> None:
        """Raises LayoutError where the caller's cache no longer holds what the decoder's state follows."""
        stateful = self.twin is not None or (self.contrast is not None and self.contrast.memory)
        if stateful and (start, rows) != (self.seen, self.layout.batch):
            raise LayoutError(
                f"the cache holds {start} tokens and {rows} rows were passed, but the decoder has followed {self.seen}"
                f" tokens of {self.layout.batch} rows: a cache that is cropped, repeated or selected from cannot be"
                " continued under a decoder; read the prompt again"
            )

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back what the passes inside add to what the decoder keeps."""
        seen, memory = self.seen, self.contrast.memory if self.contrast is not None else {}
        grown = self.twin.grown.copy() if self.twin is not None else {}
        try:
            with nullcontext() if self.ahead is None else cache_undone(self.ahead):
                yield
        finally:
            self.seen = seen
            if self.contrast is not None:
                self.contrast.memory = memory
            if self.twin is not None:
                self.twin.grown = grown

    def stop_recording(self) -> None:
        """The answer is complete; what follows on its cache is no part of it."""
        self.record = self.decode_plan = None


@contextmanager
def cache_undone(cache: DynamicCache) -> Iterator[None]:
    """Take back what the passes inside add to a cache."""
    held = [dict(layer.__dict__) for layer in cache.layers]  # a dynamic layer grows by new tensors, never in place
    try:
        yield
    finally:
        for layer, state in zip(cache.layers, held, strict=True):
            layer.__dict__.clear()
            layer.__dict__.update(state)
