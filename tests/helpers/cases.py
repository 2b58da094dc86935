"""Tiny LLaVA models with the float64 reference of `reference.py`, and how an attached model is held against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sightline
import torch
import transformers as tf

from tests.helpers import reference as ref

STEPS = 5
BOUND = 1e-4


IMAGE, PAD = 250, 0
PATCHES = 16
Inputs = dict[str, torch.Tensor]
Makers = list[Callable[[], ref.Method]]


@dataclass(frozen=True)
class Case:
    """A model with its reference decoder, a padded batch, and its rows without padding."""

    name: str
    model: Any
    decoder: ref.Decoder
    batch: Inputs
    rows: list[Inputs]
    prompts: list[ref.Prompt]
    dims: list[int]
    tau: float

    def calibration(self, **gaze: Any) -> dict[str, Any]:
        text = self.model.config.text_config
        return {
            "model": "tiny",
            "architecture": self.model.config.model_type,
            "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            "sink": {"dims": self.dims, "tau": self.tau},
            **({"gaze": gaze} if gaze else {}),
        }


def _model(layers: int, kv_heads: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=4,
            projection_dim=32,
        ),
        text_config=tf.LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-6,
            pad_token_id=PAD,
            tie_word_embeddings=False,
        ),
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
    )
    model = tf.LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    model.set_attn_implementation("sdpa")
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            if "language_model" not in name and "lm_head" not in name:
                parameter.copy_(0.3 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            elif parameter.ndim == 1:
                parameter.add_(0.2 * noise)  # learned gains that differ from 1
            elif "q_proj" in name or "k_proj" in name:
                parameter.copy_(0.17 * noise)  # attention logits with a standard deviation of about 2
            else:
                parameter.copy_(0.2 * noise)
        model.lm_head.weight[[PAD, 1, 2, IMAGE]] = 0.0
    model.generation_config = tf.GenerationConfig(pad_token_id=PAD, bos_token_id=1, eos_token_id=None, use_cache=True)
    return model


def _prompts(seed: int) -> tuple[Inputs, list[Inputs]]:
    """Three rows: (text, image, text) with one image, the same with other lengths, and one with two images."""
    rng = torch.Generator().manual_seed(seed)

    def text(n: int) -> list[int]:
        return torch.randint(10, 230, (n,), generator=rng).tolist()

    image = [IMAGE] * PATCHES
    tokens = [
        [1, *text(3), *image, *text(9)],
        [1, *text(1), *image, *text(5)],
        [1, *text(2), *image, *text(4), *image, *text(7)],
    ]
    pixels = torch.randn(4, 3, 16, 16, generator=rng)
    owners = [[0], [1], [2, 3]]
    width = max(map(len, tokens))
    batch = {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in tokens]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens]),
        "pixel_values": pixels,
    }
    rows = [
        {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        | {"pixel_values": pixels[own]}
        for row, own in zip(tokens, owners, strict=True)
    ]
    return batch, rows


class _Inputs(ref.Method):
    """Keeps the hidden states that enter each layer."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, np.ndarray]] = []

    def enter(self, layer: int, hidden: np.ndarray, at: Any) -> None:
        self.seen.append((layer, hidden))


def _sinks(decoder: ref.Decoder, prompts: list[ref.Prompt]) -> tuple[list[int], float]:
    """The two dimensions that best set a few image and text tokens of every prompt apart, and a tau just below."""
    ratios = []
    for prompt in prompts:
        probe = _Inputs()
        decoder.run(prompt.embeds, decoder.empty(), [probe])
        x = np.stack([hidden for layer, hidden in probe.seen if layer >= 2])
        ratios.append(np.abs(x) / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6))  # [layers, n, hidden]
    best: tuple[float, list[int], float] = (0.0, [], 0.0)
    for first in range(decoder.hidden):
        for second in range(first + 1, decoder.hidden):
            phis = [np.maximum(r[..., first], r[..., second]) for r in ratios]
            tops = [
                np.sort(phi[:, m].max(0))[-2] for phi, p in zip(phis, prompts, strict=True) for m in (p.image, ~p.image)
            ]
            usual = float(np.quantile(np.concatenate([phi.ravel() for phi in phis]), 0.75))
            best = max(best, (min(tops) / usual, [first, second], 0.98 * float(min(tops))))
    return best[1], best[2]


