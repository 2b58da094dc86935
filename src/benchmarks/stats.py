"""Bootstrap intervals over images.

Every score of this package (CHAIR, POPE, word counts) is a sum over images divided by another sum over images, so one
small type carries them all, and its bootstrap is two matrix products. Images are the unit of resampling: mentions in
one caption and questions on one image are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Ratio:
    """`sum(top) / sum(bottom)`, both `[images]`; 0.0 where nothing was counted (never a division by zero)."""

    top: Floats
    bottom: Floats

    @classmethod
    def of(cls, top: object, bottom: object) -> Ratio:
        """Build from anything numpy can read as `[images]` numbers; a scalar `bottom` is repeated."""
        upper = np.asarray(top, dtype=np.float64)
        lower = np.asarray(bottom, dtype=np.float64)
        return cls(upper, np.broadcast_to(lower, upper.shape))

    @property
    def value(self) -> float:
        """The score on the images as they are."""
        total = float(self.bottom.sum())
        return float(self.top.sum()) / total if total else 0.0

    def resampled(self, draws: int = DRAWS, seed: int = 0) -> Floats:
        """The score on `draws` bootstrap samples of the images, `[draws]`."""
        times = _times_drawn(len(self.top), draws, seed)
        top, bottom = times @ self.top, times @ self.bottom
        return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def interval(ratio: Ratio, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a score, as (low, high)."""
    return _percentiles(ratio.resampled(draws, seed), level)


def difference(
    ratio: Ratio, plain: Ratio, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, Interval]:
    """`ratio - plain` and its paired bootstrap interval: both are resampled with the same images.

    Raises:
        ValueError: the two scores are not over the same number of images.
    """
    if len(ratio.top) != len(plain.top):
        raise ValueError(f"a paired difference needs the same images: {len(ratio.top)} and {len(plain.top)}")
    samples = ratio.resampled(draws, seed) - plain.resampled(draws, seed)
    return ratio.value - plain.value, _percentiles(samples, level)


def _percentiles(samples: Floats, level: float) -> Interval:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]) if samples.size else (0.0, 0.0)
    return float(low), float(high)


@lru_cache(maxsize=4)
def _times_drawn(images: int, draws: int, seed: int) -> Floats:
    """How often each image is drawn in each bootstrap sample, `[draws, images]`; rows sum to `images`."""
    if images == 0:
        return np.zeros((draws, 0))
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
