"""`sightline eval --engine lmms-eval|lm-eval`: their tasks or our benchmarks, plain and under configurations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError
from ...common.files import provenance, write_json, write_text
from ...common.validation import suggest
from ...plugin.config import Config
from ..benchmark import Benchmark, DataSource
from ..runner.evaluate import fingerprint
from ..runner.plan import PLAIN
from ..runner.tables import harness, pipes
from .offline import HARNESSES, benchmark_task, local_task, package_folder

RESULT, SUMMARY = "result.json", "summary.md"


def run(
    engine: str,
    model: Any,
    processor: Any,
    configs: Mapping[str, Config],
    out: Path,
    *,
    benchmark: Benchmark | None = None,
    source: DataSource | None = None,
    tasks: Sequence[str] = (),
    data: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    limit: int | None = None,
    batch: int = 8,
    calibration: Path | None = None,
    simple: bool = False,
) -> dict[str, Any] | None:
    """Evaluate through a harness, the plain model first, then under each configuration.

    Under torchrun or accelerate each process takes its share.

    Args:
        engine: "lmms-eval" or "lm-eval".
        model: in eval mode.
        processor: the model's processor or tokenizer.
        configs: run name -> configuration.
        out: the folder for tasks and results.
        benchmark: a benchmark of this package, as `suite.read` gave it.
        source: what it was read from.
        tasks: the harness's tasks or groups, beside it or instead.
        data: where the tasks' rows lie (see `offline.local_task`); None: where the tasks say.
        changes: keys to replace in the tasks' YAML, with `data` only.
        limit: rows of each of the harness's tasks.
        batch: rows of one batch.
        calibration: instead of the configurations' or the shipped one.
        simple: with lmms-eval, ask by text and pictures instead of by messages.

    Returns:
        `engine`, `version`, `tasks` (task -> run -> score -> number), and where it comes from; also in `result.json`
        and `summary.md`. None in all processes but the first.

    Raises:
        ConfigError: the engine is not installed, or a task is unknown.
        DataError: a task's data is missing or damaged.
    """
    package_folder(engine)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = out / "tasks"
    names = [] if benchmark is None or source is None else [benchmark_task(engine, benchmark, source, folder)]
    ours = len(names)
    for name in tasks:
        names += [name] if data is None else local_task(engine, name, data, folder, changes=changes)
    if not names:
        raise ConfigError("nothing to run: give a benchmark or --tasks")
    if ours and limit is not None:
        raise ConfigError("the harness's limit would score a part of the benchmark: limit the benchmark itself")
    evaluate = {"lmms-eval": _lmms, "lm-eval": _lm}[engine]
    known = data is not None or not tasks  # reading the index of all built-in tasks takes half a minute
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run_name, config in [(PLAIN, None), *configs.items()]:
        results = evaluate(
            {"pretrained": model, "processor": processor, "config": config, "calibration": calibration},
            names,
            {"include_path": str(folder), "include_defaults": not known},
            limit,
            batch,
            simple,
        )
        for task, scores in (results or {}).items():
            found.setdefault(task, {})[run_name] = _numbers(scores)
    if not found:
        return None
    hashes = {"model": fingerprint(model)} | ({} if benchmark is None else {"data": benchmark.data_hash()})
    result: dict[str, Any] = {"engine": engine, "version": metadata.version(HARNESSES[engine]), "tasks": found}
    result |= {"settings": {"batch": batch, "limit": limit, "simple": simple}}
    result |= {"configs": {name: config.dump() for name, config in configs.items()}, **provenance(hashes)}
    write_text(out / SUMMARY, markdown(result))
    write_json(out / RESULT, result)
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """A table for each task: a row for each run, a column for each score."""
    parts = [f"## {task} ({result['engine']})\n\n{pipes(harness(runs))}" for task, runs in result["tasks"].items()]
    return "\n".join(parts)


def _lmms(
    made: Mapping[str, Any], names: Sequence[str], index: Mapping[str, Any], limit: int | None, batch: int, simple: bool
) -> Mapping[str, Any] | None:
    """The results of lmms-eval, None in all processes but the first."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from .lmms import Sightline, SightlineChat

    manager = TaskManager("WARNING", model_name="sightline", **index)
    _check(names, manager.all_tasks, "lmms-eval")
    model = (Sightline if simple else SightlineChat)(**made, batch_size=batch)
    found = simple_evaluate(model, tasks=list(names), task_manager=manager, limit=limit, bootstrap_iters=0)
    return None if found is None else found["results"]


def _lm(
    made: Mapping[str, Any], names: Sequence[str], index: Mapping[str, Any], limit: int | None, batch: int, simple: bool
) -> Mapping[str, Any] | None:
    """The results of lm-eval, None in all processes but the first."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from .lm import SightlineLM

    manager = TaskManager(**index)
    _check(names, manager.all_tasks, "lm-eval")
    model = SightlineLM(**made, batch_size=batch)
    found = simple_evaluate(model, tasks=list(names), task_manager=manager, limit=limit, bootstrap_iters=0)
    return None if found is None else found["results"]


def _check(names: Sequence[str], known: Sequence[str], engine: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{engine} has no task {name!r}{suggest(name, list(known))}")


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """What a harness says of a task, without errors and filters: `acc,none` -> `acc`."""
    return {
        key.removesuffix(",none"): float(one)
        for key, one in scores.items()
        if isinstance(one, int | float) and "," in key and "stderr" not in key
    }
