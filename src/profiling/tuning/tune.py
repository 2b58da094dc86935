"""`sightline tune`: search settings on one set of pictures, report them on another.

By default the search is over compositions, by CHAIR_I at equal recall, recall and time at once (`compositions.py`);
`apart`, each method's settings are searched by one score, and count only if recall, caption length and POPE accuracy stay
where the guards hold them. The trial table is of the data that was tuned on and therefore no result; a result is measured
on pictures that share none with it, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...benchmarks.public.equal import Curve
from ...common.errors import SightlineError
from ...common.files import config_hash, inside, provenance, write_json, write_text
from ...common.statistics import difference, interval
from ...plugin.calibration.files import Calibration, calibration_hash, find_shipped, model_name
from ..job import Partial
from .compositions import NAME, compose
from .exam import HIGHER, Exam, ExamScores, curve_of, tensors
from .guards import KEPT, KEPT_TOGETHER, Guard, Trial, check, optimiser
from .space import Space

PLAIN = "plain"
PARTIAL = "trials.partial"  # what an interrupted search leaves in the folder of its result


def check_apart(tuned: Exam, reported: Exam) -> None:
    """Raises SightlineError where a picture is in both."""
    seen = tuned.pictures()
    for digest, name in reported.pictures().items():
        if digest in seen:
            raise SightlineError(
                f"cannot report on {name}: it was tuned on (as {seen[digest]}); give --report pictures that share none"
                " with --data"
            )


def tune(
    model: Any,
    processor: Any,
    spaces: Sequence[Space],
    exam: Exam,
    *,
    apart: bool = False,
    objective: str = "equal",
    keep: Sequence[str] = (),
    trials: int = 20,
    seed: int = 0,
    reported: Exam | None = None,
    calibration: Any = None,
    out: Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    advance: Callable[[str, int, int], None] = lambda name, prompts, total: None,
) -> dict[str, Any]:
    """Search compositions of the spaces, or each space by itself, and report what is chosen; JSON-ready.

    Args:
        apart: search each space by itself, by `objective`. Else methods and decoder are searched together, by the
            objectives of `compositions`.
        objective, keep: scores of `HIGHER`; guards as "recall:-1", in place of those of `KEPT` (of compositions
            `KEPT_TOGETHER`) for the same scores.
        trials: settings that are proposed, apart for each space; one that was tried before is not run again.
        reported: what the best settings are reported on; nothing is reported without.
        out: the folder in which an interrupted search leaves the scores of its trials.
        resume: take over what an interrupted search of the same model and pictures left there.
        say: tells the user something.
        advance: called with a name, the number of prompts just answered, and that of all.

    Returns:
        `trials`: plain first, `best` marks the chosen one, of each space if apart, else `pareto` those that none beats in
        everything. `chosen`: its configuration by space, or under "composition"; None if no trial keeps the guards and
        beats plain. `report`: scores with 95 % intervals, and differences to plain.

    Raises:
        SightlineError: a space does not fit the model, or a reported picture was tuned on.
    """
    held = check(objective, keep, KEPT if apart else KEPT_TOGETHER)
    if reported is not None:
        check_apart(exam, reported)
    known = find_shipped(model) if calibration is None else Calibration.load(calibration, model)
    hashes = {"calibration": calibration_hash(known), "pictures": config_hash(exam.pictures())}
    request = {
        "model": model_name(model),
        "dtype": str(getattr(model, "dtype", "")),
        "seed": seed,
        "examples": len(exam.examples),
    }
    request |= hashes
    kept = Partial(None if out is None else out / PARTIAL, request, resume=resume)
    searches = len(spaces) if apart else 1
    total = exam.prompts * (1 + trials * searches)
    total += 0 if reported is None else reported.prompts * (1 + searches)
    curves: dict[int, Curve | None] = {}  # of each exam's plain captions

    def sit(config: Mapping[str, Any] | None, on: Exam, name: str) -> ExamScores:
        tick = lambda prompts: advance(name, prompts, total)  # noqa: E731
        marks = on.sit(
            model, processor, config, calibration=calibration, curve=curves.get(id(on)), name=name, advance=tick
        )
        if config is None:
            curves[id(on)] = marks.curve
        return marks

    taken: dict[str, float] = {}  # seconds of plain's sitting

    def score(config: Mapping[str, Any] | None, name: str) -> dict[str, float]:
        stage = json.dumps(config, sort_keys=True)
        found, done = kept.get(stage)
        if done:
            advance(name, exam.prompts, total)
        else:
            marks = sit(config, exam, name)
            known = {**marks.values, "seconds": marks.seconds}
            found = {key: torch.tensor(value, dtype=torch.float64) for key, value in known.items()}
            found |= {} if config is not None or marks.curve is None else tensors(marks.curve)
            kept.put(stage, found, 1)
        if config is None:
            curves[id(exam)] = curve_of(found)
        values = {key: float(value) for key, value in found.items() if value.ndim == 0}
        seconds = values.pop("seconds")
        plain_took = taken.setdefault(PLAIN, seconds)  # plain is scored first
        return values | {"time": seconds / plain_took if plain_took else 1.0}

    try:
        plain = score(None, PLAIN)
        table, chosen = [Trial(PLAIN, {}, plain, True)], {}
        for space in spaces if apart else ():
            tried = _search(space, score, plain, objective, held, trials, seed)
            best = _best(tried, plain, objective)
            table += [replace(one, best=one is best) for one in tried]
            chosen[space.name] = None if best is None else best.config
        if not apart:
            tried, best = compose(spaces, score, plain, held, trials, seed, say)
            table += tried
            chosen[NAME] = None if best is None else best.config
            objective = "equal"
        result: dict[str, Any] = {
            "apart": apart,
            "objective": objective,
            "keep": [str(guard) for guard in held],
            "seed": seed,
        }
        result |= {"examples": len(exam.examples), "trials": [vars(one) for one in table], "chosen": chosen}
        result["report"] = None
        if reported is not None:
            runs = {PLAIN: sit(None, reported, PLAIN)}
            runs |= {name: sit(config, reported, name) for name, config in chosen.items() if config is not None}
            result["report"] = {"examples": len(reported.examples), "runs": _report(runs, seed)}
    except BaseException:
        kept.save()
        if kept.done and kept.path is not None:
            say(f"kept the scores of {len(kept.done)} settings in {kept.path}: --resume continues")
        raise
    return result | provenance(hashes) | {"tuned_on": sorted(exam.pictures())}


def _search(
    space: Space,
    score: Callable[[Mapping[str, Any], str], dict[str, float]],
    plain: Mapping[str, float],
    objective: str,
    held: Sequence[Guard],
    trials: int,
    seed: int,
) -> list[Trial]:
    """The distinct settings that the optimiser tried, in order; the defaults first."""
    optuna = optimiser()
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, trials // 3))
    study = optuna.create_study(sampler=sampler, direction="maximize" if HIGHER[objective] else "minimize")
    study.enqueue_trial(space.defaults())
    tried: dict[str, Trial] = {}

    def run(trial: Any) -> float:
        config = space.draw(trial)
        key = json.dumps(config, sort_keys=True)
        name = tried[key].name if key in tried else f"{space.name}#{len(tried) + 1}"
        values = score(config, name)
        tried[key] = Trial(name, config, values, all(guard.excess(values, plain) <= 1e-9 for guard in held))
        for number, guard in enumerate(held):
            trial.set_constraint(f"{guard.score} {number}", guard.excess(values, plain))
        return values[objective]

    study.optimize(run, n_trials=trials if space.open else 1)
    return list(tried.values())


def _best(tried: Sequence[Trial], plain: Mapping[str, float], objective: str) -> Trial | None:
    sign = -1 if HIGHER[objective] else 1
    able = [one for one in tried if one.kept and sign * one.values[objective] < sign * plain[objective]]
    return min(able, key=lambda one: sign * one.values[objective], default=None)


def _report(runs: Mapping[str, ExamScores], seed: int) -> list[dict[str, Any]]:
    rows = []
    for name, marks in runs.items():
        row: dict[str, Any] = {"name": name, "values": marks.values}
        row["intervals"] = {key: interval(ratio, seed=seed) for key, ratio in marks.ratios.items()}
        if name != PLAIN:
            pairs = {k: difference(r, runs[PLAIN].ratios[k], seed=seed) for k, r in marks.ratios.items()}
            row["differences"] = {key: {"value": value, "interval": between} for key, (value, between) in pairs.items()}
        rows.append(row)
    return rows


def save(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the trial table `trials.md`, everything as `result.json`, and each chosen configuration as `NAME.yaml`.

    What an interrupted search left there goes.
    """
    import yaml

    from .tune_tables import markdown

    write_text(folder / "trials.md", markdown(result))
    write_json(folder / "result.json", result)
    written = [folder / "trials.md", folder / "result.json"]
    for name, config in result["chosen"].items():
        if config is not None:
            head = f"# Chosen by `{result['command']}`; pictures that it was tuned on: result.json\n"
            written.append(inside(folder, f"{name}.yaml"))
            write_text(written[-1], head + yaml.safe_dump(dict(config), sort_keys=False, default_flow_style=None))
    (folder / PARTIAL).unlink(missing_ok=True)
    return written
