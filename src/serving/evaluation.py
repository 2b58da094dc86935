"""`sightline eval --engine vllm`: a benchmark through served models, plain and under configurations.

Each run starts an engine of its own, puts all samples to it at once and ends it, so that throughput is vLLM's own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..benchmarks.benchmark import Benchmark
from ..benchmarks.runner.evaluate import merge
from ..benchmarks.runner.plan import PLAIN
from ..benchmarks.runner.run import Run
from ..benchmarks.runner.store import Store
from ..common.chat import sees, started, text_tokenizer
from ..common.errors import ConfigError, SightlineError
from ..common.files import config_hash
from ..common.pictures import open_image
from ..common.readers import Notes
from ..models.prompting import encode, turn
from ..models.samples import Sample
from ..plugin.config import Config
from .launch import engine
from .plan import read_config, resolve
from .plugin import THROUGH_TRANSFORMERS, check_vllm, chosen_class
from .rows import CHOICE, OFF


def evaluate(
    benchmark: Benchmark,
    model: str,
    configs: Mapping[str, Config],
    out: Path,
    *,
    calibration: Path | None = None,
    new_tokens: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> dict[str, Any]:
    """Ask everything under each configuration, plain first, and score it as `sightline eval` does.

    Args:
        benchmark: what to ask; its replies are texts.
        model: a checkpoint folder or a hub name.
        configs: run name -> configuration.
        out: the folder of this evaluation; a run that is complete there is not repeated.
        calibration: instead of the configurations' or the shipped one.
        new_tokens: longest reply; None: the benchmark's.
        seed: of the bootstrap.
        options: vLLM's own, such as `dtype` and `max_model_len`.
        advance: called after each run with its name and the number of runs.

    Returns:
        What `sightline eval` returns, and `throughput`: run -> generated tokens per second of all requests together.

    Raises:
        SightlineError: vLLM cannot carry a configuration, or the benchmark scores given answers.
    """
    check_vllm()
    if any(sample.choices for sample in benchmark.samples):
        raise ConfigError(
            f"'{benchmark.name}' scores given answers, which vLLM does only for the plain model: leave --engine vllm out"
        )
    options, length = dict(options or {}), new_tokens or benchmark.new_tokens
    plans = {name: resolve(model, config, calibration) for name, config in configs.items()}  # all before any starts
    processor = _processor(model)
    hashes = {"data": benchmark.data_hash()}
    made = {"engine": f"vllm {_version()}", "new_tokens": length, "options": config_hash(options)}
    shared = {"benchmark": benchmark.name, "model": model, **hashes, **made, "samples": len(benchmark.samples)}
    notes, runs, rates = Notes(benchmark.notes), list[Run](), dict[str, float]()
    with ExitStack() as stack:
        for name in (PLAIN, *configs):
            plan = plans.get(name)
            own = {"config": plan and plan.config, "calibration": plan and plan.calibration}
            store = stack.enter_context(Store(out / name, {**shared, **own}))
            missing = [sample for sample in benchmark.samples if sample.id not in store.done()]
            if missing:
                store.append(_asked(model, configs.get(name), calibration, processor, missing, length, options))
            rows = store.done(notes)
            mine = [rows[sample.id] for sample in benchmark.samples]
            seconds = sum(row["seconds"] for row in mine)
            rates[name] = sum(row["tokens"] for row in mine) / seconds if seconds else 0.0
            replies = {benchmark.name: [row["reply"] for row in mine]}
            runs.append(
                Run(name, configs[name].dump() if name in configs else {}, replies, {benchmark.name: [seconds]})
            )
            advance(name, 1 + len(configs))
    hashes |= {f"config {name}": config_hash(plan.config) for name, plan in plans.items()}
    hashes |= {f"calibration {name}": plan.calibration for name, plan in plans.items() if plan.calibration}
    result = merge(benchmark, runs, out, hashes, notes, settings={**made, "seed": seed})
    return {**result, "throughput": rates}


def _asked(
    model: str,
    config: Config | None,
    calibration: Path | None,
    processor: Any,
    samples: Sequence[Sample],
    length: int,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row for each sample: its reply, generated tokens, and its share of the seconds."""
    from vllm import LLM, SamplingParams

    if config is None:  # by the same code as the others
        through = chosen_class(str(read_config(model).model_type), "auto") in THROUGH_TRANSFORMERS.values()
        llm = LLM(model, **{"model_impl": "transformers" if through else "auto", **options})
    else:
        llm = engine(model, config, calibration=calibration, **options)
    try:
        plain = {CHOICE: OFF}  # for a question without a picture, where the configuration works on pictures
        parameters = [
            SamplingParams(
                temperature=0,
                max_tokens=length,
                extra_args=plain if config is not None and config.needs_image and sample.image is None else None,
            )
            for sample in samples
        ]
        prompts = [prompt(processor, sample) for sample in samples]
        llm.generate(prompts[:1], SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)  # pays for allocation
        begun = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = (time.perf_counter() - begun) / len(samples)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
    tokenizer = text_tokenizer(processor)
    said = [list(output.outputs[0].token_ids) for output in outputs]
    return [
        {
            "id": sample.id,
            "reply": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            "seconds": seconds,
            "tokens": len(ids),
        }
        for sample, ids in zip(samples, said, strict=True)
    ]


def prompt(processor: Any, sample: Sample) -> dict[str, Any]:
    """A sample as vLLM takes it: the same tokens and the same picture that `models.prompting` gives transformers."""
    if sample.image is None:
        text = sample.text if sample.raw else turn(processor, sample.text)
        return {"prompt_token_ids": encode(processor, text)}
    if not sees(processor):
        raise SightlineError(
            "this model reads text only, but it is to be shown pictures: choose a vision-language model"
        )
    picture = open_image(sample.image) if isinstance(sample.image, Path) else sample.image
    text = sample.text if sample.raw else turn(processor, sample.text, 1)
    tokenizer = text_tokenizer(processor)
    if started(tokenizer, [text])[1] and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(tokenizer.bos_token)  # vLLM's tokenizer writes it
    return {"prompt": text, "multi_modal_data": {"image": picture}}


def _processor(model: str) -> Any:
    """The model's processor; its tokenizer where it reads text only."""
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    reader = AutoTokenizer if config.get_text_config() is config else AutoProcessor
    return reader.from_pretrained(model)


def _version() -> str:
    import vllm

    return str(vllm.__version__)
