"""The one loop in which benchmarks are asked, and what becomes of the replies.

Every batch runs plain and under each configuration before the next one starts, so that a busy machine slows all of them
alike; time is the median of the ratios batch by batch, which one stalled batch does not move.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...common.statistics import difference, interval, mcnemar
from ...models.prompting import ask
from ...models.samples import Reply, Sample
from ..benchmark import Benchmark, Scored, Scores
from .plan import RunPlan


@dataclass
class Run:
    """What one configuration replied, by benchmark, and the seconds that each batch took.

    `yardstick` holds the plain model's replies to the benchmarks' yardsticks, where they were asked. `head_maps` holds, for each method that tells which heads it chose, the share of the first benchmark's samples in
    which it chose them, `[layers, heads]`.
    """

    name: str
    config: Mapping[str, Any]
    replies: dict[str, list[Any]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    yardstick: dict[str, list[Any]] = field(default_factory=dict)
    head_maps: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What a batch came to in one run: the numbers of its samples, their replies, the seconds of all, the chosen heads.

    Empty where the run had all of the batch already. `heads` are shares of the batch's samples, by method.
    """

    run: str
    numbers: Sequence[int] = ()
    replies: Sequence[Reply] = ()
    seconds: float = 0.0
    heads: Mapping[str, np.ndarray] = field(default_factory=dict)


def batches(samples: Sequence[Sample], size: int) -> list[range]:
    """Cut samples, in their order, into batches of at most `size` of one kind.

    A kind has pictures or none, choices or none, and longer replies or not. The cut does not depend on the number of
    processes, so that a sample always shares its padding with the same others.
    """
    kinds = [(sample.image is not None, bool(sample.choices), sample.longer) for sample in samples]
    cuts, start = [], 0
    for number in range(1, len(kinds) + 1):
        if number == len(kinds) or kinds[number] != kinds[start] or number - start == size:
            cuts.append(range(start, number))
            start = number
    return cuts


def ask_in_turn(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    plans: Mapping[str, RunPlan],
    cuts: Iterable[Sequence[int]],
    new_tokens: int,
    wanted: Callable[[str, int], bool] = lambda run, number: True,
    least: int = 0,
) -> Iterator[Done]:
    """Ask each batch under each plan in turn; of its samples those that are `wanted` of that run.

    A reply has at most `new_tokens` tokens and does not end before `least`.

    Raises:
        SightlineError: a picture cannot be read, or a configuration refuses a prompt.
    """
    warm = False
    for cut in cuts:
        for name, plan in plans.items():
            numbers = [number for number in cut if wanted(name, number)]
            if not numbers:
                yield Done(name)
                continue
            asked = [samples[number] for number in numbers]
            if not warm:  # the first call pays for allocation and kernel choice: no run should
                ask(model, processor, asked, min(2, new_tokens))
                warm = True
            with plan.attached(model, processor, blind=asked[0].image is None) as plug:
                begun = time.perf_counter()
                replies = ask(model, processor, asked, new_tokens, least)
                seconds = time.perf_counter() - begun
                heads = _head_maps(plug.report() if hasattr(plug, "report") else {})
            yield Done(name, numbers, replies, seconds, heads)


def run(
    model: Any,
    processor: Any,
    benchmarks: Sequence[Benchmark],
    plans: Mapping[str, RunPlan],
    *,
    batch: Mapping[str, int],
    advance: Callable[[str], None] = lambda run: None,
) -> list[Run]:
    """Ask whole benchmarks in this process and keep the replies in memory; one run for each plan, in their order.

    Args:
        batch: rows of a batch, by benchmark.
        advance: called after each batch with the name of the run.
    """
    runs = {name: Run(name, plan.settings) for name, plan in plans.items()}
    first = next(iter(plans))
    for number, benchmark in enumerate(benchmarks):
        samples = benchmark.samples
        cuts = batches(samples, batch[benchmark.name])
        for done in ask_in_turn(model, processor, samples, plans, cuts, benchmark.new_tokens):
            one = runs[done.run]
            one.replies.setdefault(benchmark.name, []).extend(done.replies)
            one.seconds.setdefault(benchmark.name, []).append(done.seconds)
            for method, grid in done.heads.items() if number == 0 else ():
                one.head_maps[method] = one.head_maps.get(method, 0.0) + grid * (len(done.numbers) / len(samples))
            advance(done.run)
        more = benchmark.yardstick() if len(plans) > 1 else []
        cuts = batches(more, batch[benchmark.name])
        for done in ask_in_turn(model, processor, more, {first: plans[first]}, cuts, benchmark.new_tokens):
            runs[first].yardstick.setdefault(benchmark.name, []).extend(done.replies)
            advance(done.run)
    return list(runs.values())