@cache
def _case(name: str) -> Case:
    layers, kv_heads, seed = {"mha": (5, 8, 3), "gqa": (6, 2, 4)}[name]
    model = _model(layers, kv_heads, seed)
    decoder = ref.Decoder(model)
    batch, rows = _prompts(seed)
    prompts = [decoder.prompt(row) for row in rows]
    dims, tau = _sinks(decoder, prompts)
    return Case(name, model, decoder, batch, rows, prompts, dims, tau)


def _generate(model: Any, inputs: Inputs) -> tuple[np.ndarray, list[list[int]]]:
    """Logits [batch, steps, vocab] and the new tokens."""
    out = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return torch.stack(out.logits, 1).double().numpy(), out.sequences[:, -STEPS:].tolist()


def _compare(
    case: Case,
    methods: list[dict[str, Any]],
    makers: Makers,
    *,
    calibration: dict[str, Any] | None = None,
    query: Any = None,
    prompts: list[ref.Prompt] | None = None,
) -> tuple[list[list[ref.Method]], dict[str, Any]]:
    """Engine against reference for every row alone and in the batch; the reference's methods and the batch's report."""
    prompts = case.prompts if prompts is None else prompts
    attached = {"config": {"methods": methods}, "calibration": calibration or case.calibration(), "query": query}
    config = attached.pop("config")
    with sightline.attach(case.model, config, **attached) as plug:
        alone = [_generate(case.model, row) for row in case.rows]
        together = _generate(case.model, case.batch)
        report = plug.report()
    used, worst, changed = [], 0.0, []
    for i, prompt in enumerate(prompts):
        tokens = alone[i][1][0]
        made = [make() for make in makers]
        expected = ref.generate(case.decoder, prompt, made, tokens)
        plain = ref.generate(case.decoder, prompt, [], tokens)
        used.append(made)
        assert expected.argmax(-1).tolist() == tokens
        assert together[1][i] == tokens
        changed.append(np.abs(expected - plain).max(-1))
        for got in (alone[i][0][0], together[0][i]):
            worst = max(worst, float(np.abs(got - expected).max()))
    print(f"{case.name} {methods}: largest logit error {worst:.2e}")
    assert worst < BOUND
    if makers:
        assert min(steps.min() for steps in changed) > 10 * BOUND, "a step was hardly edited"
        assert max(steps.max() for steps in changed) > 1000 * BOUND, "no step was edited much"
    return used, report


def _vhr(case: Case, **settings: Any) -> Callable[[], ref.VHR]:
    return lambda: ref.VHR(**{"layers": ref.vhr_layers(case.decoder.layers, case.name), **settings})


def _var(case: Case, **settings: Any) -> Callable[[], ref.VAR]:
    return lambda: ref.VAR(case.dims, case.tau, **settings)


def _gift(**settings: Any) -> Callable[[], ref.GIFT]:
    return lambda: ref.GIFT(**settings)


def _gaze(kind: str, layers: int) -> dict[str, Any]:
    """Saliency before the enhanced layers (one pass), inside their range (held-back token), in the first of them."""
    last = layers - 1
    return {
        "early": {"saliency_layers": [1], "enhanced_layers": list(range(2, layers)), "alpha": 1.5},
        "late": {"saliency_layers": [2], "enhanced_layers": list(range(1, layers)), "alpha": 1.5},
        "same": {"saliency_layers": [1], "enhanced_layers": [1, 2, last], "alpha": 1.5},
        "two": {"saliency_layers": [0, 1], "enhanced_layers": [2, last], "alpha": 1.5},
        "two_late": {"saliency_layers": [0, last], "enhanced_layers": [1, 2, last], "alpha": 1.5},
        "strong": {"saliency_layers": [1], "enhanced_layers": [2, last], "alpha": 5.0},
    }[kind]
