"""`python -m studies.language`: a language model on conflicts, copies and choices, plain and configured.

Every batch of prompts runs through the plain model and then through each configuration before the next batch starts, so
that a busy machine slows all of them alike. Every score is a yes or no per item; a configuration is compared with plain
item by item: paired bootstrap interval, and McNemar's exact test.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sightline.benchmarks.runner.plan import PLAIN, Attach
from sightline.common.chat import render
from sightline.common.errors import SightlineError
from sightline.common.files import (
    check_writable,
    config_hash,
    model_hash,
    provenance,
    read_suite,
    write_json,
    write_text,
)
from sightline.common.progress import progress_bar
from sightline.common.statistics import Floats, Ratio, difference, interval, mcnemar
from sightline.models.prompting import encoded
from sightline.plugin.tracing.words import characters
from sightline.profiling.data import conflicts
from sightline.profiling.data.conflicts import SPLITS, TEST, Fact, QuestionPrompt
from torch import Tensor

from .language_sets import QuestionSet, closed_book_set, question_sets, some

SUITE = "language.yaml"
SYSTEM = "Answer briefly."
BATCH = 16


@dataclass
class Answers:
    """One configuration's answers by set, and the seconds that each batch of a set took."""

    name: str
    config: Mapping[str, Any]
    answers: dict[str, list[Any]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)


def closed_book(model: Any, tokenizer: Any, facts: Sequence[Fact], *, batch: int = BATCH) -> list[bool]:
    """Which facts the plain model knows: it gives the true answer to the question alone."""
    asked = closed_book_set(facts)
    plain = run(model, tokenizer, [asked], {}, batch=batch)[0]
    return [asked.outcomes(number, reply)["true"] for number, reply in enumerate(plain.answers[asked.name])]


def run(
    model: Any,
    tokenizer: Any,
    sets: Sequence[QuestionSet],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    batch: int = BATCH,
    attach: Attach | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> list[Answers]:
    """Ask every set, plain and under every configuration; `plain` comes first.

    Prompts whose replies and texts are alike in length share a batch. A configuration skips sets without the passage that
    it looks for. `attach` stands in for `sightline.attach`; `advance` is called with the name of the run after each
    batch, `calls(...)` times.

    Raises:
        SightlineError: a configuration does not fit the model.
    """
    if attach is None:
        from sightline import attach as attach_plugin

        attach = attach_plugin
    for config in configs.values():  # a configuration that does not fit should fail now, not after minutes
        with attach(model, config, processor=tokenizer):
            pass
    runs = [Answers(PLAIN, {})] + [Answers(name, config) for name, config in configs.items()]
    for questions in sets:
        taking_part = [item for item in runs if _fits(item.config, questions)]
        for item in taking_part:
            item.answers[questions.name] = [None] * len(questions.prompts)
        texts = [rendered(tokenizer, prompt) for prompt in questions.prompts]
        order = sorted(range(len(texts)), key=lambda number: (questions.lengths[number], len(texts[number])))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = encoded(model, tokenizer, [texts[row] for row in rows])
            if start == 0:  # the first call of a shape pays for allocation and kernel choice: nobody should
                questions.ask(model, tokenizer, inputs, rows)
            asked = [questions.prompts[row] for row in rows]
            marks: dict[str, Any] = {"emphasis": _emphasis(tokenizer, asked)} if asked[0].emphasised else {}
            for item in taking_part:
                plain = item.name == PLAIN
                with nullcontext() if plain else attach(model, item.config, processor=tokenizer, **marks):
                    begun = time.perf_counter()
                    answers = questions.ask(model, tokenizer, inputs, rows)
                    item.seconds.setdefault(questions.name, []).append(time.perf_counter() - begun)
                for row, answer in zip(rows, answers, strict=True):
                    item.answers[questions.name][row] = answer
                advance(item.name)
    return runs


def _emphasis(tokenizer: Any, prompts: Sequence[QuestionPrompt]) -> Callable[[Tensor], Tensor]:
    """What `attach(emphasis=...)` takes, for a batch of these prompts: the tokens of the passages they emphasise."""

    def mark(ids: Tensor) -> Tensor:
        marked = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            text, places = characters(tokenizer, ids[row].tolist())
            turn = text.rindex(prompt.user)
            for passage in prompt.emphasised:
                start = turn + prompt.user.rindex(passage)
                marked[row] |= torch.tensor([a < start + len(passage) and b > start for a, b in places])
        return marked

    return mark


def calls(sets: Sequence[QuestionSet], configs: Mapping[str, Mapping[str, Any]], batch: int = BATCH) -> int:
    """How many batches `run` will report through `advance`."""
    return sum(
        -(-len(questions.prompts) // batch) * (1 + sum(_fits(config, questions) for config in configs.values()))
        for questions in sets
    )


def rendered(tokenizer: Any, prompt: QuestionPrompt) -> str:
    """The prompt's text: chat template, a short system turn, and the beginning of the reply."""
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt.user}]
    return render(tokenizer, turns) + prompt.opening


