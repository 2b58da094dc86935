"""For profiling tests: a processor whose prompts are those of a tiny model, and what its eager form computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from sightline.models.samples import Example
from sightline.plugin.core.host import Host
from sightline.profiling.job import Job, Partial
from transformers import BatchFeature

from tests.helpers import tiny

LENGTHS = (9, 4, 7)  # text tokens behind the image


class Processor:
    """Turns examples "0", "1", ... into prompts of `case`: example i is row i of a fixed batch."""

    chat_template = None
    bos_token = None
    pad_token = "<pad>"
    eos_token_id = pad_token_id = -1
    padding_side = "left"

    def __init__(self, case: tiny.TinyCase, seed: int = 0):
        self.case, self.seed = case, seed
        self.rows = case.inputs(len(LENGTHS), lengths=LENGTHS, seed=seed)
        self.calls: list[int] = []
        if case.has_images:
            self.image_processor = SimpleNamespace(do_center_crop=False)

    @property
    def tokenizer(self) -> Processor:
        return self

    def __call__(self, text: Sequence[str], **_: Any) -> BatchFeature:
        chosen = [int(one.split()[-1]) % len(LENGTHS) for one in text]
        self.calls.append(len(chosen))
        alone = [self.case.row(self.rows, i) for i in chosen]
        width = max(row["input_ids"].shape[1] for row in alone)
        data = {}
        for key in alone[0]:
            parts = [row[key] for row in alone]
            if key in ("input_ids", "attention_mask"):
                parts = [torch.nn.functional.pad(part, (width - part.shape[1], 0)) for part in parts]
            data[key] = torch.cat(parts)
        return BatchFeature(data)

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        """Every token is a letter."""
        return "".join(chr(97 + token % 26) for token in tokens)


def shown(processor: Processor, count: int = len(LENGTHS)) -> list[Example]:
    picture = Image.new("RGB", (40, 20)) if processor.case.has_images else None
    return [Example(str(i), str(i), picture) for i in range(count)]


def job(processor: Processor, folder: Path, *, count: int = len(LENGTHS), **options: Any) -> Job:
    """A job over the processor's examples."""
    model = processor.case.model
    kept = Partial(folder / "x.partial", {}, resume=False)
    return Job(model, processor, shown(processor, count), Host(model).facts(None), kept, **{"batch": 2, **options})


@dataclass(frozen=True)
class Row:
    """One prompt run alone by the eager model, without padding, float64.

    hidden: states entering each layer [n, D]. weights: by layer [H, n, n]. heads: their outputs by layer [n, H, d].
    image: where image tokens are [n]. logits: [n, vocabulary].
    """

    hidden: list[torch.Tensor]
    weights: list[torch.Tensor]
    heads: list[torch.Tensor]
    image: torch.Tensor
    logits: torch.Tensor

    @property
    def length(self) -> int:
        return len(self.image)


def eager(case: tiny.TinyCase, inputs: dict[str, torch.Tensor], *, gains: dict[int, torch.Tensor] | None = None) -> Row:
    """What transformers' own eager attention computes, optionally with head outputs multiplied (by layer [H])."""
    outputs: list[torch.Tensor] = []
    layers = case.model.get_decoder().layers

    def hook(layer: int) -> Any:
        def see(module: Any, arguments: tuple[torch.Tensor]) -> Any:
            heads = arguments[0].view(*arguments[0].shape[:2], -1, layers[layer].self_attn.head_dim)
            outputs.append(heads[0].double())
            if gains is None or layer not in gains:
                return None
            return ((heads * gains[layer][None, None, :, None]).flatten(2),)

        return see

    handles = [layer.self_attn.o_proj.register_forward_pre_hook(hook(i)) for i, layer in enumerate(layers)]
    case.model.set_attn_implementation({"text_config": "eager"} if case.has_images else "eager")
    try:
        with torch.no_grad():
            out = case.model(**inputs, output_attentions=True, output_hidden_states=True)
    finally:
        case.model.set_attn_implementation({"text_config": "sdpa"} if case.has_images else "sdpa")
        for handle in handles:
            handle.remove()
    image = inputs["input_ids"][0] == case.image_token_id if case.has_images else torch.zeros(0)
    if not case.has_images:
        image = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    states = [state[0].double() for state in out.hidden_states[: len(layers)]]
    return Row(states, [one[0].double() for one in out.attentions], outputs, image, out.logits[0].double())


def rows(processor: Processor) -> list[Row]:
    """Every example of the processor, alone."""
    return [eager(processor.case, processor.case.row(processor.rows, i)) for i in range(len(LENGTHS))]


def normalised(state: torch.Tensor) -> torch.Tensor:
    """|x| / RMS(x) of one state [D]."""
    return state.abs() / math.sqrt(float((state**2).mean()) + 1e-6)
