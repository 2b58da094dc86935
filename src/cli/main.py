"""The `sightline` command: parses, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from . import benchmarks, models, profiling, serving
from .shell import (
    MODELS,
    CalibrationFile,
    Device,
    Dtype,
    Interrupted,
    JsonFile,
    Model,
    SameModel,
    Seed,
    Threads,
    kept_in,
    note,
    resumable,
    show,
    the_model,
    warnings_in_a_line,
    write_json,
    wrote,
)

app = typer.Typer(
    name="sightline",
    help="Make vision-language models of Hugging Face transformers hallucinate less, at inference time.",
    no_args_is_help=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
_USER_STATUS, _FAULT_STATUS, _INTERRUPTED = 2, 1, 130


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (or set SIGHTLINE_DEBUG=1).")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if debug:
        os.environ["SIGHTLINE_DEBUG"] = "1"
    if version:
        typer.echo(f"sightline {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def command(name: str | None = None, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of the shell; the listing shows the first line of its docstring whole."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        first = (function.__doc__ or "").split("\n")[0]
        return app.command(name, short_help=first, **options)(function)

    return register


@command()
def demo(
    model: Annotated[str, typer.Option(help="'embedded' or 'embedded-smol'.")] = "embedded",
    scenes: Annotated[int, typer.Option(min=1, help="How many test scenes.")] = 60,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for report.html and the captions.")] = Path(
        "demo-out"
    ),
    suite: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Other configurations than the shipped ones.")
    ] = None,
    threads: Threads = 1,
    json: JsonFile = None,
) -> None:
    """Run an embedded model on generated scenes, plain and with each configuration; write an HTML report."""
    from ..benchmarks import demo as demos
    from ..common.files import check_writable
    from ..models.loading import quiet

    quiet()
    check_writable(json, out=out / "report.html")
    with resumable(kept_in(out)):
        measured = demos.demo(name=model, scenes=scenes, seed=seed, suite=suite, threads=threads)
    used = str(measured.result.get("calibration", ""))
    note(f"calibration: your own file {used}, made by sightline calibrate" if used.endswith(".yaml") else None)
    show(*demos.tables(measured.result), *map(wrote, demos.save(measured, out, json)))


@command()
def generate(
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    model: Model = None,
    model_option: SameModel = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="The image.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE|METHOD", help="A YAML file or a method's name; plain without it.")
    ] = None,
    calibration: CalibrationFile = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 128,
    carve: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Show the part that the question is about (CARVE); its map goes into this file."
        ),
    ] = None,
    carving: Annotated[
        str, typer.Option(metavar="YAML", help="Settings of CARVE such as '{top: 0.4}': see sightline methods carve.")
    ] = "{}",
    explain: Annotated[
        bool, typer.Option("--explain", help="Put brackets around the words that are weakly grounded in the image.")
    ] = False,
    heat: Annotated[
        Path, typer.Option(metavar="PNG", help="With --explain: where the model looked for each of these words.")
    ] = Path("explain.png"),
    device: Device = "cpu",
    dtype: Dtype = "float32",
    json: JsonFile = None,
) -> None:
    """Ask a model once, greedily, with a configuration attached."""
    from ..common.files import check_writable
    from ..common.validation import inline
    from ..models.loading import quiet
    from .generate import reply

    quiet()
    check_writable(json, carve, heat if explain else None)
    result = reply(
        the_model(model, model_option),
        prompt,
        image,
        config,
        calibration=calibration,
        new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        carve=carve,
        carving=inline(carving, "--carving"),
        explain=heat if explain else None,
        say=note,
    )
    typer.echo(result["marked" if explain else "reply"])
    if carve is not None:
        show(wrote(carve))
    if explain:
        typer.echo(f"[word]: {result['rule']}")
        typer.echo(result["note"] or wrote(heat))
    write_json(json, result)


@command()
def bench(
    methods: Annotated[
        str,
        typer.Option(
            help="Names joined by commas, a+b for two together, naive:NAME (decore, var, gift) for how one writes it without"
            " the plugin, trace, or YAML files."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODELS.removesuffix('.')}; also 'llava-shape', 'llava-7b-shape', 'llama-2-7b-shape'; default:"
            " 'embedded'.",
        ),
    ] = None,
    model_option: SameModel = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 32,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=2, help="Length of the prompt, of a text model or a shape; default: 512 of text.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows.")] = 1,
    beams: Annotated[int, typer.Option(min=1, help="Beams.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Measure again with a static cache and compiled decode steps.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after the warm-up.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    calibration: CalibrationFile = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    json: JsonFile = None,
) -> None:
    """Measure what methods cost: prefill, decode and memory, as ratios to plain in the same round."""
    from ..benchmarks.speed import bench as speed
    from ..common.files import check_writable
    from ..common.progress import progress_bar
    from ..models.loading import quiet

    quiet()
    check_writable(json)
    with progress_bar() as bar:
        job = bar.add_task("loading", total=None)
        result = speed.bench(
            the_model(model, model_option, "embedded"),
            [item.strip() for item in methods.split(",") if item.strip()],
            new_tokens=new_tokens,
            prompt_tokens=prompt_tokens,
            batch=batch,
            beams=beams,
            compiled=compiled,
            repeats=repeats,
            threads=threads,
            calibration=calibration,
            dtype=dtype,
            device=device,
            advance=lambda name, total: bar.update(job, advance=1, total=total, description=name),
        )
    show(speed.table(result))
    write_json(json, result)


@command()
def play(
    model: Model = None,
    model_option: SameModel = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the page is served, on this machine only.")] = 7860,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Serve a page on this machine that asks a model plain and under configurations, side by side."""
    from ..models.loading import cpu_threads, load_model, quiet
    from ..play import page

    page.import_gradio()  # a missing package should not wait for the model
    from ..play.answers import Player

    quiet()
    name = the_model(model, model_option, "embedded")
    player = Player(*load_model(name, dtype=dtype, device=device), name)
    with cpu_threads(threads):
        page.serve(player, port, lambda address: show(f"{address} (Ctrl-C ends it)"))


