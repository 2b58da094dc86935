"""`sightline sweep`: choose method settings on the calibration split, never on the test split.

A grid file holds named configurations of the usual shape in which a *list* given to a field means "try each of these"
(a field that takes a list itself is given a list of lists). All combinations of one name are its trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plugin.errors import ConfigError
from .demo import LABEL, progress_bar
from .files import config_hash, images_hash, model_hash, provenance, read_suite
from .pope import SPLITS
from .run import Attach, calls, results, run
from .tasks import scene_tasks

if TYPE_CHECKING:
    from rich.table import Table

SPLIT = "calibration"
TOLERANCE = 0.01
"""How far recall and POPE accuracy may fall below plain: one point."""
OBJECTIVE = "lowest CHAIR_I with object recall and mean POPE accuracy at most one point below plain"


def expand(config: Mapping[str, Any], where: str = "grid") -> list[dict[str, Any]]:
    """Every combination of the listed field values in a configuration's methods.

    Raises:
        ConfigError: `methods` does not have the shape of a configuration.
    """
    slots: list[tuple[str, dict[str, list[Any]]]] = []
    methods = config.get("methods", [])
    if not isinstance(methods, list):
        raise ConfigError(f"{where}: methods: expected a list such as `- vhr: {{alpha: [1.5, 2.0]}}`, got {methods!r}")
    for item in methods:
        named = {item: {}} if isinstance(item, str) else item
        if not isinstance(named, dict) or len(named) != 1:
            raise ConfigError(f"{where}: methods: expected one name with its fields, got {item!r}")
        ((name, fields),) = named.items()
        if not isinstance(fields or {}, dict):
            raise ConfigError(
                f"{where}: methods: {name}: expected fields such as {{alpha: [1.5, 2.0]}}, got {fields!r}"
            )
        options = {key: value if isinstance(value, list) else [value] for key, value in (fields or {}).items()}
        slots.append((name, options))
    choices = [
        [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
        for _, options in slots
    ]
    trials = []
    for chosen in itertools.product(*choices):
        chosen_methods = [{name: fields} for (name, _), fields in zip(slots, chosen, strict=True)]
        trials.append({**config, "methods": chosen_methods})
    return trials


def sweep(
    *,
    methods: Sequence[str] | None = None,
    scenes: int = 100,
    seed: int = 0,
    grid: Path | None = None,
    threads: int = 1,
    attach: Attach | None = None,
) -> dict[str, Any]:
    """Try every setting of the grid on calibration scenes; returns the JSON-ready trial table.

    Args:
        methods: names in the grid to try; all when None.
        scenes: how many calibration scenes.
        seed: chooses the scenes and questions.
        grid: a grid file instead of the shipped `eval/sweep.yaml`.
        threads: CPU threads, as for the demo.
        attach: stands in for `sightline.attach`.

    Returns:
        `trials`: plain first, then one entry per setting with its scores, `group`, whether it is `eligible`, and
        whether it is `best` of its group by the objective. A group without an eligible setting has no best.

    Raises:
        SightlineError: the grid cannot be read, or a setting does not fit the model.
    """
    from .. import testbed
    from .loading import cpu_threads, load_model

    groups = read_suite("sweep.yaml", grid)
    for name in methods or ():
        if name not in groups:
            raise ConfigError(f"unknown --methods {name!r}: the grid has {', '.join(groups)}")
    chosen = {name: config for name, config in groups.items() if methods is None or name in methods}
    configs = {
        f"{name}#{number}": trial
        for name, config in chosen.items()
        for number, trial in enumerate(expand(config, name), start=1)
    }
    model, processor = load_model("embedded")
    shown = testbed.scenes(SPLIT, scenes, seed=seed)
    tasks = scene_tasks(processor, shown, seed=seed)
    with cpu_threads(threads), progress_bar() as bar:
        job = bar.add_task("plain", total=calls(tasks, configs))
        runs = run(
            model,
            processor,
            tasks,
            configs,
            attach=attach,
            advance=lambda name: bar.update(job, advance=1, description=name),
        )
    trials = judge(results(runs, tasks, seed=seed))
    hashes = {
        "model": model_hash(model),
        "scenes": images_hash(scene.image for scene in shown),
        "grid": config_hash(chosen),
    }
    head = {"label": LABEL, "split": SPLIT, "scenes": scenes, "seed": seed, "objective": OBJECTIVE}
    return head | {"trials": trials} | provenance(hashes)


def judge(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mark each trial `eligible` or not, and the `best` of each group (the part of the name before `#`)."""
    plain = entries[0]
    trials = []
    for entry in entries:
        holds = (
            entry["chair"]["recall"] >= plain["chair"]["recall"] - TOLERANCE
            and mean_accuracy(entry) >= mean_accuracy(plain) - TOLERANCE
        )
        trials.append(entry | {"group": entry["name"].split("#")[0], "eligible": holds, "best": False})
    for group in {trial["group"] for trial in trials[1:]}:
        able = [trial for trial in trials[1:] if trial["group"] == group and trial["eligible"]]
        if able:
            min(able, key=lambda trial: trial["chair"]["i"])["best"] = True
    return trials


def mean_accuracy(entry: Mapping[str, Any]) -> float:
    """POPE accuracy averaged over the three splits."""
    return sum(entry["pope"][split]["accuracy"] for split in SPLITS) / len(SPLITS)


def _rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for trial in result["trials"]:
        scores = trial["chair"]
        numbers = [scores["s"], scores["i"], scores["recall"], mean_accuracy(trial)]
        verdict = "best" if trial["best"] else "" if trial["eligible"] else "too lossy"
        yield [
            trial["name"],
            settings(trial["config"]),
            *(f"{100 * number:.1f}" for number in numbers),
            f"{scores['words']:.1f}",
            f"{trial['time_ratio']:.2f}",
            verdict,
        ]


COLUMNS = ("trial", "settings", "CHAIR_S", "CHAIR_I", "recall", "POPE acc.", "words", "time", "")


def settings(config: Mapping[str, Any]) -> str:
    """The fields that a trial sets, on one line."""
    parts = [item for item in config.get("methods", ()) if item]
    return " ".join(
        f"{name}({', '.join(f'{key}={value}' for key, value in fields.items())})"
        for item in parts
        for name, fields in item.items()
    )


def table(result: Mapping[str, Any]) -> Table:
    """The trial table for a terminal."""
    from rich import box
    from rich.table import Table

    shown = Table(title=f"Settings on the {result['split']} split ({result['label']})", box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column in ("trial", "settings", "") else "right")
    for row, trial in zip(_rows(result), result["trials"], strict=True):
        shown.add_row(*row, style="bold green" if trial["best"] else "dim" if not trial["eligible"] else "")
    shown.caption = f"best: {result['objective']}"
    return shown


def markdown(result: Mapping[str, Any]) -> str:
    """The trial table as Markdown, with the command and versions below it."""
    lines = [
        f"# Settings on the {result['split']} split",
        "",
        f"{result['label']}; {result['scenes']} scenes, seed {result['seed']}. Best: {result['objective']}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in _rows(result)),
        "",
        f"Made by `{result['command']}` with " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"
