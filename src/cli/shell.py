"""What the commands of the shell share: common options, checks, and how results are printed and written."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]
Seed = Annotated[int, typer.Option(min=0, help="Chooses scenes, questions and bootstrap draws.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; one gives the same numbers on every machine.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="Instead of the shipped calibration file.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto to spread the layers over all devices.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
MODELS = "'embedded', 'embedded-smol', 'smollm2', a checkpoint folder, or a hub name."
Model = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODELS)]
SameModel = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The same as MODEL.")]


class Interrupted(Exception):
    """Ctrl-C in the middle of something; the message says how to go on."""


def the_model(given: str | None, option: str | None, default: str | None = None) -> str:
    """The model that was named, as an argument or as an option."""
    if given is not None and option is not None and given != option:
        raise typer.BadParameter(f"MODEL is {given!r} and --model is {option!r}: name one")
    name = given or option or default
    if name is None:
        raise typer.BadParameter(f"no MODEL: give {MODELS}")
    return name


def own_calibration(model: Any) -> str | None:
    """A line that says so where a file that the user measured is used instead of the shipped one."""
    from ..plugin.calibration.files import found_own

    own = found_own(model)
    return None if own is None else f"calibration: your own file {own}, made by sightline calibrate"


def note(line: str | None) -> None:
    """Say something on standard error."""
    if line:
        typer.echo(line, err=True)


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Inside, a warning is a line on standard error, without the place in the code that gives it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def resumable(hint: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C inside ends with what `hint` says, which is asked then."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(hint()) from None


def kept_in(folder: Path) -> Callable[[], str]:
    """How an interrupted run goes on whose samples are kept in a folder."""

    def hint() -> str:
        if any(folder.glob("*/rank-*.jsonl")):
            return f"what is done is kept in {folder}: run the same command again to go on"
        return "nothing is kept yet: run the same command again"

    return hint


def show(*parts: RenderableType) -> None:
    """Print tables and lines."""
    from rich.console import Console

    # Piped output gets room for whole tables; a terminal keeps its own width.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)


def wrote(path: Path) -> str:
    return f"wrote {path}"


def write_json(path: Path | None, result: Any) -> None:
    """Write a result where a file was asked for, and say so."""
    if path is not None:
        from ..common import files

        files.write_json(path, result)
        show(wrote(path))
