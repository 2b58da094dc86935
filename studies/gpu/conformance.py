"""Every method and decoder on tiny models of four families, on a device in a number type, against the CPU's float32.

The CPU answers first; the device is made to give the same tokens, so that its scores stand beside the CPU's step by step,
however close a choice was. Rounding may move what a method decides by a threshold (a sink, a head) in some row; half
precision is therefore held to its median step, float32 to its worst.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import sightline
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tests.helpers import naive, tiny
from tests.helpers.devices import between
from tests.helpers.engine import METHODS, calibration, decoder_layers, entry, fits

FAMILIES = ("llava_gqa", "qwen2_5_vl", "internvl", "gemma3")
PROMPTS = {"one": (7,), "padded": (9, 3, 6, 4)}  # text tokens behind the image, by row
NEW_TOKENS = 3
#: Largest distance by number type: of the worst step, and of the median one in half precision.
BOUNDS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.3}
#: Of the scores that are finite on either device, how many must be on both: a cutoff may move by rounding.
SHARED = {"float32": 0.99, "float16": 0.8, "bfloat16": 0.6}


@dataclass(frozen=True)
class Case:
    """A configuration on a family's tiny model: `plain`, or the name of a method or a decoder."""

    family: str
    name: str

    @property
    def attached(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration, and what `attach` needs beside it."""
        tiny_case = tiny.get(self.family)
        known = {"calibration": calibration(tiny_case, **naive.sections(tiny_case))}
        if self.name in METHODS:
            return {"methods": [entry(self.name)]}, known
        setup = naive.SETUPS.get(self.name)
        return ({}, known) if setup is None else ({"decoder": setup.config}, {**known, **setup.options})


def cases(family: str) -> list[Case]:
    """Everything that runs on a family, plain first."""
    names = ["plain", *(name for name in METHODS if fits(name, family)), *naive.SETUPS]
    return [Case(family, name) for name in names]


@functools.lru_cache(maxsize=2)
def model_of(family: str, dtype: str, device: str) -> Any:
    """A family's tiny model."""
    return copy.deepcopy(tiny.get(family).model).to(device=device, dtype=getattr(torch, dtype))


def inputs_of(family: str, prompt: str, dtype: str, device: str) -> tiny.Inputs:
    """A prompt of `PROMPTS` for it."""
    lengths = PROMPTS[prompt]
    given = tiny.get(family).inputs(len(lengths), lengths=lengths)
    return {k: v.to(device, getattr(torch, dtype) if v.is_floating_point() else v.dtype) for k, v in given.items()}


class Forced(LogitsProcessor):
    """Leaves nothing but the given tokens [B, steps] to choose; what `output_logits` returns stays as it was."""

    def __init__(self, tokens: Tensor, prompt: int):
        self.tokens, self.prompt = tokens, prompt

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        step = ids.shape[1] - self.prompt
        return torch.full_like(scores, -torch.inf).scatter_(1, self.tokens[:, step : step + 1], 0.0)


def said(case: Case, model: Any, inputs: tiny.Inputs, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The answer [B, steps] of a model with the case attached, or `tokens`, and its scores [B, steps, V]."""
    length, (config, options) = inputs["input_ids"].shape[1], case.attached
    forced = [] if tokens is None else [Forced(tokens.to(model.device), length)]
    with sightline.attach(model, config, **options):
        out = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList(forced),
        )
    return out.sequences[:, length:].cpu(), torch.stack(out.logits, dim=1).float().cpu()


@functools.cache
def expected(case: Case, prompt: str) -> tuple[Tensor, Tensor]:
    """What the CPU says in float32."""
    return said(case, model_of(case.family, "float32", "cpu"), inputs_of(case.family, prompt, "float32", "cpu"))


def measure(case: Case, prompt: str, dtype: str, device: str) -> dict[str, Any]:
    """How far a device's scores lie from the CPU's, step by step; `failed` says why not, where there are none.

    median, worst: distance of a step's scores over their size, both without their mean. shared: see `SHARED`. waits: what
    a layer of a decode step waited for, where the device is a card.
    """
    row: dict[str, Any] = {"family": case.family, "name": case.name, "prompt": prompt}
    tokens, scores = expected(case, prompt)
    model, inputs = model_of(case.family, dtype, device), inputs_of(case.family, prompt, dtype, device)
    try:
        if torch.device(device).type == "cuda":
            row["waits"] = _waits(case, model, inputs, tokens)
        _, found = said(case, model, inputs, tokens)
    except Exception as error:
        return {**row, "failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    both, either = found.isfinite() & scores.isfinite(), found.isfinite() | scores.isfinite()
    far = torch.tensor(
        [_distance(*step) for step in zip(found.flatten(0, 1), scores.flatten(0, 1), both.flatten(0, 1), strict=True)]
    )
    return {
        **row,
        "median": float(far.median()),
        "worst": float(far.max()),
        "shared": float(both.sum() / either.sum()),
    }


def passes(row: dict[str, Any], dtype: str) -> bool:
    """Whether a result of `measure` is as it should be."""
    if "failed" in row or row.get("waits"):
        return False
    return row["worst" if dtype == "float32" else "median"] <= BOUNDS[dtype] and row["shared"] >= SHARED[dtype]


def _distance(found: Tensor, expected: Tensor, both: Tensor) -> float:
    found, expected = (one[both] - one[both].mean() for one in (found, expected))
    return float((found - expected).norm() / expected.norm().clamp(min=1e-6))


def _waits(case: Case, model: Any, inputs: tiny.Inputs, tokens: Tensor) -> str | None:
    """What a layer of a decode step makes the host wait for the card for; None: nothing."""
    mode = torch.cuda.set_sync_debug_mode
    try:
        with between(decoder_layers(model), lambda: mode("error"), lambda: mode("default")):
            said(case, model, inputs, tokens)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return str(error).splitlines()[0]
    finally:
        mode("default")
    return None


@contextmanager
def exact(device: str) -> Iterator[None]:
    """Float32 in float32 on a card (no TF32), one thread for tiny models, and no warnings of what a tiny model lacks."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [one.allow_tf32 for one in flags]
    for one in flags:
        one.allow_tf32 = False
    try:
        with warnings.catch_warnings(), tiny.one_thread() if device == "cpu" else nullcontext():
            warnings.simplefilter("ignore", sightline.NoEffectWarning)
            yield
    finally:
        for one, allowed in zip(flags, before, strict=True):
            one.allow_tf32 = allowed


def part(family: str, dtype: str, device: str, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The subset of a family in a number type; `only` some names."""
    with exact(device):
        rows = [
            measure(case, prompt, dtype, device)
            for case in cases(family)
            if not only or case.name in only
            for prompt in PROMPTS
        ]
    return {"rows": rows, "dtype": dtype, "family": family, "passed": sum(passes(row, dtype) for row in rows)}
