"""What `sightline tune` searches by default: which methods to use together, with which decoder, and how strongly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...common.errors import ConfigError, SightlineError
from .guards import Guard, Trial, optimiser
from .space import Space, joined

if TYPE_CHECKING:
    import optuna

NAME, NONE = "composition", "none"
OBJECTIVES = ("equal", "recall", "time")
"""What a composition is judged by: CHAIR_I at equal recall and the time shall fall, recall shall rise."""
DIRECTIONS = ("minimize", "maximize", "minimize")
Score = Callable[[Mapping[str, Any], str], dict[str, float]]


@dataclass(frozen=True)
class Compositions:
    """Parts that are used or not, each with its open settings, and at most one of those that have a decoder."""

    parts: Sequence[Space]

    @classmethod
    def of(cls, parts: Sequence[Space]) -> Compositions:
        """Raises ConfigError where two parts set one method: they cannot be used together."""
        owners: dict[str, str] = {}
        for part in parts:
            for entry in part.config["methods"]:
                (method,) = entry
                if owners.setdefault(method, part.name) != part.name:
                    raise ConfigError(
                        f"--methods {owners[method]},{part.name}: both set {method}, so they cannot be composed: name one, "
                        "or tune each by itself with --apart"
                    )
        return cls(parts)

    def draw(self, trial: optuna.Trial) -> dict[str, Any] | None:
        """A configuration, as the optimiser proposes; None for the plain model."""
        used = [part for part in self._plain if trial.suggest_categorical(f"use {part.name}", [False, True])]
        if self._decoders:
            names = [NONE, *(part.name for part in self._decoders)]
            chosen = trial.suggest_categorical("decoder", names)
            used += [part for part in self._decoders if part.name == chosen]
        config: dict[str, Any] | None = None
        for part in used:
            drawn = part.draw(trial)
            config = drawn if config is None else joined(config, drawn, NAME)
        return config

    def starts(self) -> list[dict[str, Any]]:
        """Proposals to begin with: each part alone, with its own defaults."""
        off: dict[str, Any] = {f"use {part.name}": False for part in self._plain}
        off |= {"decoder": NONE} if self._decoders else {}
        return [
            off | ({"decoder": part.name} if part in self._decoders else {f"use {part.name}": True}) | part.defaults()
            for part in self.parts
        ]

    @property
    def _plain(self) -> list[Space]:
        return [part for part in self.parts if not part.config.get("decoder")]

    @property
    def _decoders(self) -> list[Space]:
        return [part for part in self.parts if part.config.get("decoder")]


def compose(
    parts: Sequence[Space],
    score: Score,
    plain: Mapping[str, float],
    held: Sequence[Guard],
    trials: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[list[Trial], Trial | None]:
    """The distinct compositions that the optimiser tried, `pareto` marking those that no other one beats in everything.

    And the one that is named: of these, that with the lowest CHAIR_I at equal recall, if that is below plain's 0; of two
    such, the faster one. A composition that the model or the plugin refuses is told, and left out.
    """
    optuna = optimiser()
    space = Compositions.of(parts)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2 * len(parts), trials // 3))
    study = optuna.create_study(sampler=sampler, directions=list(DIRECTIONS))
    for start in space.starts():
        study.enqueue_trial(start)
    tried: dict[str, Trial] = {}
    for _ in range(trials):
        trial = study.ask()
        config = space.draw(trial)
        key = json.dumps(config, sort_keys=True)
        try:
            values = plain if config is None else score(config, tried[key].name if key in tried else _name(tried))
        except SightlineError as error:
            say(f"{_name(tried)} is left out: {error}")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        excess = [guard.excess(values, plain) for guard in held]
        for number, (guard, over) in enumerate(zip(held, excess, strict=True)):
            trial.set_constraint(f"{guard.score} {number}", over)
        study.tell(trial, [values[key] for key in OBJECTIVES])
        if config is not None and key not in tried:
            tried[key] = Trial(_name(tried), config, values, all(over <= 1e-9 for over in excess))
    front = pareto([one for one in tried.values() if one.kept])
    best = min(
        (one for one in front if one.values["equal"] < 0),
        key=lambda one: (one.values["equal"], one.values["time"]),
        default=None,
    )
    return [replace(one, pareto=one in front, best=one is best) for one in tried.values()], best


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other one equals or beats in every objective and beats in one."""

    def costs(one: Trial) -> list[float]:
        signs = [1 if direction == "minimize" else -1 for direction in DIRECTIONS]
        return [sign * one.values[key] for sign, key in zip(signs, OBJECTIVES, strict=True)]

    def beaten(one: Trial, other: Trial) -> bool:
        mine, its = costs(one), costs(other)
        return all(a >= b for a, b in zip(mine, its, strict=True)) and mine != its

    return [one for one in trials if not any(beaten(one, other) for other in trials)]


def _name(tried: Mapping[str, Trial]) -> str:
    return f"{NAME}#{len(tried) + 1}"
