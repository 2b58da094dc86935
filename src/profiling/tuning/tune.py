"""`sightline tune`: search a method's settings on one set of pictures, report them on another.

Optuna's TPE proposes; a setting counts only if recall, caption length and POPE accuracy stay where the guards hold
them. The trial table is of the data that was tuned on and therefore no result; a result is measured on pictures that
share none with it, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...common.errors import ConfigError, SightlineError
from ...common.files import config_hash, inside, provenance, write_json, write_text
from ...common.statistics import difference, interval
from ...common.validation import suggest
from ...plugin.calibration.files import Calibration, calibration_hash, find_shipped, model_name
from ..job import Partial
from .exam import HIGHER, Exam, ExamScores
from .space import Space

PLAIN = "plain"
KEPT = ("recall:-1", "words:-10", "accuracy:-1")
"""Guards that hold unless others are given for the same scores."""
PARTIAL = "trials.partial"  # what an interrupted search leaves in the folder of its result


@dataclass(frozen=True)
class Guard:
    """How far a score may move from plain: `change` points, for words percent; below 0 it may fall so far."""

    score: str
    change: float

    @classmethod
    def parse(cls, text: str) -> Guard:
        """From "recall:-1". Raises ConfigError."""
        score, _, change = text.partition(":")
        try:
            guard = cls(score.strip(), float(change))
        except ValueError:
            guard = cls("", 0.0)
        if guard.score not in HIGHER:
            raise ConfigError(
                f"cannot read --keep {text!r}: write score:points, as in recall:-1; scores: {', '.join(HIGHER)}"
            )
        return guard

    def __str__(self) -> str:
        return f"{self.score}:{self.change:g}"

    def excess(self, values: Mapping[str, float], plain: Mapping[str, float]) -> float:
        """By how much the guard is broken; 0 or less where it holds."""
        value, start = values[self.score], plain[self.score]
        limit = start * (1 + self.change / 100) if self.score == "words" else start + self.change / 100
        return limit - value if self.change <= 0 else value - limit


def guards(keep: Sequence[str]) -> list[Guard]:
    """Those of `KEPT`, less those for whose scores `keep` has others, and these. Raises ConfigError."""
    given = [Guard.parse(text) for text in keep]
    named = {guard.score for guard in given}
    return [guard for guard in map(Guard.parse, KEPT) if guard.score not in named] + given


def check(objective: str, keep: Sequence[str]) -> list[Guard]:
    """The guards of a search. Raises ConfigError for an unknown objective or guard, SightlineError without Optuna."""
    if objective not in HIGHER:
        raise ConfigError(
            f"unknown --objective {objective!r}{suggest(objective, list(HIGHER))}; choose {', '.join(HIGHER)}"
        )
    _optuna()
    return guards(keep)


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried: its scores on the tuning data, and whether all guards hold."""

    name: str
    config: Mapping[str, Any]
    values: Mapping[str, float]
    kept: bool
    best: bool = False


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
    objective: str = "chair_i",
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
    """Search every space and report the best of each; JSON-ready.

    Args:
        objective, keep: scores of `HIGHER`; guards as "recall:-1", in place of those of `KEPT` for the same scores.
        trials: settings that are proposed for each space; one that was tried before is not run again.
        reported: what the best settings are reported on; nothing is reported without.
        out: the folder in which an interrupted search leaves the scores of its trials.
        resume: take over what an interrupted search of the same model and pictures left there.
        say: tells the user something.
        advance: called with a name, the number of prompts just answered, and that of all.

    Returns:
        `trials`: plain first, `best` marks the chosen one of each space. `chosen`: its configuration by space, None if no
        trial keeps the guards and beats plain. `report`: scores with 95 % intervals, and differences to plain.

    Raises:
        SightlineError: a space does not fit the model, or a reported picture was tuned on.
    """
    held = check(objective, keep)
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
    total = exam.prompts * (1 + trials * len(spaces))
    total += 0 if reported is None else reported.prompts * (1 + len(spaces))

    def sit(config: Mapping[str, Any] | None, on: Exam, name: str) -> ExamScores:
        tick = lambda prompts: advance(name, prompts, total)  # noqa: E731
        return on.sit(model, processor, config, calibration=calibration, name=name, advance=tick)

    def score(config: Mapping[str, Any] | None, name: str) -> dict[str, float]:
        stage = json.dumps(config, sort_keys=True)
        found, done = kept.get(stage)
        if done:
            advance(name, exam.prompts, total)
        else:
            found = {
                key: torch.tensor(value, dtype=torch.float64) for key, value in sit(config, exam, name).values.items()
            }
            kept.put(stage, found, 1)
        return {key: float(value) for key, value in found.items()}

    try:
        plain = score(None, PLAIN)
        table, chosen = [Trial(PLAIN, {}, plain, True)], {}
        for space in spaces:
            tried = _search(space, score, plain, objective, held, trials, seed)
            best = _best(tried, plain, objective)
            table += [Trial(one.name, one.config, one.values, one.kept, one is best) for one in tried]
            chosen[space.name] = None if best is None else best.config
        result: dict[str, Any] = {"objective": objective, "keep": [str(guard) for guard in held], "seed": seed}
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
    optuna = _optuna()
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


def _optuna() -> Any:
    """The optimiser, quiet. Raises SightlineError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise SightlineError("tuning needs optuna: pip install 'sightline[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # below, it prints the traceback of an interrupt
    return optuna


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
