"""`sightline bench`: what a configuration costs, as ratios to plain measured in the same process and round.

One `generate` call gives both phases: a stopping criterion, asked after every token, reads the clock. Prefill is the
time to the first token (image, prompt, and whatever a method runs before it, such as VHR's text-only pass); decode is
the mean time of each later token. A round runs everything in turn, plain first and once more at the end; ratios are
taken within a round, to the mean of its two plain runs, so that a machine that slows down slows both sides. The ratio
of plain is its second run to its first: the noise that every other ratio carries. On a busy machine raise the repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ...common.errors import ConfigError
from ...common.files import provenance
from ...models.loading import cpu_threads
from ...plugin.branches.decoder import DECODERS
from ..runner.plan import PLAIN, Attach
from . import naive
from .clock import Clock, Timing
from .shapes import Bench, build

if TYPE_CHECKING:
    from rich.table import Table

PHASES = ("prefill", "decode")
AGAIN = "plain again"
NAIVE = "naive:"  # before a name: as one writes it without the engine (`naive.py`)
COMPILED = " compiled"  # behind a name: with a static cache and a compiled decode step, against plain like that
TRACE = "trace"  # among the names: what each token leans on is recorded


def bench(
    name: str,
    methods: Sequence[str],
    *,
    new_tokens: int = 32,
    prompt_tokens: int | None = None,
    batch: int = 1,
    beams: int = 1,
    compiled: bool = False,
    repeats: int = 5,
    threads: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    calibration: Path | None = None,
    attach: Attach | None = None,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> dict[str, Any]:
    """Measure methods against plain on one model; returns the JSON-ready result.

    Args:
        name: see `shapes.build`.
        methods: names of methods and decoders, `a+b` for two together, or YAML files; `naive:decore` for DeCoRe as a
            loop of two passes per token, `naive:var` and `naive:gift` on eager attention; `trace`, alone or in `a+trace`,
            records what each token leans on.
        new_tokens: tokens to generate, at least 2; the end-of-sequence token is off.
        prompt_tokens: length of the prompt, see `shapes.build`.
        batch: rows.
        beams: how many are searched.
        compiled: measure everything a second time with a static cache and a compiled decode step.
        repeats: rounds.
        threads: CPU threads of torch; its own choice when None.
        dtype: number type of the model.
        device: a torch device; or "auto", for a model that is loaded.
        calibration: a calibration file instead of the shipped one.
        attach: stands in for `sightline.attach`.
        advance: called with a name and the total number of calls, after each `generate` call.

    Raises:
        SightlineError: a method, model or device that does not exist or does not fit.
    """
    import torch

    from ...plugin.attach import attach as attach_plugin
    from ...plugin.config import Config, check_calibrations

    attach = attach or attach_plugin
    if new_tokens < 2:
        raise ConfigError(f"--new-tokens {new_tokens}: give at least 2, one for prefill and one for decode")
    configs = {item: Config.load(configuration(item.removeprefix(NAIVE))) for item in methods}
    for item, config in configs.items():
        if item.startswith(NAIVE):
            naive.check(config)
    check_calibrations(configs.values(), calibration)
    if not configs:
        raise ConfigError("nothing to measure: give --methods, for example --methods vhr,var,gift")
    with cpu_threads(threads) as running:
        subject = build(name, batch=batch, prompt_tokens=prompt_tokens, dtype=dtype, device=device)
        subject.calibration = calibration or subject.calibration
        order = [PLAIN, *configs, AGAIN]
        if compiled:
            order += [f"{item}{COMPILED}" for item in order if not item.startswith(NAIVE)]
        total = len(order) * (repeats + 1)
        rounds: list[dict[str, Timing]] = []
        for number in range(repeats + 1):
            turn = order if number % 2 else order[::-1]
            samples = {}
            for item in turn:
                # The first round warms up: allocator, kernel choice, lazy imports. It is short and not counted.
                graph, item = item.endswith(COMPILED), item.removesuffix(COMPILED)
                tokens = new_tokens if number or graph else min(3, new_tokens)  # a graph is for one length of cache
                name = f"{item}{COMPILED}" if graph else item
                traced = TRACE in item.split("+")
                if item.startswith(NAIVE):
                    samples[name] = _sample_naive(subject, configs[item], attach, tokens)
                else:
                    samples[name] = _sample(subject, configs.get(item), attach, tokens, traced, beams, graph)
                advance(name, total)
            if number:
                rounds.append(samples)
    place = subject.model.device
    return {
        "rows": rows(rounds, [item for item in order if not item.startswith(AGAIN)]),
        "model": {"name": name, "dtype": dtype} | subject.facts,
        "batch": batch,
        "beams": beams,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "threads": running,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
    } | provenance({})


def configuration(item: str) -> dict[str, Any] | str:
    """The configuration that a `--methods` entry means: a YAML file, or names joined by `+` with their defaults.

    Raises:
        ConfigError: the entry is empty or names a file that does not exist.
    """
    if item.endswith((".yaml", ".yml")):
        if not Path(item).is_file():
            raise ConfigError(f"no configuration file {item}: check --methods")
        return item
    names = [name.strip() for name in item.split("+")]
    if not all(names):
        raise ConfigError(f"empty name in --methods {item!r}: write for example vhr,var,vhr+gift")
    chosen = [name for name in names if name in DECODERS]
    if len(chosen) > 1:
        raise ConfigError(f"--methods {item!r} names {' and '.join(chosen)}: at most one decoder runs at a time")
    decoder: dict[str, Any] = {"decoder": {chosen[0]: {}}} if chosen else {}
    return {"methods": [{name: {}} for name in names if name not in (*chosen, TRACE)], **decoder}


def rows(rounds: Sequence[Mapping[str, Timing]], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per configuration and phase.

    `ms` and `plain_ms` are medians over the rounds; `ratio` is over the ratios of each round, to the mean of its two
    plain runs. The row of plain compares its second run with its first.
    """
    table = []
    for name in names:
        kind = COMPILED if name.endswith(COMPILED) else ""
        first_plain, second_plain = PLAIN + kind, AGAIN + kind
        measured = second_plain if name == first_plain else name
        for phase in PHASES:
            ms = [samples[measured].ms[phase] for samples in rounds]
            plain = [samples[first_plain].ms[phase] for samples in rounds]
            if name != first_plain:
                plain = [
                    (first + samples[second_plain].ms[phase]) / 2 for first, samples in zip(plain, rounds, strict=True)
                ]
            ratios = [one / other for one, other in zip(ms, plain, strict=True)]
            peaks = [peak for samples in rounds if (peak := samples[measured].peak_mb[phase]) is not None]
            table.append(
                {
                    "name": name,
                    "phase": phase,
                    "ratio": {"min": min(ratios), "median": median(ratios), "max": max(ratios)},
                    "plain_ms": median(plain),
                    "ms": median(ms),
                    "peak_mb": max(peaks) if peaks else None,
                }
            )
    return table


