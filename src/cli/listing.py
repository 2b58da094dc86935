"""What `sightline methods` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..common.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType


def catalogue(name: str | None = None) -> list[dict[str, Any]]:
    """The registered methods, JSON-ready.

    Each has `name`, `summary`, `source`, `cost`, `needs` and `settings` (`name`, `type`, `default`, `description`).

    Raises:
        ConfigError: no method of that name.
    """
    from ..common.validation import suggest
    from ..plugin.config import methods

    registered = methods()
    known = list(registered.values() if isinstance(registered, Mapping) else registered)
    if name is not None and name not in {method.name for method in known}:
        names = [method.name for method in known]
        raise ConfigError(f"unknown method {name!r}{suggest(name, names)}; choose {', '.join(names)}")
    return [_describe(method) for method in known if name in (None, method.name)]


def _describe(method: Any) -> dict[str, Any]:
    fields = method.config.model_json_schema().get("properties", {})
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "cost": method.cost,
        "needs": list(method.needs),
        "settings": [
            {
                "name": key,
                "type": _type(schema),
                "default": method.config.model_fields[key].get_default(call_default_factory=True),
                "description": schema.get("description", ""),
            }
            for key, schema in fields.items()
        ],
    }


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words: `number >= 0`, `a | b`, `list of integer or null`."""
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "value"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([kind, ", ".join(limits)]).strip()


def tables(known: Sequence[Mapping[str, Any]], *, detailed: bool) -> list[RenderableType]:
    """The catalogue for a terminal; `detailed` adds the descriptions of the settings."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if not detailed:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("method", "what it does", "settings (default)", "source"):
            table.add_column(column, overflow="fold")
        for method in known:
            settings = ", ".join(f"{item['name']}={_value(item['default'])}" for item in method["settings"])
            table.add_row(*(escape(cell) for cell in (method["name"], method["summary"], settings, method["source"])))
        return [table, "sightline methods NAME shows what each setting means."]
    parts: list[RenderableType] = []
    for method in known:
        parts.append(f"[bold]{escape(method['name'])}[/bold]  {escape(method['summary'])}")
        needs = ", ".join(method["needs"]) or "nothing"
        parts.append(escape(f"source: {method['source']}\ncost: {method['cost']}\nneeds from the calibration: {needs}"))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("setting", "type", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for item in method["settings"]:
            cells = (item["name"], item["type"], _value(item["default"]), item["description"])
            table.add_row(*(escape(cell) for cell in cells))
        parts.append(table)
    return parts


def _value(value: Any) -> str:
    return "-" if value is None else str(value)
