"""Calls of one model queue: one thread at a time, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from ...common.errors import CallError


class CallQueue:
    """Lets one thread at a time through; a thread that is inside may enter again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()  # a ticket for each call that is open or waits; the first one is open
        self._owner: int | None = None  # the thread of the open call

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until the calls that came before are over; a call inside the open one goes ahead."""
        me = threading.get_ident()
        if self._owner == me:
            yield
            return
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(lambda: self._line[0] is ticket)
            except BaseException:
                self._leave(ticket)
                raise
            self._owner = me
        try:
            yield
        finally:
            with self._changed:
                self._owner = None
                self._leave(ticket)

    @contextmanager
    def between(self, what: str) -> Iterator[None]:
        """A turn that is no part of a call. Raises CallError, which names `what`, inside the open call."""
        if self._owner == threading.get_ident():
            raise CallError(
                f"{what} inside a call of the model (from a streamer, a logits processor, a hook) would change the rest of"
                " its answer: do it when the call has returned"
            )
        with self.turn():
            yield

    def _leave(self, ticket: object) -> None:
        self._line.remove(ticket)
        self._changed.notify_all()


_QUEUES: WeakKeyDictionary[nn.Module, CallQueue] = WeakKeyDictionary()
_GUARD = threading.Lock()


def queue_of(model: nn.Module) -> CallQueue:
    """The model's queue; it outlives attachments, because calls may wait for one to end."""
    with _GUARD:
        return _QUEUES.setdefault(model, CallQueue())
