"""What `sightline tune` may try: configurations in which a setting is a range or a list.

The shape of a configuration (`methods`, `decoder`, `calibration`), by name. A setting is a value, `{from: 1, to: 4}`
(whole numbers where both ends are, `log: true` for a scale of ratios), or a list, of which one is taken (a setting that
takes a list itself is given a list of lists).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import ConfigError
from ...common.files import read_suite
from ...plugin.branches.decoder import DECODERS
from ...plugin.core.registry import METHODS

if TYPE_CHECKING:
    from optuna import Trial

SHIPPED = "tune.yaml"
RANGE = {"from", "to", "log"}


@dataclass(frozen=True)
class Space:
    """A configuration and its open settings: (key path, range or list of values) by "method.setting"."""

    name: str
    config: Mapping[str, Any]
    open: Mapping[str, tuple[tuple[Any, ...], Any]]

    def draw(self, trial: Trial) -> dict[str, Any]:
        """A configuration with a value for every open setting, as the optimiser proposes."""
        config = copy.deepcopy(dict(self.config))
        for label, (path, choice) in self.open.items():
            if isinstance(choice, list):  # by number: an optimiser's value must be plain
                value = choice[trial.suggest_categorical(label, range(len(choice)))]
            elif isinstance(choice["from"], int) and isinstance(choice["to"], int):
                value = trial.suggest_int(label, choice["from"], choice["to"], log=choice.get("log", False))
            else:
                value = trial.suggest_float(label, choice["from"], choice["to"], log=choice.get("log", False))
                value = float(f"{value:.3g}")
            place: Any = config
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
        return config

    def defaults(self) -> dict[str, Any]:
        """The proposal that stands for each method's own defaults, as far as they lie inside: where to start."""
        found: dict[str, Any] = {}
        for label, (_, choice) in self.open.items():
            method, setting = label.split(".")
            registry = METHODS if method in METHODS else DECODERS
            default = registry.find(method).config.model_fields[setting].get_default(call_default_factory=True)
            if isinstance(choice, list) and default in choice:
                found[label] = choice.index(default)
            elif (
                isinstance(choice, dict)
                and isinstance(default, int | float)
                and choice["from"] <= default <= choice["to"]
            ):
                found[label] = default
        return found


def spaces(names: Sequence[str] | None, path: Path | None = None) -> list[Space]:
    """The spaces of these names, in a file or the shipped `eval/tune.yaml`; "a+b" tunes a and b together.

    Raises:
        ConfigError: a name or a setting is unknown, or a range is none; the message names file and entry.
    """
    where = str(path) if path else f"eval/{SHIPPED}"
    known = read_suite(SHIPPED, path)
    found = []
    for name in known if names is None else names:
        parts = name.split("+")
        unknown = [part for part in parts if part not in known]
        if unknown:
            raise ConfigError(f"unknown --methods {unknown[0]!r}: {where} has {', '.join(known)}")
        config = known[parts[0]]
        for part in parts[1:]:
            config = joined(config, known[part], name)
        found.append(_space(name, config, where))
    return found


def joined(first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Two configurations as one. Raises ConfigError where both have a decoder."""
    if first.get("decoder") and second.get("decoder"):
        raise ConfigError(f"--methods {name}: only one decoder can be used at a time")
    joined = {**second, **first, "methods": [*(first.get("methods") or ()), *(second.get("methods") or ())]}
    decoder = first.get("decoder") or second.get("decoder")
    return {**joined, "decoder": decoder} if decoder else joined


def _space(name: str, config: Mapping[str, Any], where: str) -> Space:
    methods = config.get("methods") or []
    if not isinstance(methods, list):
        raise ConfigError(f"{where}: {name}: methods: expected a list such as `- vhr: {{alpha: {{from: 1, to: 4}}}}`")
    whole = {**config, "methods": [{one: {}} if isinstance(one, str) else copy.deepcopy(one) for one in methods]}
    if isinstance(whole.get("decoder"), str):
        whole["decoder"] = {whole["decoder"]: {}}
    entries: list[tuple[tuple[Any, ...], Any]] = [(("methods", i), one) for i, one in enumerate(whole["methods"])]
    entries += [(("decoder",), whole["decoder"])] if whole.get("decoder") else []
    opened = {
        label: (path, choice)
        for place, entry in entries
        for label, path, choice in _open(place, entry, f"{where}: {name}")
    }
    return Space(name, whole, opened)


def _open(place: tuple[Any, ...], entry: Any, where: str) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """The open settings of one method or decoder."""
    if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry.values())) or {}, dict):
        raise ConfigError(f"{where}: expected one name with its settings, got {entry!r}")
    ((method, settings),) = entry.items()
    if method not in METHODS and method not in DECODERS:
        raise ConfigError(f"{where}: there is no method or decoder {method!r}")
    schema = (METHODS if method in METHODS else DECODERS).find(method).config
    for setting, choice in (settings or {}).items():
        label = f"{method}.{setting}"
        if setting not in schema.model_fields:
            raise ConfigError(f"{where}: {label}: unknown setting; it takes {', '.join(schema.model_fields)}")
        if isinstance(choice, dict):
            low, high = choice.get("from"), choice.get("to")
            numbers = isinstance(low, int | float) and isinstance(high, int | float)
            below = numbers and choice.keys() <= RANGE and low < high  # type: ignore[operator]
            if not below or (choice.get("log") and low <= 0):  # type: ignore[operator]
                raise ConfigError(f"{where}: {label}: expected {{from: a, to: b}} with a below b, got {choice!r}")
            yield label, (*place, method, setting), choice
        elif isinstance(choice, list):
            if not choice:
                raise ConfigError(f"{where}: {label}: the list to choose from is empty")
            yield label, (*place, method, setting), choice
