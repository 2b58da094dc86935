"""The commands `sightline calibrate`, `tune` and `show`: parse, call, print. Heavy imports wait until one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shell import (
    CalibrationFile,
    Device,
    Dtype,
    JsonFile,
    Model,
    SameModel,
    note,
    own_calibration,
    resumable,
    the_model,
    write_json,
    wrote,
)
from .shell import show as print_parts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

    from ..profiling.calibrate import Measured

Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: one for 'embedded', else all.")]


def calibrate(
    model: Model = None,
    model_option: SameModel = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="all (default), or names joined by commas: sinks, gaze, visual-heads, image-heads, concept-heads,"
            " ocr-heads, retrieval-heads, inducing-heads, conflict-heads, premise-heads, word-heads, head-gates,"
            " first-token, replies, gate-thresholds."
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Folder of pictures, with captions or boxes as JSON lines or COCO, or 'testbed': generated examples.",
        ),
    ] = "testbed",
    samples: Annotated[int, typer.Option(min=1, help="How many examples.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the examples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The calibration file; default: where the model's is looked for."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    imported: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Take retrieval heads from a public head_score file."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples at a time; halved where memory runs out.")] = 8,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    json: JsonFile = None,
) -> None:
    """Measure a model and write its calibration file, which makes every method usable on it."""
    from ..common.files import check_writable, command
    from ..common.progress import progress_bar
    from ..models.loading import EMBEDDED, cpu_threads, load_model, quiet
    from ..profiling.calibrate import calibrate as measure
    from ..profiling.calibrate import check

    quiet()
    check_writable(json, out=out)
    name = the_model(model, model_option)
    names = [one.strip() for one in (profile or ("" if imported else "all")).split(",") if one.strip()]
    check(names, data, out, imported)
    loaded, processor = load_model(name, dtype=dtype, device=device)
    with (
        resumable(lambda: "run the same command with --resume to go on"),
        cpu_threads(threads or (1 if name == EMBEDDED else None)),
        progress_bar() as bar,
    ):
        task = bar.add_task("loading", total=None)
        measured = measure(
            loaded,
            processor,
            profiles=names,
            data=data,
            samples=samples,
            seed=seed,
            out=out,
            resume=resume,
            imported=imported,
            batch=batch,
            command=command(),
            say=_teller(bar),
            advance=_follow(bar, task),
        )
    print_parts(*_table(measured))
    print_parts(wrote(measured.path))
    if out is None:
        note(
            f"from now on attach, demo, eval, tune and generate take {measured.path} for this model, not a shipped file;"
            " delete it to undo that"
        )
    write_json(json, measured.result())


def tune(
    methods: Annotated[
        str,
        typer.Option(
            help="Entries of the search space, joined by commas: which to use together is searched, too; a+b is one entry."
        ),
    ],
    model: Model = None,
    model_option: SameModel = None,
    data: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder of pictures with boxes of objects, or 'testbed': calibration scenes."),
    ] = "testbed",
    samples: Annotated[int, typer.Option(min=2, help="Pictures to tune on.")] = 100,
    apart: Annotated[
        bool, typer.Option("--apart", help="Search each entry by itself, by one score, instead of compositions.")
    ] = False,
    objective: Annotated[
        str,
        typer.Option(
            help="With --apart: equal (CHAIR_I at equal recall), chair_i, chair_s, recall, precision, f1, ..."
        ),
    ] = "equal",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORE:POINTS",
            help="How far a score may fall below plain (words: in percent); may be repeated. What is not named stays"
            " guarded by accuracy:-1, with --apart also by recall:-1 and words:-10.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Settings to try; with --apart for each entry.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Chooses pictures, questions and trials.")] = 0,
    report: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="What to report on; default: other pictures of --data, or test scenes."),
    ] = None,
    report_samples: Annotated[int, typer.Option(min=0, help="Pictures to report on; 0: no report.")] = 150,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another search space than eval/tune.yaml.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the chosen configurations and the trials.")
    ] = Path("tune-out"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    calibration: CalibrationFile = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of one batch; halved where memory runs out.")] = 20,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    json: JsonFile = None,
) -> None:
    """Search method settings on some pictures, and report the chosen ones on others."""
    from ..common.files import check_writable, locked
    from ..common.progress import progress_bar
    from ..models.loading import EMBEDDED, cpu_threads, load_model, quiet
    from ..plugin.config import check_calibrations
    from ..profiling.tuning import tune as tuning
    from ..profiling.tuning.compositions import Compositions
    from ..profiling.tuning.exam import exams
    from ..profiling.tuning.guards import check
    from ..profiling.tuning.space import spaces
    from ..profiling.tuning.tune_tables import terminal

    quiet()
    check_writable(json, out=out / "trials.md")
    name = the_model(model, model_option)
    check(objective, keep or ())
    wanted = spaces([one.strip() for one in methods.split(",") if one.strip()], space)
    if not apart:
        Compositions.of(wanted)
    check_calibrations([], calibration)
    with (
        locked(out / ".lock", out),
        resumable(lambda: "run the same command with --resume to go on"),
        cpu_threads(threads or (1 if name == EMBEDDED else None)),
        progress_bar() as bar,
    ):
        say, task = _teller(bar), bar.add_task("plain", total=None)
        asked, reported = exams(data, samples, report, report_samples, seed=seed, batch=batch, say=say)
        loaded, processor = load_model(name, dtype=dtype, device=device)
        say(own_calibration(loaded) if calibration is None else None)
        result = tuning.tune(
            loaded,
            processor,
            wanted,
            asked,
            apart=apart,
            objective=objective,
            keep=keep or (),
            trials=trials,
            seed=seed,
            reported=reported,
            calibration=calibration,
            out=out,
            resume=resume,
            say=say,
            advance=lambda name, step, total: bar.update(task, description=name, advance=step, total=total),
        )
        saved = tuning.save(result, out)
    print_parts(*terminal(result), *map(wrote, saved))
    write_json(json, result)


def show(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A calibration file.")] = None,
    other: Annotated[Path | None, typer.Argument(metavar="OTHER", help="Another one, to compare with.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the layer x head maps into a PNG.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of calibration files.")] = False,
    json: JsonFile = None,
) -> None:
    """Print a calibration file and draw its layer x head maps, or compare two."""
    from ..common.errors import ConfigError
    from ..plugin.calibration.files import Calibration, json_schema

    if schema:
        import json as encoder

        typer.echo(encoder.dumps(json_schema(), indent=1))
        return
    if file is None:
        raise ConfigError("show needs a calibration file: sightline show FILE")
    if other is not None and png is not None:
        raise ConfigError("--png draws one file: leave the other out")
    from ..profiling.showing import compare, maps

    shown = Calibration.load(file)
    if png is not None:
        maps.picture(shown, png)  # a mistake should not stand below pages of maps
    if other is not None:
        result = compare.compare(shown, Calibration.load(other))
        print_parts(*compare.terminal(result))
    else:
        result = shown.model_dump(by_alias=True, exclude_none=True, mode="json")
        print_parts(*maps.terminal(shown))
    if png is not None:
        print_parts(wrote(png))
    write_json(json, result)


def _teller(bar: Progress) -> Callable[[str | None], None]:
    """Prints lines above a progress bar."""
    return lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True) if line else None


def _follow(bar: Progress, task: TaskID) -> Callable[[str, int, int], None]:
    """Shows the stage of a measurement that is under way; the time left is that of the stage."""

    def advance(name: str, done: int, total: int) -> None:
        now = next(one for one in bar.tasks if one.id == task)
        if (now.description, now.total) != (name, total) or done < now.completed:
            bar.reset(task, description=name, completed=done, total=total)
        else:
            bar.update(task, completed=done)

    return advance


def _table(measured: Measured) -> list[RenderableType]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from ..profiling.calibrate import section_of
    from ..profiling.showing.maps import summary

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("profile", "section", "samples", "seconds", "found"):
        table.add_column(column, overflow="fold")
    for name, fact in measured.sections.items():
        source = fact.source
        numbers = ("", "") if source is None else (str(source.samples or ""), f"{source.seconds or 0:.1f}")
        table.add_row(name, section_of(name), *numbers, escape(summary(fact)))
    return [table, *(escape(f"skipped {name}: {reason}") for name, reason in measured.skipped.items())]