@command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the settings of this method only.")] = None,
    json: JsonFile = None,
) -> None:
    """List the registered methods, or one with its settings and their defaults."""
    from . import listing

    known = listing.catalogue(name)
    show(*listing.tables(known, detailed=name is not None))
    write_json(json, known)


for _one in (
    models.models,
    models.check,
    profiling.calibrate,
    profiling.tune,
    profiling.show,
    benchmarks.report,
    serving.export,
):
    command()(_one)
command("eval")(benchmarks.command)

# What it does not know is vLLM's.
command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serving.serve)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0; 2 for a mistake that the user can mend (one line on standard error); 1 for a fault of ours (one line, and the
    traceback in a file).
    """
    try:
        with warnings_in_a_line():
            words = None if arguments is None else list(arguments)
            status = app(args=words, prog_name="sightline", standalone_mode=False)
        if status == _INTERRUPTED:  # typer turns Ctrl-C into this status
            return _fail("interrupted", _INTERRUPTED)
        sys.stdout.flush()  # a full disk is told here, not when Python ends
        return status if isinstance(status, int) else 0
    except Interrupted as hint:
        return _fail(f"interrupted; {hint}", _INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left (`sightline methods | head`): nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """Say what went wrong, in one line, and return the exit status."""
    debug = os.environ.get("SIGHTLINE_DEBUG", "") not in ("", "0")
    if debug:
        traceback.print_exception(error)
    usage_error = typer.BadParameter.__mro__[1]  # base of all parsing errors, wherever typer keeps it
    if isinstance(error, usage_error):
        place = getattr(getattr(error, "ctx", None), "command_path", "sightline")
        return _fail(f"{error.format_message().rstrip('.')}: see '{place} --help'", _USER_STATUS)  # type: ignore[attr-defined]
    from ..common.errors import LONGEST, SightlineError, shortened

    if isinstance(error, SightlineError):
        return _fail(str(error), _USER_STATUS)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError, ValueError):  # what could not be written must not be tried again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        place = error.filename or "the output"
        return _fail(f"cannot write {place}: {error.strerror}; make room and run it again", _USER_STATUS)
    summary = f"internal fault, {type(error).__name__}: {error}"
    if debug:
        return _fail(summary, _FAULT_STATUS)
    summary = shortened(summary, LONGEST)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="sightline-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return _fail(f"{summary}; for a traceback run: sightline --debug ...", _FAULT_STATUS)
    return _fail(f"{summary}; traceback in {file.name} (or run: sightline --debug ...)", _FAULT_STATUS)


def _fail(message: str, status: int) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return status