def calls(benchmarks: Sequence[Benchmark], batch: Mapping[str, int], plans: int) -> int:
    """How many batches `run` asks."""
    asked = sum(len(batches(one.samples, batch[one.name])) for one in benchmarks) * plans
    more = sum(len(batches(one.yardstick(), batch[one.name])) for one in benchmarks) if plans > 1 else 0
    return asked + more


def results(runs: Sequence[Run], benchmarks: Sequence[Benchmark], *, seed: int = 0) -> list[dict[str, Any]]:
    """Score the runs: one JSON-ready entry per run.

    Each entry has `name`, `config`, the scores under each benchmark's name, `times` against the first run by benchmark
    (see `relative_time`; `time_ratio` repeats the first benchmark's), `intervals` (95 % bootstrap over images, same
    shape as the scores) and `differences` to the first run, as `{"value", "interval"}` from paired resampling; there,
    questions that are right or wrong add `mcnemar`, as `{"gained", "lost", "p"}`, and what compares at equal recall (of
    captions) or share of yes adds `equal`, where the first run gets that far. `against` names the run that it is compared
    with, None for that run itself, which has the `curves` of its captions cut shorter. Also `seconds` and `head_maps`.
    """
    entries, first = [], runs[0]
    plain = {one.name: one.score(first.replies[one.name]) for one in benchmarks}
    for item in runs:
        scores = {one.name: one.score(item.replies[one.name]) for one in benchmarks}
        times = {name: relative_time(item.seconds[name], first.seconds[name]) for name in scores}
        entries.append(
            {
                "name": item.name,
                "config": item.config,
                "against": None if item is first else first.name,
                **{name: _each(score, lambda one: one.values) for name, score in scores.items()},
                "time_ratio": times[benchmarks[0].name]["ratio"],
                "times": times,
                "seconds": {name: sum(seconds) for name, seconds in item.seconds.items()},
                "intervals": {
                    name: _each(score, lambda one: {key: interval(r, seed=seed) for key, r in one.ratios.items()})
                    for name, score in scores.items()
                },
                "head_maps": {method: grid.tolist() for method, grid in item.head_maps.items()},
                "differences": {name: _differences(scores[name], plain[name], seed) for name in scores},
            }
        )
        for one in benchmarks:
            said = first.replies[one.name], first.yardstick.get(one.name, [])
            if item is not first:
                _add(entries[-1]["differences"][one.name], one.equal(item.replies[one.name], *said), seed)
            elif points := one.curve(*said):
                entries[-1].setdefault("curves", {})[one.name] = points
    return entries


def relative_time(seconds: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """The time of a run against another one's on the same batches: `ratio`, `low`, `high` and `batches`.

    `ratio` is the median of the batches' ratios, `low` and `high` are the quartiles: half of the batches lie between.
    All are 0.0 where no time was taken.
    """
    ratios = [mine / other for mine, other in zip(seconds, plain, strict=True) if mine and other]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist() if ratios else (0.0, 0.0, 0.0)
    return {"ratio": middle, "low": low, "high": high, "batches": len(ratios)}


def _each(scores: Scores, view: Callable[[Scored], dict[str, Any]]) -> dict[str, Any]:
    return {split: view(one) for split, one in scores.items()} if isinstance(scores, Mapping) else view(scores)


def _differences(scores: Scores, plain: Scores, seed: int) -> dict[str, Any]:
    if isinstance(scores, Mapping) and isinstance(plain, Mapping):
        return {split: _differences(scores[split], plain[split], seed) for split in scores}
    assert not isinstance(scores, Mapping)
    assert not isinstance(plain, Mapping)
    pairs = {key: difference(ratio, plain.ratios[key], seed=seed) for key, ratio in scores.ratios.items()}
    found: dict[str, Any] = {key: {"value": value, "interval": between} for key, (value, between) in pairs.items()}
    if hasattr(scores, "outcomes") and hasattr(plain, "outcomes"):
        found["mcnemar"] = asdict(mcnemar(scores.outcomes, plain.outcomes))
    return found


def _add(found: dict[str, Any], equal: Mapping[str, Any], seed: int) -> None:
    """Put scores that are differences themselves, of a benchmark or of each split, to its differences."""
    for key, score in equal.items():
        if isinstance(score, Mapping):
            _add(found[key], score, seed)
        elif not math.isnan(score.value):
            found[key] = {"value": score.value, "interval": interval(score, seed=seed)}


def _head_maps(report: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """From what the plugin reports of a batch: method -> share of its rows in which a head was chosen, [layers, heads]."""
    found = {method: facts["head_map"] for method, facts in report.items() if facts.get("head_map") is not None}
    return {method: np.asarray(grid, dtype=np.float64) for method, grid in found.items()}