def results(runs: Sequence[Answers], sets: Sequence[QuestionSet], *, seed: int = 0) -> list[dict[str, Any]]:
    """Score the runs: one JSON-ready entry per run.

    Each has `name`, `config`; then by set, group and score `scores` (with `n`, the items), `intervals` (95 % bootstrap)
    and `differences` to plain as `{"value", "interval", "p"}`; then by set `time_ratio`, the median over batches of the
    seconds over those of plain, and `seconds`. A set that a run skipped is absent from its entry.
    """
    entries = []
    for item in runs:
        entry: dict[str, Any] = {"name": item.name, "config": item.config}
        entry |= {part: {} for part in ("scores", "intervals", "differences", "time_ratio", "seconds")}
        for questions in sets:
            if questions.name not in item.answers:
                continue
            mine, plain = (_outcomes(one.answers[questions.name], questions) for one in (item, runs[0]))
            scores, intervals, differences = (
                entry[part].setdefault(questions.name, {}) for part in ("scores", "intervals", "differences")
            )
            for group, members in questions.groups.items():
                chosen = np.asarray(members, dtype=bool)
                ratios = {score: Ratio.of(values[chosen], 1.0) for score, values in mine.items()}
                scores[group] = {"n": int(chosen.sum())} | {score: ratio.value for score, ratio in ratios.items()}
                intervals[group] = {score: interval(ratio, seed=seed) for score, ratio in ratios.items()}
                differences[group] = {
                    score: _difference(values[chosen], plain[score][chosen], seed) for score, values in mine.items()
                }
            seconds, base = item.seconds[questions.name], runs[0].seconds[questions.name]
            entry["time_ratio"][questions.name] = float(np.median(np.divide(seconds, base)))
            entry["seconds"][questions.name] = sum(seconds)
        entries.append(entry)
    return entries


def _difference(score: Floats, plain: Floats, seed: int) -> dict[str, Any]:
    value, between = difference(Ratio.of(score, 1.0), Ratio.of(plain, 1.0), seed=seed)
    return {
        "value": value,
        "interval": between,
        "p": mcnemar(score.astype(bool).tolist(), plain.astype(bool).tolist()).p,
    }


def _outcomes(answers: Sequence[Any], questions: QuestionSet) -> dict[str, Floats]:
    """By score, 1.0 or 0.0 per item."""
    found = [questions.outcomes(number, answer) for number, answer in enumerate(answers)]
    return {score: np.array([one[score] for one in found], dtype=np.float64) for score in found[0]}


def _fits(config: Mapping[str, Any], questions: QuestionSet) -> bool:
    """Whether the passages that the configuration looks for (CAD's context, an emphasis) stand in the set's prompts."""
    chosen = [*(config.get("methods") or ()), *([config["decoder"]] if config.get("decoder") else ())]
    settings = [values or {} for entry in chosen if isinstance(entry, Mapping) for values in entry.values()]
    return all(values["begin"] in questions.prompts[0].user for values in settings if "begin" in values)


