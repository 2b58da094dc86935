"""What serving costs: a configuration against plain vLLM, and transformers with Sightline, in turn in one process.

    python -m studies.serving --model FOLDER --json eval/results/serving.json
    python -m studies.serving --model FOLDER --capacity

FOLDER is a checkpoint of SmolLM2-135M-Instruct (`sightline export` writes one). Each round runs everything once, so that
a busy machine slows all alike, and time is that of the processor, which waiting for others does not move; what counts is
the ratio to plain vLLM in the same round. Each configuration has a process of its own, which holds three copies of the
model. `--capacity` times nothing: it asks how many tokens' keys and values fit into a GiB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

REQUESTS, FEWER, NEW_TOKENS, CALIBRATED = 32, (1, 8), 16, "HuggingFaceTB/SmolLM2-135M-Instruct"
TIMED = ("decore", "gains", "zerotuning")
STARTS = ("The capital of France is", "Once upon a time", "Water boils at", "My favourite book is", "In the year 1999")
CONFIGS: dict[str, dict[str, Any]] = {
    "decore": {"decoder": {"decore": {"heads": 20}}},
    "zerotuning": {"methods": [{"zerotuning": {"gain": 2.0}}]},
    "vcd": {"decoder": "vcd"},
    "pai_guidance": {"decoder": "pai_guidance"},
    "gains": {
        "methods": [{"head_gain": {"head_list": [[layer, layer % 9] for layer in range(0, 30, 2)], "gain": 1.5}}]
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=[*TIMED])
    parser.add_argument("--capacity", action="store_true")
    parser.add_argument("--model-impl", default="auto", help="of --capacity; a LLaVA wants 'transformers' here")
    options = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    found = {}
    if options.capacity:
        print("| configuration | tokens in 1 GiB | of plain |\n|---|---|---|")
        for name in (None, *options.configs):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                found[name] = process.submit(capacity, name, options.model, options.model_impl).result()
            print(f"| {name or 'plain'} | {found[name]:,} | {found[name] / found[None]:.2f} |", flush=True)
        return
    for name in options.configs:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found[name] = process.submit(measure, name, options.model, options.rounds, options.compiled).result()
        print(table(found[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


def capacity(config: str | None, model: str, code: str) -> int:
    """How many tokens' keys and values fit into the memory that vLLM is given; None: without Sightline."""
    import vllm
    from sightline.serving import engine

    shape = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True, "model_impl": code}
    llm = (
        vllm.LLM(model, **shape)
        if config is None
        else engine(model, CONFIGS[config], calibration=known(config), **shape)
    )
    cache = llm.llm_engine.vllm_config.cache_config
    return int(cache.num_gpu_blocks * cache.block_size)


def known(config: str) -> Any:
    """SmolLM2's calibration, whatever folder it lies in, for a configuration that needs one."""
    import sightline

    if config != "decore":
        return None
    named = type("Named", (), {"name_or_path": CALIBRATED})()
    return sightline.Calibration.load("auto", named)


def measure(config: str, model: str, rounds: int, compiled: bool) -> dict[str, Any]:
    import sightline
    import torch
    import vllm
    from sightline.common.files import provenance
    from sightline.serving import engine
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shape = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": REQUESTS, "seed": 0}
    shape |= {"enforce_eager": not compiled, "enable_prefix_caching": False, "num_gpu_blocks_override": 96}
    engines = {
        "plain": vllm.LLM(model, **shape),
        config: engine(model, CONFIGS[config], calibration=known(config), **shape),
    }
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    short = [f"Story {number}. {STARTS[number % len(STARTS)]}" for number in range(REQUESTS)]
    long = ["Tell me more. " * 30 + text for text in short[:8]]

    def served(name: str, texts: list[str], count: int) -> Callable[[], Any]:
        parameters = vllm.SamplingParams(temperature=0, max_tokens=count, min_tokens=count)
        return lambda: engines[name].generate(texts, parameters, use_tqdm=False)

    def attached(texts: list[str]) -> Callable[[], Any]:
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        given = {**inputs, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

        def run() -> Any:
            with sightline.attach(reference, CONFIGS[config], calibration=known(config)):
                return reference.generate(**given)

        return run

    runs: dict[str, Callable[[], Any]] = {}
    for name in engines:
        runs[f"throughput {name}"] = served(name, short, NEW_TOKENS)
        runs[f"prefill {name}"] = served(name, long, 1)
    runs[f"transformers {config}"] = attached(short)
    for size in FEWER:
        runs |= {f"throughput {name}, {size}": served(name, short[:size], NEW_TOKENS) for name in engines}
        runs[f"transformers {config}, {size}"] = attached(short[:size])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            begun = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - begun)
    layers = {name: holding(one) for name, one in engines.items()}
    shape |= {"requests": REQUESTS, "new_tokens": NEW_TOKENS, "rounds": rounds, "threads": torch.get_num_threads()}
    made = provenance({}) | {"vllm": vllm.__version__}
    return {"seconds": seconds, "layers": layers, "shape": shape, **made}


def holding(llm: Any) -> int:
    """How many layers hold keys and values of a token."""
    return len(llm.llm_engine.vllm_config.compilation_config.static_forward_context)


def table(result: dict[str, Any]) -> str:
    """A row for each run: its median of seconds, and of the ratio to plain vLLM in the same round."""
    seconds = result["seconds"]
    lines = [
        "| run, of 32 or so many | processor seconds, median | ratio to plain vLLM, min - median - max |",
        "|---|---|---|",
    ]
    for name, own in seconds.items():
        _, comma, fewer = name.partition(",")
        plain = seconds["prefill plain" if name.startswith("prefill") else f"throughput plain{comma}{fewer}"]
        ratios = sorted(one / other for one, other in zip(own, plain, strict=True))
        spread = " - ".join(f"{one:.2f}" for one in (ratios[0], statistics.median(ratios), ratios[-1]))
        lines.append(f"| {name} | {statistics.median(own):.2f} | {spread} |")
    lines += [f"| layers that hold keys, {name} | {count} | |" for name, count in result["layers"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
