"""What a search must keep, what it tried, and the optimiser that proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...common.errors import ConfigError, SightlineError, install
from ...common.validation import suggest
from .exam import HIGHER

KEPT = ("recall:-1", "words:-10", "accuracy:-1")
"""Guards that hold unless others are given for the same scores."""
KEPT_TOGETHER = ("accuracy:-1",)
"""The same for compositions, whose recall is an objective."""


@dataclass(frozen=True)
class Guard:
    """How far a score may move from plain: `change` points, for words percent; below 0 it may fall so far."""

    score: str
    change: float

    @classmethod
    def parse(cls, text: str) -> Guard:
        """From "recall:-1". Raises ConfigError."""
        score, _, change = text.partition(":")
        try:
            guard = cls(score.strip(), float(change))
        except ValueError:
            guard = cls("", 0.0)
        if guard.score not in HIGHER:
            raise ConfigError(
                f"cannot read --keep {text!r}: write score:points, as in recall:-1; scores: {', '.join(HIGHER)}"
            )
        return guard

    def __str__(self) -> str:
        return f"{self.score}:{self.change:g}"

    def excess(self, values: Mapping[str, float], plain: Mapping[str, float]) -> float:
        """By how much the guard is broken; 0 or less where it holds."""
        value, start = values[self.score], plain[self.score]
        limit = start * (1 + self.change / 100) if self.score == "words" else start + self.change / 100
        return limit - value if self.change <= 0 else value - limit


def guards(keep: Sequence[str], usual: Sequence[str] = KEPT) -> list[Guard]:
    """The usual ones, less those for whose scores `keep` has others, and these. Raises ConfigError."""
    given = [Guard.parse(text) for text in keep]
    named = {guard.score for guard in given}
    return [guard for guard in map(Guard.parse, usual) if guard.score not in named] + given


def check(objective: str, keep: Sequence[str], usual: Sequence[str] = KEPT) -> list[Guard]:
    """The guards of a search. Raises ConfigError for an unknown objective or guard, SightlineError without Optuna."""
    if objective not in HIGHER:
        raise ConfigError(
            f"unknown --objective {objective!r}{suggest(objective, list(HIGHER))}; choose {', '.join(HIGHER)}"
        )
    optimiser()
    return guards(keep, usual)


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried: its scores on the tuning data, and whether all guards hold.

    best: it is the one that is chosen. pareto: of compositions, none beats it in everything.
    """

    name: str
    config: Mapping[str, Any]
    values: Mapping[str, float]
    kept: bool
    best: bool = False
    pareto: bool = False


def optimiser() -> Any:
    """The optimiser, quiet. Raises SightlineError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise SightlineError(f"tuning needs optuna: {install('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # below, it prints the traceback of an interrupt
    return optuna