def evaluate(
    name: str = "smollm2",
    *,
    split: str = TEST,
    suite: Path | None = None,
    limit: int | None = None,
    only: Collection[str] = (),
    batch: int = BATCH,
    seed: int = 0,
    threads: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a model; returns the JSON-ready result, and every prompt with the answers of all runs.

    Raises:
        SightlineError: the suite or the model cannot be read, or a configuration does not fit the model.
    """
    from sightline.models.loading import cpu_threads, load_model
    from sightline.plugin.calibration.files import find_shipped

    configs = read_suite(SUITE, suite)
    model, reader = load_model(name)
    tokenizer = getattr(reader, "tokenizer", reader)  # a model that sees is asked without a picture
    facts = some(conflicts.facts(split), limit)
    with cpu_threads(threads), progress_bar() as bar:
        job = bar.add_task("closed-book", total=None)
        known = closed_book(model, tokenizer, facts, batch=batch)
        sets = question_sets(split, known, limit)
        unknown = set(only) - {questions.name for questions in sets}
        if unknown:
            raise SightlineError(
                f"unknown --sets {', '.join(sorted(unknown))}: choose among {', '.join(one.name for one in sets)}"
            )
        sets = [questions for questions in sets if not only or questions.name in only]
        bar.update(job, total=calls(sets, configs, batch))
        runs = run(
            model,
            tokenizer,
            sets,
            configs,
            batch=batch,
            advance=lambda which: bar.update(job, advance=1, description=which),
        )
    calibration = find_shipped(model)
    hashes = {
        "model": model_hash(model),
        "questions": config_hash([[rendered(tokenizer, prompt) for prompt in one.prompts] for one in sets]),
        "suite": config_hash(configs),
        "calibration": config_hash(calibration.model_dump(mode="json")) if calibration else "none",
    }
    result: dict[str, Any] = {"model": model.name_or_path, "split": split, "runs": results(runs, sets, seed=seed)}
    result |= {"seed": seed, "batch": batch, "threads": threads, "limit": limit}
    result["known"] = [fact.name for fact, flag in zip(facts, known, strict=True) if flag]
    result |= provenance(hashes)
    result["command"] = shlex.join(["python", "-m", "studies.language", *sys.argv[1:]])
    return result, _answers(runs, sets)


def _answers(runs: Sequence[Answers], sets: Sequence[QuestionSet]) -> list[dict[str, Any]]:
    return [
        {"set": questions.name, "prompt": prompt.user, "opening": prompt.opening}
        | {"answers": {item.name: item.answers[questions.name][i] for item in runs if questions.name in item.answers}}
        for questions in sets
        for i, prompt in enumerate(questions.prompts)
    ]


def recalled(
    name: str, *, split: str = TEST, limit: int | None = None, batch: int = BATCH, threads: int = 1
) -> list[bool]:
    """Which facts of a split a model tells closed-book, plain.

    Raises:
        SightlineError: the model cannot be read.
    """
    from sightline.models.loading import cpu_threads, load_model

    model, reader = load_model(name)
    with cpu_threads(threads):
        facts = some(conflicts.facts(split), limit)
        return closed_book(model, getattr(reader, "tokenizer", reader), facts, batch=batch)


def main(
    model: Annotated[
        str, typer.Option(help="'smollm2', 'embedded-smol', a checkpoint folder or a hub name.")
    ] = "smollm2",
    split: Annotated[str, typer.Option(help="test, or calibration to choose settings on.")] = TEST,
    suite: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Other configurations than eval/language.yaml.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items per set, spread evenly.")] = None,
    sets: Annotated[str | None, typer.Option(help="Names of sets, joined by commas; all without it.")] = None,
    only_recall: Annotated[
        bool, typer.Option("--closed-book", help="Only count the facts that the plain model tells when asked alone.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Prompts of one call.")] = BATCH,
    seed: Annotated[int, typer.Option(min=0, help="Chooses bootstrap draws.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one gives the same numbers on every machine.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")] = None,
    answers: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every prompt and answer as JSON.")] = None,
) -> None:
    """Measure a language model on knowledge conflicts, copies and multiple choice, plain and configured."""
    from rich.console import Console
    from sightline.models.loading import quiet

    from . import language_report

    quiet()
    try:
        if split not in SPLITS:
            raise SightlineError(f"unknown --split {split!r}: choose {' or '.join(SPLITS)}")
        check_writable(json, answers, out=out)
        if only_recall:
            told = recalled(model, split=split, limit=limit, batch=batch, threads=threads)
            typer.echo(f"{sum(told)} of {len(told)} facts")
            return
        only = [name.strip() for name in (sets or "").split(",") if name.strip()]
        result, said = evaluate(
            model, split=split, suite=suite, limit=limit, only=only, batch=batch, seed=seed, threads=threads
        )
        console = Console() if sys.stdout.isatty() else Console(width=140)
        for table in language_report.tables(result):
            console.print(table)
        if out is not None:
            write_text(out, language_report.markdown(result))
        for path, data in ((json, result), (answers, said)):
            if path is not None:
                write_json(path, data)
    except SightlineError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
