"""Checkpoints to serve, and what transformers says of them.

transformers runs in a process of its own (`apart`): vLLM, where it runs transformers' code, changes its classes.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sightline
import torch
from sightline.models.loading import load_model
from sightline.serving import engine

CALIBRATED = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYERS, HEADS = 4, 4  # of the random models
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, "seed": 0}


T = TypeVar("T")


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def apart(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function of this package in the process of transformers."""
    return _process().submit(function, *args, **kwargs).result()


def save_smollm2(folder: Path) -> Path:
    from transformers import LlamaForCausalLM

    model, tokenizer = load_model("smollm2")
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float32"
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    plain.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny(folder: Path, kind: str) -> Path:
    """A random model whose logits lie far enough apart for greedy search to be a test."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=384,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.5 / weight.shape[-1] ** 0.5)
        model.lm_head.weight.mul_(3)
    model.save_pretrained(folder)
    return folder


def save_llava(folder: Path, text: Path) -> Path:
    """A LLaVA with six of SmolLM2's layers and a random tower; `<repo_name>` stands for its pictures."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(text)
    speaking = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32, num_hidden_layers=6)
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=96,
        patch_size=24,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=speaking.config,
        image_token_id=tokenizer.convert_tokens_to_ids(PICTURE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).float().eval()
    model.model.language_model.load_state_dict(speaking.model.state_dict())
    model.lm_head.weight.data.copy_(speaking.lm_head.weight)
    model.tie_weights()
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            weight.mul_(3)
    model.save_pretrained(folder)
    size = {"height": 96, "width": 96}
    seeing = SiglipImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    LlavaProcessor(
        image_processor=seeing,
        tokenizer=tokenizer,
        patch_size=24,
        vision_feature_select_strategy="full",
        image_token=PICTURE,
        num_additional_image_tokens=0,
    ).save_pretrained(folder)
    return folder


PICTURE = "<repo_name>"


def calibration() -> sightline.Calibration:
    """What is known of SmolLM2."""
    named = type("Named", (), {"name_or_path": CALIBRATED})()
    return sightline.Calibration.load("auto", named)


@contextmanager
def started(model: Path, config: Any, known: Any = None, **options: Any) -> Iterator[Any]:
    """vLLM with a configuration (None: plain), ended behind the block."""
    from vllm import LLM

    options = {**OPTIONS, **options}
    llm = LLM(str(model), **options) if config is None else engine(str(model), config, calibration=known, **options)
    try:
        yield llm
    finally:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def answers(
    folder: Path, prompts: Sequence[Sequence[int]], config: Any, count: int, *, known: Any = None, **more: Any
) -> list[list[int]]:
    """What transformers says, greedily, to each prompt alone; under a configuration, or plain (None)."""
    said, model = [], loaded(folder)
    for ids in prompts:
        inputs = torch.tensor([list(ids)])
        given = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), **more}  # a padding token may be said
        given |= {"max_new_tokens": count, "min_new_tokens": count}
        if config is None:
            out = model.generate(**given, do_sample=False)
        else:
            with sightline.attach(model, config, calibration=known):
                out = model.generate(**given, do_sample=False)
        said.append(out[0, len(ids) :].tolist())
    return said


def replies(folder: Path, prompts: Sequence[tuple[str, Any]], config: Any, count: int, known: Any) -> list[list[int]]:
    """What transformers says, greedily, to each text with its picture or none, as `answers`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).float().eval()
    processor, said = AutoProcessor.from_pretrained(folder), []
    for text, picture in prompts:
        inputs = processor(text=text, images=picture, return_tensors="pt")
        given = {**inputs, "max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        with sightline.attach(model, config or {"methods": []}, calibration=known):
            out = model.generate(**given)
        said.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    return said


def logprobs(folder: Path, ids: Sequence[int], config: Any, count: int, known: Any) -> list[list[float]]:
    """The log-probabilities from which transformers takes each greedy token, under a configuration."""
    model = loaded(folder)
    with sightline.attach(model, config, calibration=known):
        out = model.generate(
            torch.tensor([list(ids)]),
            max_new_tokens=count,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    return [scores[0].float().log_softmax(-1).tolist() for scores in out.scores]


def evaluated(folder: Path, config: Any, known: Path, out: Path, count: int) -> list[Any]:
    """What two samples of `chair` come to by run, asked of transformers."""
    import json

    from sightline.benchmarks.benchmark import DataSource
    from sightline.benchmarks.runner import suite
    from sightline.benchmarks.runner.evaluate import ReplySettings, evaluate

    model, processor = load_model(str(folder))
    configs = {"vhr": sightline.Config.load(config)}
    settings = ReplySettings(count, 1, equal=False)
    evaluate(
        suite.read("chair", DataSource(None, 2)), model, processor, configs, out, calibration=known, settings=settings
    )
    return [json.loads(line)["runs"] for line in (out / "samples.jsonl").read_text().splitlines()]


@cache
def loaded(folder: Path) -> Any:
    """The same checkpoint in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(count: int, choice: str | None = None, **more: Any) -> Any:
    from vllm import SamplingParams

    own: Mapping[str, Any] = {} if choice is None else {"extra_args": {"sightline": choice}}
    return SamplingParams(temperature=0, max_tokens=count, min_tokens=count, **own, **more)


def sampled(count: int) -> Any:
    """Two answers, drawn from a seed. On a CPU, vLLM cannot seed a request whose prompt is read in chunks."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.9, top_p=0.9, seed=11, max_tokens=count, n=2, detokenize=False)


def tokens(outputs: Sequence[Any]) -> list[list[int]]:
    return [list(one.outputs[0].token_ids) for one in outputs]


def asked(prompts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": list(ids)} for ids in prompts]