def table(result: Mapping[str, Any]) -> Table:
    """The rows for a terminal."""
    from rich import box
    from rich.table import Table

    model = result["model"]
    shown = Table(
        title=f"{model['name']}, {model['parameters'] / 1e6:.0f}M parameters ({model['weights']}), {model['dtype']}, "
        f"batch {result['batch']}, prompt {model['prompt_tokens']} ({model['image_tokens']} image), "
        f"{result['new_tokens']} new tokens, {result['repeats']} rounds",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for column in ("phase", "run"):
        shown.add_column(column)
    for column in ("plain ms", "ms", "ratio", "min – max", "peak MB"):
        shown.add_column(column, justify="right")
    for phase in PHASES:
        for row in (row for row in result["rows"] if row["phase"] == phase):
            ratio = row["ratio"]
            peak = "–" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
            shown.add_row(
                phase,
                row["name"],
                f"{row['plain_ms']:.2f}",
                f"{row['ms']:.2f}",
                f"[bold]{ratio['median']:.3f}[/bold]",
                f"{ratio['min']:.3f} – {ratio['max']:.3f}",
                peak,
                end_section=row["name"] == result["rows"][-1]["name"],
            )
    notes = ["prefill: to the first token; decode: per token. The ratio of plain is to itself: the noise."]
    if "sinks" in model:
        notes.append(f"Vision tower: {model['vision']}. Sinks {model['sinks']}.")
    if "step" in model:
        ms = next(row["ms"] for row in result["rows"] if (row["name"], row["phase"]) == (PLAIN, "decode"))
        read, computed = model["step"]["bytes"], model["step"]["flops"]
        notes.append(
            f"A decode step of plain reads {read / 1e6:.0f} MB of weights, keys and values and computes"
            f" {computed / 1e9:.2f} GFLOP: {read / ms / 1e6:.1f} GB/s, {computed / ms / 1e6:.1f} GFLOP/s."
        )
    shown.caption = "\n".join(notes)
    return shown


def _sample(
    subject: Bench, config: Any, attach: Attach, new_tokens: int, traced: bool, beams: int, compiled: bool
) -> Timing:
    options = _options(subject)
    if traced:
        options["trace"] = True
    manager = nullcontext() if config is None else attach(subject.model, config, **options)
    clock = Clock(subject.model.device)
    with manager:
        clock.start()
        subject.model.generate(**subject.inputs, **_how(subject.model, clock, new_tokens, beams, compiled))
    return clock.sample()


def _sample_naive(subject: Bench, config: Any, attach: Attach, new_tokens: int) -> Timing:
    model = subject.model
    with attach(model, config, **_options(subject)) as plug:  # the heads that it masks, the method that it runs
        decoder, methods = plug.decoder, list(plug.methods.values())
    clock = Clock(model.device)
    clock.start()
    if decoder is not None:
        naive.decode(model, subject.inputs, decoder.heads, config.decoder[1], new_tokens, lambda ids: clock(ids, None))
    else:
        naive.answer(model, subject.inputs, methods[0], **_how(model, clock, new_tokens))
    return clock.sample()


def _options(subject: Bench) -> dict[str, Any]:
    """What `attach` needs beside a configuration."""
    return {"calibration": subject.calibration, "processor": subject.processor, "context": subject.context}


def _how(model: Any, clock: Clock, new_tokens: int, beams: int = 1, compiled: bool = False) -> dict[str, Any]:
    """Options of a `generate` that `clock` measures."""
    from transformers import CompileConfig, StoppingCriteriaList

    how: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": beams}
    how["stopping_criteria"] = StoppingCriteriaList([clock])
    # An end-of-sequence token would end some runs early; a model without one needs no minimum.
    if model.generation_config.eos_token_id is not None:
        how["min_new_tokens"] = new_tokens
    if compiled:
        mode = "reduce-overhead" if model.device.type == "cuda" else "default"
        compiling: Any = CompileConfig(mode=mode)
        compiling._compile_all_devices = True
        how |= {"cache_implementation": "static", "compile_config": compiling}
    return how
