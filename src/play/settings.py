"""The settings of methods as controls of a page, and what they write: a configuration's YAML, which is what is asked with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from ..common.documents import parse_yaml
from ..common.errors import ConfigError
from ..plugin.config import Config, methods
from ..plugin.core.registry import METHODS

REACH = 4
"""How far a slider goes where a setting has no upper bound: so many times its default."""


@dataclass(frozen=True)
class Control:
    """A setting that a page can show: a slider between two bounds, a choice, or a switch."""

    method: str
    name: str
    kind: Literal["slider", "choice", "switch"]
    value: Any
    description: str
    low: float = 0
    high: float = 1
    step: float = 0.01
    choices: tuple[str, ...] = ()


def controls(config: Config) -> list[Control]:
    """A control for each number, choice and switch of the configuration's methods and decoder, as it is set there.

    Other settings (lists, texts, what may be left out) stay with the YAML.
    """
    found = []
    for method, settings in (*config.methods, *([config.decoder] if config.decoder else [])):
        schema = type(settings).model_json_schema()["properties"]
        for name, told in schema.items():
            control = _control(method, name, told, getattr(settings, name))
            if control is not None:
                found.append(control)
    return found


def _control(method: str, name: str, schema: Mapping[str, Any], value: Any) -> Control | None:
    about = schema.get("description", "")
    kind = schema.get("type")
    if "enum" in schema:
        return Control(method, name, "choice", value, about, choices=tuple(schema["enum"]))
    if kind == "boolean":
        return Control(method, name, "switch", value, about)
    if kind not in ("number", "integer"):
        return None
    whole, default = kind == "integer", schema.get("default", value)
    step = 1 if whole else 0.01
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", max(1, REACH * abs(default)) + step) - step)
    if "minimum" not in schema and "exclusiveMinimum" not in schema:
        low = -high
    return Control(method, name, "slider", value, about, min(low, value), max(high, value), step)


def read(text: str) -> Config | None:
    """The configuration that a YAML text holds, None for an empty one. Raises ConfigError."""
    data = parse_yaml(text, "the YAML")
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise ConfigError("the YAML must be a mapping with the keys methods and decoder")
    return Config.load(data)


def write(config: Config | None) -> str:
    """The YAML of a configuration; it holds what differs from the defaults."""
    shown = {} if config is None else {key: one for key, one in config.dump().items() if one}
    return yaml.safe_dump(shown, sort_keys=False) if shown else ""


def choose(text: str, names: Sequence[str]) -> str:
    """The YAML with these methods and decoders: those that it holds keep their settings, others get their defaults.

    Raises ConfigError where they do not go together.
    """
    if not names:
        return ""
    try:
        held = _parts(read(text))
    except ConfigError:  # it is being replaced
        held = {}
    data: dict[str, Any] = {"methods": [{name: held.get(name, {})} for name in names if name in METHODS]}
    decoders = [name for name in names if name not in METHODS]
    if len(decoders) > 1:
        raise ConfigError(f"one decoder at a time: {' or '.join(decoders)}")
    return write(Config.load(data | ({"decoder": {decoders[0]: held.get(decoders[0], {})}} if decoders else {})))


def change(text: str, value: Any, *, method: str, name: str) -> str:
    """The YAML with one setting changed. Raises ConfigError where the value is not possible."""
    config = read(text)
    parts = _parts(config)
    if config is None or method not in parts:
        raise ConfigError(f"the YAML has no {method}: choose it first")
    if methods()[method].config.model_json_schema()["properties"][name].get("type") == "integer":
        value = int(value)
    parts[method] = {**parts[method], name: value}
    data = {**config.dump(), "methods": [{one: parts[one]} for one, _ in config.methods]}
    return write(
        Config.load(data | ({"decoder": {config.decoder[0]: parts[config.decoder[0]]}} if config.decoder else {}))
    )


def _parts(config: Config | None) -> dict[str, dict[str, Any]]:
    """The methods' and the decoder's settings that differ from the defaults, by name."""
    dumped: dict[str, Any] = {} if config is None else config.dump()
    found = {name: settings for one in dumped.get("methods", []) for name, settings in one.items()}
    return found | dict(dumped.get("decoder") or {})
