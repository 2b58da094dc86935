"""What the commands of the shell share: common options, and how results are printed and written."""

from __future__ import annotations

import sys
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
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="'embedded', 'smollm2', a checkpoint folder, or a hub name.")
]


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
