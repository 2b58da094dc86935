"""Pydantic's complaints as one line (which file, which key, what it takes), and near names."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from .documents import parse_yaml
from .errors import ConfigError, shortened, shown

TOLD = 3
"""Complaints that a message names; the others are counted."""


def inline(text: str, where: str) -> dict[str, Any]:
    """A mapping given as text. Raises ConfigError."""
    data = parse_yaml(text, f"{where} {shown(text)}")
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {shown(text)} is no mapping: write settings as '{{name: value}}'")
    return {str(key): value for key, value in data.items()}


def describe(error: ValidationError, where: str, model: type[BaseModel], prefix: str = "") -> str:
    """`where`: 'key': what is wrong, for the first complaints; unknown keys come with the known ones."""
    found = error.errors(include_url=False)
    told = [_one(item, where, model, prefix) for item in found[:TOLD]]
    return "; ".join([*told, f"and {len(found) - TOLD} more"] if len(found) > TOLD else told)


def _one(item: Any, where: str, model: type[BaseModel], prefix: str) -> str:
    key = shortened(".".join([*([prefix] if prefix else []), *(str(part) for part in item["loc"])]), 120)
    if item["type"] == "extra_forbidden":
        known = allowed_keys(model, item["loc"][:-1])
        return f"{where}: unknown key '{key}'{suggest(str(item['loc'][-1]), known)}; allowed: {', '.join(known)}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] in ("missing", "value_error") else f" (got {shown(item['input'])})"
    return f"{where}: '{key}': {message}{given}" if key else f"{where}: {message}{given}"


def allowed_keys(model: type[BaseModel], path: tuple[int | str, ...] = ()) -> list[str]:
    """The keys that `model` takes at `path`, by their names in the file."""
    for part in path:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        inner = (
            next((t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
            if field
            else None
        )
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def suggest(given: str, known: list[str]) -> str:
    """ ", did you mean ...?" where a known name is near."""
    near = get_close_matches(given[:100], known, n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def _types(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]
