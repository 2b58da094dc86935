"""The runner: the same prompts through the plain model and through each configuration, in turn.

A *task* is a set of requests and a way to score the replies; captions and questions are two of them (`tasks.py`), and
any other suite can join by saying the same three things. Inputs are made once and shared by all configurations, and
every batch runs under all of them before the next one starts, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...common.statistics import Score, difference, interval, mcnemar

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN = "plain"
Config = Mapping[str, Any]
Attach = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True)
class Request:
    """One image and one ready prompt (chat template applied, image token in place)."""

    image: Image
    prompt: str


class Scored(Protocol):
    """Scores of one set of replies, as numbers, and those that can be resampled over images.

    Where each reply is right or wrong, an attribute `outcomes` says which, for McNemar's test.
    """

    @property
    def values(self) -> dict[str, object]: ...

    @property
    def ratios(self) -> Mapping[str, Score]: ...


Scores = Scored | Mapping[str, Scored]
"""The scores of a task, or of each of its splits."""


class Scorer(Protocol):
    """Scores replies; `name` is its key in the results."""

    @property
    def name(self) -> str: ...

    def score(self, replies: Sequence[Any]) -> Scores:
        """Score one reply per request, in the order of the requests."""
        ...


class Task(Scorer, Protocol):
    """Requests and how to score the replies to them.

    `new_tokens` is the longest reply, `batch` the rows of one `generate` call.
    """

    new_tokens: int
    batch: int

    def requests(self) -> list[Request]:
        """The requests, in a fixed order."""
        ...


@dataclass
class Run:
    """What one configuration replied, per task name, and the seconds its `generate` calls took.

    `head_maps` holds, for each method that tells which heads it chose, the share of the first task's rows in which it
    chose them, `[layers, heads]`.
    """

    name: str
    config: Config
    replies: dict[str, list[Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    head_maps: dict[str, np.ndarray] = field(default_factory=dict)


def run(
    model: Any,
    processor: Any,
    tasks: Sequence[Task],
    configs: Mapping[str, Config],
    *,
    attach: Attach | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> list[Run]:
    """Generate greedily, plain and under every configuration.

    Args:
        model: a model with `generate`, in eval mode.
        processor: `processor(images=, text=, padding=True, return_tensors="pt")`, one image per row.
        tasks: what to ask.
        configs: name -> configuration, as `sightline.attach` takes it; `plain` is added in front.
        attach: stands in for `sightline.attach`.
        advance: called after each `generate` call with the name of the run; there are `calls(...)` of them.

    Returns:
        One run per configuration, `plain` first.

    Raises:
        SightlineError: a configuration does not fit the model.
    """
    if attach is None:
        from ...plugin.attach import attach as attach_plugin

        attach = attach_plugin
    for config in configs.values():  # a configuration that does not fit should fail now, not after minutes
        with attach(model, config, processor=processor):
            pass
    runs = [Run(PLAIN, {})] + [Run(name, config) for name, config in configs.items()]
    for task in tasks:
        for number, inputs in enumerate(batches(model, processor, task)):
            if number == 0:  # the first call of a shape pays for allocation and kernel choice: nobody should
                _generate(model, processor, inputs, min(2, task.new_tokens))
            for item in runs:
                plain = item.name == PLAIN
                manager: Any = nullcontext() if plain else attach(model, item.config, processor=processor)
                with manager as plug:
                    replies, seconds = _generate(model, processor, inputs, task.new_tokens)
                    report = plug.report() if hasattr(plug, "report") else {}
                item.replies.setdefault(task.name, []).extend(replies)
                item.seconds[task.name] = item.seconds.get(task.name, 0.0) + seconds
                if task is tasks[0]:
                    for method, grid in head_maps(report).items():
                        share = grid * (len(replies) / len(task.requests()))
                        item.head_maps[method] = item.head_maps.get(method, 0.0) + share
                advance(item.name)
    return runs


def calls(tasks: Sequence[Task], configs: Mapping[str, Config]) -> int:
    """How many `generate` calls `run` will report through `advance`."""
    return sum(-(-len(task.requests()) // task.batch) for task in tasks) * (1 + len(configs))


def batches(model: Any, processor: Any, task: Task) -> Iterator[Any]:
    """The model inputs of a task, batch by batch, left-padded, on the model's device and in its number type."""
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    requests = task.requests()
    for start in range(0, len(requests), task.batch):
        rows = requests[start : start + task.batch]
        yield processor(
            images=[row.image for row in rows], text=[row.prompt for row in rows], padding=True, return_tensors="pt"
        ).to(model.device, model.dtype)


def results(runs: Sequence[Run], tasks: Sequence[Scorer], *, seed: int = 0) -> list[dict[str, Any]]:
    """Score the runs: one JSON-ready entry per run.

    Each entry has `name`, `config`, the scores under each task's name, `time_ratio` (seconds of the first task's
    `generate` calls over those of plain), `intervals` (95 % bootstrap over images, same shape as the scores) and
    `differences` to plain, as `{"value", "interval"}` from paired resampling; there, questions that are right or wrong
    add `mcnemar`, as `{"gained", "lost", "p"}`. `against` names the run that it is compared with, None for that run
    itself. Also the `seconds` and `head_maps`.
    """
    entries = []
    plain = {task.name: task.score(runs[0].replies[task.name]) for task in tasks}
    for item in runs:
        scores = {task.name: task.score(item.replies[task.name]) for task in tasks}
        timed = tasks[0].name
        entries.append(
            {
                "name": item.name,
                "config": item.config,
                "against": None if item is runs[0] else runs[0].name,
                **{name: _each(score, lambda one: one.values) for name, score in scores.items()},
                "time_ratio": item.seconds[timed] / runs[0].seconds[timed] if runs[0].seconds[timed] else 0.0,
                "seconds": item.seconds,
                "intervals": {
                    name: _each(score, lambda one: {key: interval(r, seed=seed) for key, r in one.ratios.items()})
                    for name, score in scores.items()
                },
                "head_maps": {method: grid.tolist() for method, grid in item.head_maps.items()},
                "differences": {name: _differences(scores[name], plain[name], seed) for name in scores},
            }
        )
    return entries


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


def head_maps(report: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """From what the plugin reports of a batch: method -> share of its rows in which a head was chosen, [layers, heads]."""
    found = {method: facts["head_map"] for method, facts in report.items() if facts.get("head_map") is not None}
    return {method: np.asarray(grid, dtype=np.float64) for method, grid in found.items()}


def _generate(model: Any, processor: Any, inputs: Any, new_tokens: int) -> tuple[list[str], float]:
    start = time.perf_counter()
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False).cpu()  # .cpu() waits for a GPU
    seconds = time.perf_counter() - start
    replies = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies], seconds
