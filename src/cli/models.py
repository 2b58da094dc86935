"""The commands `sightline models` and `sightline check`: which model types work, and what a given model supports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shell import CalibrationFile, Device, Dtype, JsonFile, Model, SameModel, show, the_model, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..plugin.support import Support


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show the types with this in their name or checkpoints.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """List the model types of transformers that were tried: what works on each, and what is refused and why."""
    from ..common.errors import ConfigError
    from ..common.validation import suggest
    from ..plugin.core.families.known import known_types

    known = known_types()
    chosen = [one for one in known if name is None or name.lower() in one.searched]
    if not chosen:
        raise ConfigError(f"no model type like {name!r}{suggest(str(name), [one.name for one in known])}")
    show(*_types(chosen, detailed=name is not None))
    write_json(json, [one.result() for one in chosen])


def check(
    model: Model = None,
    model_option: SameModel = None,
    calibration: CalibrationFile = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    json: JsonFile = None,
) -> None:
    """Attach to a model, prove on a few tokens that edits reach it, and say which methods and decoders run on it."""
    from dataclasses import asdict

    from ..common.files import check_writable
    from ..models.loading import load_model, quiet
    from ..plugin.calibration.files import Calibration
    from ..plugin.support import support

    quiet()
    check_writable(json)
    model = the_model(model, model_option)
    loaded, processor = load_model(model, dtype=dtype, device=device)
    found = support(loaded, None if calibration is None else Calibration.load(calibration, loaded), processor=processor)
    show(*_support(model, found))
    write_json(json, asdict(found))


def _types(chosen: list[Any], *, detailed: bool) -> list[RenderableType]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if detailed:
        return [
            "\n".join([f"[bold]{escape(one.name)}[/bold]", *(escape(f"  {line}") for line in one.lines())])
            for one in chosen
        ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("type", "reads", "checkpoint", "works"):
        table.add_column(column, overflow="fold")
    for one in chosen:
        table.add_row(escape(one.name), one.reads, escape(one.checkpoint), escape(one.summary))
    working = sum(one.works for one in chosen)
    return [table, f"{working} of {len(chosen)} types work; sightline models NAME says more of one."]


def _support(name: str, found: Support) -> list[RenderableType]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from ..profiling.profiles import PROFILES

    edited = f"{len(found.edited)} of {found.layers} layers edited, {found.heads} query heads"
    images = f"image tokens {', '.join(map(str, found.images))}" if found.images else "no image tokens"
    head = [f"[bold]{escape(found.model)}[/bold]  {found.architecture} ({found.adapter} adapter): {edited}; {images}"]
    head += [escape(f"  {note}") for note in found.notes]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "kind", "runs", "what it lacks"):
        table.add_column(column, overflow="fold")
    measured = {profile.section: name for name, profile in PROFILES.items()}
    for use in found.uses:
        lacks = ", ".join(use.lacks)
        runs = "yes" if use.works else "with calibration" if use.lacks else "no"
        table.add_row(use.name, use.kind, runs, escape(lacks or use.reason))
    wanted = list(dict.fromkeys(measured[s] for use in found.uses for s in use.lacks if s in measured))
    command = f"sightline calibrate {name} --profile {','.join(wanted)}"
    return [*head, table, *([f"What the calibration lacks is measured by: {escape(command)}"] if wanted else [])]
