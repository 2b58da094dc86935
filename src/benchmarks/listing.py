"""What `sightline methods` and `sightline show` print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plugin.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def catalogue(name: str | None = None) -> list[dict[str, Any]]:
    """The registered methods, JSON-ready: `name`, `summary`, `source`, `cost`, `needs` and `settings` (`name`, `type`,
    `default`, `description`).

    Raises:
        ConfigError: no method of that name.
    """
    from .. import methods

    registered = methods()
    known = list(registered.values() if isinstance(registered, Mapping) else registered)
    if name is not None and name not in {method.name for method in known}:
        raise ConfigError(f"unknown method {name!r}: choose {', '.join(method.name for method in known)}")
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


def calibration(path: Path) -> list[RenderableType]:
    """A calibration file for a terminal: its facts, and each `[layers][heads]` table as a map.

    Raises:
        CalibrationError: the file is missing or malformed.
    """
    import yaml
    from rich.markup import escape

    from .. import Calibration

    data = Calibration.load(path).model_dump(by_alias=True, exclude_none=True, mode="json")
    maps = list(_pop_maps(data))
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
    parts: list[RenderableType] = [escape(text.rstrip())]
    for name, grid in maps:
        parts += [f"\n[bold]{escape(name)}[/bold]", head_map(grid)]
    return parts


def _pop_maps(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[list[float]]]]:
    """Take every list of lists of numbers out of nested dicts, as (dotted name, grid)."""
    for key, value in list(data.items()):
        if isinstance(value, dict):
            yield from _pop_maps(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(row, list) for row in value):
            yield f"{prefix}{key}", data.pop(key)


def head_map(grid: Sequence[Sequence[float]]) -> Text:
    """A layer x head map in characters, first layer on top: the denser, the larger; the scale is the map's own."""
    from rich.text import Text

    shades = " ░▒▓█"
    values = [value for row in grid for value in row]
    low, high = min(values, default=0.0), max(values, default=0.0)
    text = Text(f"layer  head 0 .. {max(map(len, grid), default=1) - 1}   scale {low:.3g} .. {high:.3g}\n", "dim")
    for layer, row in enumerate(grid):
        text.append(f"{layer:5d}  ", "dim")
        for value in row:
            level = round((value - low) / (high - low) * (len(shades) - 1)) if high > low else 0
            text.append(shades[level] * 2, "cyan")
        text.append(
            f"  max {max(row, default=0.0):.3g} at head {max(range(len(row)), key=row.__getitem__)}\n" if row else "\n",
            "dim",
        )
    return text
