"""Training data as arrays: scenes drawn by worker processes, a bounded number of batches ahead of the trainer."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .scenes import SIZE, UNEXPECTED, render
from .sprites import CATEGORIES

PATCH = 12
GRID = SIZE // PATCH
TOKENS = GRID * GRID


def coverage(owner: np.ndarray) -> np.ndarray:
    """Pixels of each category in each patch: (TOKENS, C + 1) uint8, the last column is background."""
    classes = len(CATEGORIES) + 1
    labels = np.where(owner < 0, classes - 1, owner).astype(np.int64)
    patches = labels.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(TOKENS, -1)
    flat = patches + np.arange(TOKENS)[:, None] * classes
    return np.bincount(flat.ravel(), minlength=TOKENS * classes).reshape(TOKENS, classes).astype(np.uint8)


def draw_batch(job: tuple[str, int, int, int], unexpected: float = UNEXPECTED) -> dict[str, Any]:
    """Draw scenes `start` to `start + size`: pixels (B, 96, 96, 3), coverage (B, 64, C + 1), objects and kinds.

    `unexpected`: the share of objects that their scene does not expect.
    """
    split, start, size, seed = job
    drawn = [render(split, index, seed, unexpected) for index in range(start, start + size)]
    return {
        "start": start,
        "pixels": np.stack([item.pixels for item in drawn]),
        "coverage": np.stack([coverage(item.owner) for item in drawn]),
        "scenes": [(item.kind, [(o.name, o.salience) for o in item.objects]) for item in drawn],
    }


def stream(function: Callable[[Any], Any], jobs: Iterator[Any], workers: int, ahead: int = 6) -> Iterator[Any]:
    """Map `function` over `jobs` in order, with `workers` processes at most `ahead` results in front (0: inline)."""
    if workers == 0:
        yield from map(function, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pending: deque[Any] = deque()
        for job in jobs:
            pending.append(pool.apply_async(function, (job,)))
            if len(pending) > ahead:
                yield pending.popleft().get()
        while pending:
            yield pending.popleft().get()
