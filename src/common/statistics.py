"""Bootstrap intervals over images, McNemar's test, rank correlation.

Almost every score of this package (CHAIR, POPE, word counts) is a sum over images divided by another sum over images,
so one small type carries them all, and its bootstrap is two matrix products. Images are the unit of resampling:
mentions in one caption and questions on one image are not independent. Where there are no images (questions to a text
model), a question stands in for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

DRAWS = 2000
LEVEL = 0.95


class SampledScore(Protocol):
    """A number that can be resampled: `value` on the images as they are, `images` of them."""

    @property
    def value(self) -> float: ...

    @property
    def images(self) -> int: ...

    def resampled(self, draws: int = DRAWS, seed: int = 0, empty: float = 0.0) -> Floats:
        """The score on `draws` bootstrap samples of the images, `[draws]`; `empty` where a sample has nothing to count."""
        ...


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
        total = float(self.bottom.sum())
        return float(self.top.sum()) / total if total else 0.0

    @property
    def images(self) -> int:
        return len(self.top)

    def resampled(self, draws: int = DRAWS, seed: int = 0, empty: float = 0.0) -> Floats:
        times = times_drawn(len(self.top), draws, seed)
        top, bottom = times @ self.top, times @ self.bottom
        return np.divide(top, bottom, out=np.full_like(top, empty), where=bottom != 0)


@dataclass(frozen=True, eq=False)
class Blend:
    """A weighted sum of ratios over the same images: the mean of three splits, MME's accuracy plus accuracy+.

    A bootstrap sample that has no image of a part says nothing of it: the other parts stand for the whole there.
    """

    parts: tuple[SampledScore, ...]
    weights: tuple[float, ...]

    @classmethod
    def mean(cls, parts: Sequence[SampledScore]) -> Blend:
        return cls(tuple(parts), (1 / len(parts),) * len(parts))

    @property
    def value(self) -> float:
        return sum(weight * part.value for part, weight in zip(self.parts, self.weights, strict=True))

    @property
    def images(self) -> int:
        return self.parts[0].images

    def resampled(self, draws: int = DRAWS, seed: int = 0, empty: float = 0.0) -> Floats:
        parts = np.stack([part.resampled(draws, seed, empty=np.nan) for part in self.parts])
        weights = np.where(np.isnan(parts), 0.0, np.asarray(self.weights)[:, None])
        total, weight = (weights * np.nan_to_num(parts)).sum(0), weights.sum(0)
        return np.divide(sum(self.weights) * total, weight, out=np.full(draws, empty), where=weight != 0)


@dataclass(frozen=True, eq=False)
class Auroc:
    """How often a score ranks a positive case above a negative one; a tie counts half. 0.5 where there are no pairs.

    All `[cases]`: the scores, whether a case is positive, the image that it belongs to, and the stratum: only pairs of
    one stratum are compared.
    """

    scores: Floats
    positive: NDArray[np.bool_]
    image: NDArray[np.int64]
    images: int
    strata: NDArray[np.int64]

    @classmethod
    def of(cls, scores: object, positive: object, image: object, images: int, strata: object = 0) -> Auroc:
        """Build from anything numpy can read as `[cases]`; a scalar stratum is repeated."""
        values = np.asarray(scores, dtype=np.float64)
        return cls(
            values,
            np.asarray(positive, dtype=bool),
            np.asarray(image, dtype=np.int64),
            images,
            np.broadcast_to(np.asarray(strata, dtype=np.int64), values.shape),
        )

    @property
    def value(self) -> float:
        return float(self._of(np.ones((1, len(self.scores))), 0.5)[0])

    def resampled(self, draws: int = DRAWS, seed: int = 0, empty: float = 0.5) -> Floats:
        return self._of(times_drawn(self.images, draws, seed)[:, self.image], empty)

    def _of(self, times: Floats, empty: float) -> Floats:
        """The score where each case counts so many times [draws, cases]."""
        above, pairs = np.zeros(len(times)), np.zeros(len(times))
        for stratum in np.unique(self.strata):
            inside = np.flatnonzero(self.strata == stratum)
            _, rank = np.unique(self.scores[inside], return_inverse=True)
            order = np.argsort(rank, kind="stable")
            inside, rank = inside[order], rank[order]
            positive = times[:, inside] * self.positive[inside]
            negative = times[:, inside] * ~self.positive[inside]
            before = np.pad(negative.cumsum(1), ((0, 0), (1, 0)))
            low, high = np.searchsorted(rank, rank, "left"), np.searchsorted(rank, rank, "right")
            above += (positive * (before[:, low] + before[:, high]) / 2).sum(1)
            pairs += positive.sum(1) * negative.sum(1)
        return np.divide(above, pairs, out=np.full(len(times), empty), where=pairs != 0)


@dataclass(frozen=True)
class McNemar:
    """Answers that only one of two runs got right: `gained` by the run, `lost` against plain; `p` is exact, two-sided."""

    gained: int
    lost: int
    p: float


def interval(score: SampledScore, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a score, as (low, high)."""
    return _percentiles(score.resampled(draws, seed), level)


def difference(
    score: SampledScore, plain: SampledScore, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, Interval]:
    """`score - plain` and its paired bootstrap interval: both are resampled with the same images.

    Raises:
        ValueError: the two scores are not over the same number of images.
    """
    if score.images != plain.images:
        raise ValueError(f"a paired difference needs the same images: {score.images} and {plain.images}")
    samples = score.resampled(draws, seed) - plain.resampled(draws, seed)
    return score.value - plain.value, _percentiles(samples, level)


def mcnemar(right: Sequence[bool], plain: Sequence[bool]) -> McNemar:
    """McNemar's exact test on the same questions: could the discordant answers be a fair coin's?

    It takes questions for independent, which several on one image are not: read it beside the bootstrap interval.

    Raises:
        ValueError: not the same number of questions.
    """
    from scipy.stats import binomtest

    pairs = list(zip(right, plain, strict=True))
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return McNemar(gained, lost, float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0)


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation of two tables of the same shape; ties share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(np.ravel(first), np.ravel(second)).statistic)


def _percentiles(samples: Floats, level: float) -> Interval:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]) if samples.size else (0.0, 0.0)
    return float(low), float(high)


@lru_cache(maxsize=4)
def times_drawn(images: int, draws: int, seed: int) -> Floats:
    """How often each image is drawn in each bootstrap sample, `[draws, images]`; rows sum to `images`."""
    if images == 0:
        return np.zeros((draws, 0))
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
