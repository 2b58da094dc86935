"""Calibration files to look at: as text, as layer x head maps in a terminal, and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import SightlineError, install
from ...common.files import replacing
from ...plugin.calibration.files import Calibration
from ...plugin.calibration.sections import FirstToken, SourcedSection

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

SHADES = " ░▒▓█"
WIDE = 40  # heads from which a map takes one character each


def summary(fact: SourcedSection) -> str:
    """A section in a few words: its plain values, and the three largest entries of its first table; of factors, how many."""
    if isinstance(fact, FirstToken):
        values = [value for row in fact.gains for value in row]
        count = Counter(value for value in values if value != 1).items()
        return ", ".join(f"factor {value:.3g} for {heads} of {len(values)} heads" for value, heads in count) or "none"
    data = fact.model_dump(exclude={"source", *fact.tables()}, exclude_none=True)
    parts = [f"{key.replace('_', ' ')} {_short(value)}" for key, value in data.items()]
    table = next(iter(fact.tables().values()), None)
    if table is not None:
        ranked = sorted(((v, layer, h) for layer, row in enumerate(table) for h, v in enumerate(row)), reverse=True)[:3]
        parts.append("top " + ", ".join(f"{layer}-{head} ({value:.3g})" for value, layer, head in ranked))
    return "; ".join(parts)


def _short(value: object) -> str:
    """Runs of numbers as "4-7"; of other lists the first few."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if not isinstance(value, list):
        return str(value)
    numbers = all(isinstance(item, int) for item in value)
    if numbers and len(value) > 2 and value == list(range(value[0], value[0] + len(value))):
        return f"{value[0]}-{value[-1]}"
    shown = [f"{item[0]}-{item[1]}" if isinstance(item, tuple) else str(item) for item in value[:8]]
    return ", ".join(shown) + (", ..." if len(value) > 8 else "") if shown else "none"


def terminal(calibration: Calibration) -> list[RenderableType]:
    """A file for a terminal: what is no table as YAML, and each table as a map."""
    import yaml
    from rich.markup import escape

    tables = calibration.head_tables()
    data = calibration.model_dump(by_alias=True, exclude_none=True, mode="json")
    for name in tables:
        section, key = name.split(".")
        del data[section][key]
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
    parts: list[RenderableType] = [escape(text.rstrip())]
    for name, table in tables.items():
        parts += [f"\n[bold]{escape(name)}[/bold]", head_map(table)]
    return parts


def head_map(table: Sequence[Sequence[float]]) -> Text:
    """A layer x head map in characters, first layer on top: the denser, the larger; the scale is the map's own."""
    from rich.text import Text

    values = [value for row in table for value in row]
    low, high = min(values, default=0.0), max(values, default=0.0)
    heads = max(map(len, table), default=1)
    text = Text(f"layer  head 0 .. {heads - 1}   scale {low:.3g} .. {high:.3g}\n", "dim")
    for layer, row in enumerate(table):
        text.append(f"{layer:5d}  ", "dim")
        for value in row:
            level = round((value - low) / (high - low) * (len(SHADES) - 1)) if high > low else 0
            text.append(SHADES[level] * (1 if heads > WIDE else 2), "cyan")
        best = f"  max {max(row):.3g} at head {max(range(len(row)), key=row.__getitem__)}" if row else ""
        text.append(f"{best}\n", "dim")
    return text


def picture(calibration: Calibration, path: Path) -> None:
    """Draw every table of a file into a PNG, side by side.

    Raises:
        SightlineError: the file has no table, matplotlib is missing, or the picture cannot be written.
    """
    tables = calibration.head_tables()
    if not tables:
        raise SightlineError(f"the calibration of '{calibration.model}' has no layer x head table to draw")
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except ImportError as error:
        raise SightlineError(f"a PNG needs matplotlib: {install('plots')}, or leave --png out") from error
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    tall = 1 + 0.16 * calibration.layers
    figure = Figure(figsize=(2 + 3.6 * columns, 0.6 + tall * rows), layout="constrained")
    figure.suptitle(calibration.model)
    for axes, (name, table) in zip(figure.subplots(rows, columns, squeeze=False).flat, tables.items(), strict=False):
        drawn = axes.imshow(table, cmap="magma", aspect="auto")
        axes.set(title=name, xlabel="head", ylabel="layer")
        figure.colorbar(drawn, ax=axes)
    for axes in figure.axes[len(tables) : rows * columns]:
        axes.set_axis_off()
    with replacing(path) as new:
        figure.savefig(new, format="png", dpi=120)
