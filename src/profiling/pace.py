"""Work on many items, a few at a time: as many as the memory holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ..common.errors import SightlineError

T = TypeVar("T")
R = TypeVar("R")
STARVED = "out of memory with one example at a time: use --dtype bfloat16, smaller pictures, or --device auto"


class Pace:
    """How many items are worked on at once; where memory runs out, half as many from then on, and `say` tells."""

    def __init__(self, size: int, say: Callable[[str], None] = lambda _: None):
        self.size, self.say = size, say

    def over(
        self, items: Sequence[T], work: Callable[[Sequence[T]], R], *, name: str, start: int = 0
    ) -> Iterator[tuple[R, int]]:
        """What `work` makes of every few of the items from `start` on, and how many are done by then.

        Raises:
            SightlineError: memory runs out with a single item.
        """
        done = start
        while done < len(items):
            some = items[done : done + self.size]
            try:
                found = work(some)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            else:
                done += len(some)
                yield found, done
                continue
            self._slow_down(len(some), name)  # outside the handler, whose error keeps the tensors alive

    def _slow_down(self, tried: int, name: str) -> None:
        if tried == 1:
            raise SightlineError(STARVED)
        self.size = tried // 2
        self.say(f"{name}: out of memory with {tried} examples at once, continuing with {self.size}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; on the CPU torch raises a plain RuntimeError."""
    said = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said or "allocate memory" in said
    )
