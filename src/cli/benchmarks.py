"""The commands `sightline eval` and `sightline report`: parse, call, print.

`torchrun -m sightline.cli.benchmarks eval ...` runs them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shell import Model, SameModel, kept_in, note, own_calibration, resumable, the_model

if TYPE_CHECKING:
    from ..benchmarks.runner.suite import Benchmark
    from ..plugin.config import Config


class Match(str, Enum):
    """How replies are read."""

    strict, flexible = "strict", "flexible"


VLLM = "vllm"  # an engine of its own; the others are harnesses


class Pictures(str, Enum):
    """How pictures come into a report."""

    embed, link, none = "embed", "link", "none"


def command(
    benchmark: Annotated[
        str | None,
        typer.Argument(
            metavar="BENCH", help="pope, chair, amber, mme, hallusion, mmhal, memotrap, nqswap or truthfulqa."
        ),
    ] = None,
    model: Model = None,
    model_option: SameModel = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="lmms-eval or lm-eval: through that harness instead of our own loop; vllm: by a served model."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="With --engine: its tasks, joined by commas, with rows from --data; instead of BENCH."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|METHOD", help="A YAML file or a method's name, beside the plain model; may be repeated."
        ),
    ] = None,
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder of the public files, or 'testbed'.")] = "testbed",
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each split; scenes of the testbed.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results grow; default eval-out/BENCH. Run again to resume."),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Score these replies instead of a model's: JSON lines of id and reply; repeated, against the first.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Other words to ask for a caption (chair).")] = None,
    synonyms: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The published synonyms.txt for chair, and its script's rule.")
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|own",
            help="For a COCO file with categories of its own: YAML of 'its name: our name', or its names as they are.",
        ),
    ] = None,
    match: Annotated[
        Match | None,
        typer.Option(
            help="Read replies by the letter of the benchmark's script, slips included, or flexibly, as they are meant; "
            "default: strict for pope and mme, flexible for chair's words and amber."
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest reply; default: the benchmark's.")] = None,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens before which no reply ends.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Rows of one batch.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Chooses scenes, built questions and bootstrap draws.")] = 0,
    equal: Annotated[
        bool, typer.Option(help="Ask plain, too, what comparing at equal recall (chair) or share of yes (pope) needs.")
    ] = True,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of the shipped calibration file.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")] = None,
    device: Annotated[
        str,
        typer.Option(help="cpu, cuda (one for each process of a machine), cuda:N, or auto to use all for one model."),
    ] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    vllm: Annotated[
        str, typer.Option(metavar="YAML", help="With --engine vllm: its options, such as '{max_model_len: 4096}'.")
    ] = "{}",
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")] = None,
) -> None:
    """Run a benchmark, plain and under configurations; under torchrun on many processes; started again, it resumes."""
    from ..benchmarks.benchmark import OWN, DataSource
    from ..benchmarks.harness.offline import package_folder
    from ..benchmarks.runner import suite
    from ..benchmarks.runner.evaluate import Place, ReplySettings, evaluate, score_answers
    from ..benchmarks.runner.plan import named
    from ..common.files import check_writable, write_json
    from ..common.progress import progress_bar
    from ..models.loading import cpu_threads, load_model, quiet
    from ..models.samples import TESTBED
    from ..plugin.config import check_calibrations

    quiet()
    if engine == VLLM:
        given = {"--answers": answers, "--tasks": tasks, "--threads": threads, "--min-new-tokens": min_new_tokens}
        for name in [name for name, value in given.items() if value]:
            raise typer.BadParameter(f"--engine vllm takes no {name}: leave it out")
    elif engine is not None:
        package_folder(engine)
    if tasks is not None and benchmark is not None and model is None and benchmark not in suite.BENCHMARKS:
        benchmark, model = None, benchmark  # the only argument beside --tasks is MODEL
    if benchmark is not None:
        suite.find(benchmark)
    if (benchmark is None) == (tasks is None) or (tasks is not None and engine is None):
        raise typer.BadParameter("give BENCH, or --engine with --tasks")
    if (model is None and model_option is None) == (not answers):
        raise typer.BadParameter("give either MODEL or --answers")
    if engine not in (None, VLLM) and (answers or max_new_tokens is not None or min_new_tokens):
        raise typer.BadParameter(
            "--engine asks the model itself, with the task's own lengths: leave out --answers, --max-new-tokens and"
            " --min-new-tokens"
        )
    folder = out or Path("eval-out") / (benchmark or "tasks")
    check_writable(json, out=folder / "result.json")
    configs, place = named(config or []), Place.here()
    check_calibrations(configs.values(), calibration)
    source = DataSource(
        None if data == TESTBED else Path(data),
        limit,
        seed,
        prompt,
        synonyms,
        categories if categories in (None, OWN) else Path(categories),
        match.value if match else None,
        tuple(answers or ()),
    )
    asked = None if benchmark is None else suite.read(benchmark, source)
    longest = max_new_tokens or (asked.new_tokens if asked is not None else min_new_tokens)
    if min_new_tokens > longest:
        raise typer.BadParameter(
            f"--min-new-tokens {min_new_tokens} is more than the longest reply, {longest}: raise --max-new-tokens"
        )
    if answers and asked is not None:
        _told(score_answers(asked, answers, folder, seed=seed), asked, folder, json)
        return
    name = the_model(model, model_option)
    if engine == VLLM:
        assert asked is not None
        from ..common.validation import inline

        options = {"dtype": dtype, **inline(vllm, "--vllm")}
        _served(asked, name, configs, folder, json, calibration, options, max_new_tokens, seed)
        return
    loaded, processor = load_model(name, dtype=dtype, device=f"cuda:{place.local}" if device == "cuda" else device)
    if configs and calibration is None and place.rank == 0:
        note(own_calibration(loaded))
    if engine is not None:
        from ..benchmarks.harness import engines

        with cpu_threads(threads), resumable(lambda: "nothing is kept: run the same command again"):
            through = engines.run(
                engine,
                loaded,
                processor,
                configs,
                folder,
                benchmark=asked,
                source=source,
                tasks=tasks.split(",") if tasks else (),
                data=source.folder if tasks else None,
                limit=limit if tasks else None,
                batch=batch,
                calibration=calibration,
            )
        if through is not None:  # the first process prints for all
            typer.echo(engines.markdown(through))
            write_json(json or folder / "result.json", through)
        return
    assert asked is not None
    with resumable(kept_in(folder)), cpu_threads(threads), progress_bar() as bar:
        job = bar.add_task("plain", total=None)
        result = evaluate(
            asked,
            loaded,
            processor,
            configs,
            folder,
            calibration=calibration,
            settings=ReplySettings(max_new_tokens, batch, seed, equal, min_new_tokens),
            advance=lambda name, total: bar.update(job, advance=1, total=total, description=name),
        )
    if result is None:
        note(f"process {place.rank} of {place.processes} is done; the last one merges in {folder}")
    else:
        _told(result, asked, folder, json)


def _served(
    asked: Benchmark,
    model: str,
    configs: Mapping[str, Config],
    folder: Path,
    json: Path | None,
    calibration: Path | None,
    options: Mapping[str, Any],
    new_tokens: int | None,
    seed: int,
) -> None:
    """Ask a benchmark's questions through vLLM."""
    from ..common.progress import progress_bar
    from ..serving.evaluation import evaluate

    with resumable(kept_in(folder)), progress_bar() as bar:
        job = bar.add_task("plain", total=None)
        result = evaluate(
            asked,
            model,
            configs,
            folder,
            calibration=calibration,
            new_tokens=new_tokens,
            seed=seed,
            options=options,
            advance=lambda name, total: bar.update(job, advance=1, total=total, description=name),
        )
    _told(result, asked, folder, json)
    for name, rate in result["throughput"].items():
        typer.echo(f"{name}: {rate:.1f} tokens/s")


