"""Scores that a shorter caption, or a no to everything, cannot buy.

A method that names less is called better by CHAIR. Stopping earlier is free, so that is what it has to beat: its CHAIR_I
minus what the plain model's captions give at the same recall, when they are cut behind their first object, their second,
and so on. Between two cuts, a share of the captions is cut at the later one. Beyond plain's own recall the plain captions go
on by the plain model's most likely continuation. The same for yes and no: accuracy minus that of the plain model at the
same share of yes, with its log-odds of yes shifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.statistics import DRAWS, Floats, times_drawn


@dataclass(frozen=True, eq=False)
class CaptionNames:
    """What each caption names, in its order: whether it is hallucinated, and whether it is a true object's first mention."""

    hallucinated: Sequence[Sequence[bool]]
    first: Sequence[Sequence[bool]]


@dataclass(frozen=True, eq=False)
class Curve:
    """The plain captions cut shorter and shorter: sums so far `[images, cuts]`, from nothing to all there is.

    The last `beyond` cuts are behind the captions' own ends, in what the model would go on with.
    """

    hallucinated: Floats
    mentions: Floats
    recalled: Floats
    objects: Floats
    beyond: int = 0

    @classmethod
    def of(cls, plain: CaptionNames, objects: Sequence[int], going_on: CaptionNames | None = None) -> Curve:
        """Of captions of images with so many true objects, and of their continuations."""
        parts = [plain] if going_on is None else [plain, going_on]
        tables = [
            [_cumulative(part.hallucinated), _cumulative(part.first), _counts(part.hallucinated)] for part in parts
        ]
        joined = tables[0]
        if going_on is not None:
            joined = [
                np.concatenate([one, one[:, -1:] + more[:, 1:]], axis=1)
                for one, more in zip(tables[0], tables[1], strict=True)
            ]
        beyond = 0 if going_on is None else tables[1][0].shape[1] - 1
        return cls(joined[0], joined[2], joined[1], np.asarray(objects, dtype=np.float64), beyond)

    def points(self) -> list[dict[str, float | bool]]:
        """For a plot: `recall`, `i`, and whether it is `beyond` the captions' ends, of each cut that names anything."""
        named, found = self.mentions.sum(0), self.recalled.sum(0) / max(1.0, self.objects.sum())
        share = self.hallucinated.sum(0) / np.maximum(1.0, named)
        end = len(named) - self.beyond
        return [
            {"recall": float(found[k]), "i": float(share[k]), "beyond": k >= end}
            for k in range(1, len(named))
            if named[k] and (k == 1 or named[k] > named[k - 1])
        ]

    def at(self, recalled: Floats, times: Floats) -> Floats:
        """CHAIR_I `[draws]` where so many objects are recalled `[draws]`; each image counts so many times `[draws, images]`.

        NaN where even the longest captions recall less.
        """
        reached, bad, all_ = (times @ one for one in (self.recalled, self.hallucinated, self.mentions))  # [draws, cuts]
        later = np.minimum((reached < recalled[:, None] - 1e-9).sum(1), reached.shape[1] - 1).clip(1)
        rows = np.arange(len(recalled))
        low, high = reached[rows, later - 1], reached[rows, later]
        share = np.divide(recalled - low, high - low, out=np.ones_like(low), where=high > low)
        mixed = [one[rows, later - 1] + share * (one[rows, later] - one[rows, later - 1]) for one in (bad, all_)]
        rate = np.divide(mixed[0], mixed[1], out=np.zeros_like(low), where=mixed[1] > 0)
        return np.where(recalled > reached[:, -1] + 1e-9, np.nan, rate)


@dataclass(frozen=True, eq=False)
class EqualRecall:
    """CHAIR_I of a run minus the curve's at the run's recall; counts of the run per image.

    Beyond the curve's end it is NaN, or with `clamped` against that end. Bootstrap samples are always clamped.
    """

    curve: Curve
    hallucinated: Floats
    mentions: Floats
    recalled: Floats
    clamped: bool = False

    @property
    def images(self) -> int:
        return len(self.mentions)

    @property
    def value(self) -> float:
        return float(self._of(np.ones((1, self.images)), self.clamped)[0])

    def resampled(self, draws: int = DRAWS, seed: int = 0, empty: float = 0.0) -> Floats:
        return self._of(times_drawn(self.images, draws, seed), True)

    def _of(self, times: Floats, clamped: bool) -> Floats:
        named, recalled = times @ self.mentions, times @ self.recalled
        rate = np.divide(times @ self.hallucinated, named, out=np.zeros_like(named), where=named > 0)
        return rate - self.curve.at(
            np.minimum(recalled, times @ self.curve.recalled[:, -1]) if clamped else recalled, times
        )


@dataclass(frozen=True, eq=False)
class EqualYes:
    """Accuracy of a run minus that of the plain model at the run's share of yes.

    All `[questions]`: whether yes is right, whether the run said yes, whether it was right, the plain model's log-odds of
    yes, and the image.
    """

    truths: NDArray[np.bool_]
    yes: NDArray[np.bool_]
    right: NDArray[np.bool_]
    odds: Floats
    image: NDArray[np.int64]
    images: int

    @property
    def value(self) -> float:
        return float(self._of(np.ones((1, self.images)))[0])

    def resampled(self, draws: int = DRAWS, seed: int = 0, empty: float = 0.0) -> Floats:
        return self._of(times_drawn(self.images, draws, seed), empty)

    def _of(self, times: Floats, empty: float = 0.0) -> Floats:
        order = np.argsort(-self.odds, kind="stable")
        weights = times[:, self.image]
        wanted = weights @ self.yes  # questions that the shifted model says yes to
        sorted_ = weights[:, order]
        before = sorted_.cumsum(1) - sorted_
        taken = np.clip(wanted[:, None] - before, 0.0, sorted_)  # of each question, the share that gets a yes
        truths = self.truths[order]
        shifted = (taken * truths + (sorted_ - taken) * ~truths).sum(1)
        total = weights.sum(1)
        return np.divide(weights @ self.right - shifted, total, out=np.full(len(total), empty), where=total > 0)


def log_odds(choices: Sequence[float]) -> float:
    """Of yes against no, from the log-probabilities of the first half of the choices (ways to say yes) and the second."""
    half = len(choices) // 2
    yes, no = (np.logaddexp.reduce(part) for part in (choices[:half], choices[half:]))
    return float(yes - no) if np.isfinite(yes) or np.isfinite(no) else 0.0


def _cumulative(rows: Sequence[Sequence[bool]]) -> Floats:
    """Sums of the first 0, 1, ... flags of each row, the short rows going on with their last `[rows, longest + 1]`."""
    table = np.zeros((len(rows), max([1, *map(len, rows)]) + 1))
    for number, row in enumerate(rows):
        table[number, 1 : len(row) + 1] = row
    return table.cumsum(1)


def _counts(rows: Sequence[Sequence[bool]]) -> Floats:
    return _cumulative([[True] * len(row) for row in rows])
