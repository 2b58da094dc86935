"""YAML that refuses a key given twice, and pydantic's complaints as one line: which file, which key, what it takes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from .errors import ConfigError


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key that stands twice in a mapping is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """`yaml.safe_load` without duplicate keys. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def inline(text: str, where: str) -> dict[str, Any]:
    """A mapping given as text. Raises ConfigError."""
    try:
        data = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {text!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {text!r} is no mapping: write settings as '{{name: value}}'")
    return {str(key): value for key, value in data.items()}


def describe(error: ValidationError, where: str, model: type[BaseModel], prefix: str = "") -> str:
    """`where`: 'key': what is wrong, for every complaint; unknown keys come with the known ones."""
    return "; ".join(_one(item, where, model, prefix) for item in error.errors())


def _one(item: Any, where: str, model: type[BaseModel], prefix: str) -> str:
    key = ".".join([*([prefix] if prefix else []), *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = allowed_keys(model, item["loc"][:-1])
        return f"{where}: unknown key '{key}'{suggest(str(item['loc'][-1]), known)}; allowed: {', '.join(known)}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] in ("missing", "value_error") else f" (got {item['input']!r})"
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
    near = get_close_matches(given, known, n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def _types(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]