def _told(result: dict[str, Any], asked: Benchmark, folder: Path, json: Path | None) -> None:
    """Print a result, and where it is."""
    from rich.console import Console

    from ..benchmarks.runner.tables import terminal
    from ..common.files import write_json

    console = Console() if Console().is_terminal else Console(width=180)
    for part in terminal(result, asked):
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)
    typer.echo(f"wrote {folder / 'result.json'}, summary.md, samples.jsonl")
    if json is not None:
        write_json(json, result)
        typer.echo(f"wrote {json}")


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders that sightline eval or demo wrote, or folders of such folders."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for report.html and report.md.")] = Path(
        "report-out"
    ),
    pictures: Annotated[Pictures, typer.Option(help="Copy pictures into the page, link to their files, or none.")] = (
        Pictures.embed
    ),
    picture_limit: Annotated[
        float, typer.Option(min=0, metavar="MB", help="Megabytes of picture copies; they shrink to fit.")
    ] = 24,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where pictures lie that are not where they were.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")] = None,
) -> None:
    """Put results side by side: one HTML page with every caption, its hallucinated words marked, and a Markdown page."""
    from rich.console import Console

    from ..benchmarks.report import page as reports
    from ..benchmarks.runner.tables import differences, rich, scores
    from ..common.files import check_writable, write_json
    from ..common.progress import progress_bar

    check_writable(json, out=out / reports.PAGE)
    options = reports.Options(pictures.value, picture_limit, images)
    with progress_bar() as bar:
        job = bar.add_task("pictures", total=None)
        made = reports.write(folders, out, options, advance=lambda total: bar.update(job, advance=1, total=total))
    console = Console() if Console().is_terminal else Console(width=180)
    for one in made.sections:
        console.print(rich(f"{one.benchmark}, {one.n} samples", scores(one.result, one.kind), ""), highlight=False)
        changes = differences(one.result, one.kind)
        if changes.rows:
            console.print(rich("differences, paired", changes, ""), highlight=False)
    for line in [*(said for one in made.sections for said in one.notes), *made.unfinished()]:
        typer.echo(f"note: {line}")
    typer.echo(f"wrote {out / reports.PAGE}, {reports.TABLES}")
    if json is not None:
        write_json(json, made.result)
        typer.echo(f"wrote {json}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.callback()(lambda: None)
    app.command("eval")(command)
    app.command()(report)
    app(prog_name="sightline")
