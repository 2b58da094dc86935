"""What `sightline bench` runs on: a model, inputs for it, and the calibration that the methods need.

Random-weight LLaVA shapes need no download and cost what a trained model of that size costs: speed does not depend on
the weights, except where a method's work depends on what it finds. That is VAR, whose sink test is set (`tau`) so that
it fires on a few image tokens in every layer, as it does in trained models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import SightlineError
from ...models.loading import EMBEDDED, load_model, torch_device, torch_dtype
from ...models.prompting import batch_inputs
from ...models.samples import Sample
from ...plugin.core.families import find_family

SINK_SHARE = 0.03
"""Share of the image tokens of a random-weight shape that pass VAR's sink test."""

SHAPES: dict[str, dict[str, Any]] = {
    "llava-shape": {
        "text": {
            "hidden_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "intermediate_size": 2816,
            "vocab_size": 32064,
        },
        "vision": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
    },
    "llava-7b-shape": {
        "text": {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            "vocab_size": 32064,
        },
        "vision": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    },
}
SHAPES["llama-2-7b-shape"] = {"text": SHAPES["llava-7b-shape"]["text"] | {"vocab_size": 32000}}
SHAPES["qwen2.5-vl-7b-shape"] = {
    "text": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584},
}
IMAGE_TOKEN = 32000
IMAGE_SIZE, PATCH = 336, 14
TEXT_PROMPT = 512
TEXT_TOKENS = (5, 35)
"""Text tokens before and after the image of a random-weight shape."""


@dataclass
class Bench:
    """A model with inputs `[batch, prompt]`; `facts` describes both for the result.

    `calibration` is None where the shipped file, if there is one, is right. context: marks what `cad` takes away.
    """

    model: Any
    processor: Any
    inputs: Mapping[str, Any]
    calibration: Any
    facts: dict[str, Any] = field(default_factory=dict)
    context: Callable[[Any], Any] | None = None


def build(
    name: str, *, batch: int, prompt_tokens: int | None = None, dtype: str = "float32", device: str = "cpu"
) -> Bench:
    """Load or make the model called `name` and a batch of inputs for it.

    Args:
        name: `embedded`, `embedded-smol`, a key of `SHAPES`, a checkpoint folder or a hub name.
        batch: rows, all alike in length.
        prompt_tokens: length of the prompt, of a model that reads text only or of a shape; default: 512 of text, or a
            picture and 40 tokens around it. A checkpoint that sees gets the prompt of its processor.
        dtype: number type, see `loading.DTYPES`.
        device: a torch device; or "auto", for a model that is loaded.

    Raises:
        SightlineError: the model cannot be loaded or does not fit into memory.
    """
    if name in SHAPES:
        make = _shape if "vision" in SHAPES[name] else _text_shape
        return make(name, batch, prompt_tokens, dtype, device)
    model, processor = load_model(name, dtype=dtype, device=device)
    from ... import testbed

    sees = hasattr(processor, "image_processor")
    image = testbed.scenes("test", 1)[0].image if sees else None
    prompt = testbed.CAPTION_PROMPT if name == EMBEDDED else "Please describe this image in detail."
    if sees:
        inputs = batch_inputs(model, processor, [Sample("", prompt, image)] * batch)
    else:
        length = prompt_tokens or TEXT_PROMPT
        text = "The sea was calm that morning, and the boats went out before the sun was up. " * length
        row = processor(text, return_tensors="pt", truncation=True, max_length=length)["input_ids"]
        ids = row.expand(batch, -1).contiguous().to(model.device)
        inputs = {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)}
    facts = _facts(model, inputs) | {"weights": "checkpoint"}
    return Bench(model, processor, inputs, None, facts, None if sees else _first_half)


def _first_half(ids: Any) -> Any:
    """The first half of a text [B, n], as if it were the context of the rest; not its first token."""
    import torch

    marked = torch.zeros_like(ids, dtype=torch.bool)
    marked[:, 1 : ids.shape[1] // 2] = True
    return marked


def _text_shape(name: str, batch: int, prompt_tokens: int | None, dtype: str, device: str) -> Bench:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    text = SHAPES[name]["text"]
    model = _made(lambda: LlamaForCausalLM(LlamaConfig(**text, max_position_embeddings=8192)), name, dtype, device)
    ids = torch.randint(3, text["vocab_size"], (batch, prompt_tokens or TEXT_PROMPT)).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layers, heads = text["num_hidden_layers"], text["num_attention_heads"]
    scores = torch.rand(layers, heads, generator=torch.Generator().manual_seed(0)).tolist()
    calibration = {"model": name, "architecture": "llama", "layers": layers, "heads": heads}
    calibration["retrieval_heads"] = {"scores": scores}
    return Bench(model, None, inputs, calibration, _facts(model, inputs) | {"weights": "random"}, _first_half)


def _made(make: Callable[[], Any], name: str, dtype: str, device: str) -> Any:
    """A random-weight model in eval mode, made in place; it never ends a text by itself."""
    import torch

    place, number_type = torch_device(device), torch_dtype(dtype)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(number_type)
        with place:
            model = make().eval()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise SightlineError(f"{name} in {dtype} does not fit on {device}: use --dtype float16 or a GPU") from error
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _shape(name: str, batch: int, prompt_tokens: int | None, dtype: str, device: str) -> Bench:
    import torch

    shape = SHAPES[name]
    qwen = "depth" in shape["vision"]
    model = _made(lambda: (_qwen if qwen else _llava)(shape), name, dtype, device)
    side = IMAGE_SIZE // PATCH
    tokens = side**2
    before, after = TEXT_TOKENS
    if prompt_tokens is not None:
        after = max(after, prompt_tokens - before - tokens)
    image = torch.full((batch, tokens), IMAGE_TOKEN)
    words = torch.randint(3, IMAGE_TOKEN, (batch, before + after))
    ids = torch.cat([words[:, :before], image, words[:, before:]], dim=1).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if qwen:  # 2 x 2 patches make a token, so the picture is twice as wide for as many
        inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).long()
        inputs["image_grid_thw"] = torch.tensor([[1, 2 * side, 2 * side]] * batch, device=model.device)
        size: tuple[int, ...] = (batch * 4 * tokens, 3 * 2 * PATCH**2)
    else:
        size = (batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    inputs["pixel_values"] = torch.randn(*size, device=model.device, dtype=model.dtype)
    calibration, fired = _calibration(name, model, inputs)
    vision = shape["vision"]
    facts = _facts(model, inputs) | {
        "weights": "random",
        "vision": f"{vision.get('depth') or vision['num_hidden_layers']} layers, hidden {vision['hidden_size']}",
        "sinks": f"planted: tau {calibration['sink']['tau']:.2f} lets {100 * fired:.1f} % of the image tokens pass",
    }
    return Bench(model, None, inputs, calibration, facts)


def _llava(shape: Mapping[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape["vision"], image_size=IMAGE_SIZE, patch_size=PATCH),
        text_config=LlamaConfig(**shape["text"], max_position_embeddings=8192),
        image_token_index=IMAGE_TOKEN,
    )
    return LlavaForConditionalGeneration(config)


def _qwen(shape: Mapping[str, Any]) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=shape["text"] | {"max_position_embeddings": 8192},
        vision_config=shape["vision"] | {"patch_size": PATCH},
        image_token_id=IMAGE_TOKEN,
        video_token_id=IMAGE_TOKEN + 1,
        vision_start_token_id=1,
        vision_end_token_id=2,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _calibration(name: str, model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Calibration values for random weights, and the share of image tokens that are sinks under them.

    Layers are in proportion to the published LLaVA-1.5-7B ones, and the sink threshold lets `SINK_SHARE` of the image
    tokens pass in the layers that VAR edits.
    """
    import torch

    text = model.config.text_config
    layers = text.num_hidden_layers
    dims = [text.hidden_size // 3, 2 * text.hidden_size // 3]
    with torch.no_grad():
        pictures = {"pixel_values": len(inputs["pixel_values"]) // len(inputs["input_ids"])}  # Qwen: patches
        one = {key: value[: pictures.get(key, 1)] for key, value in inputs.items()}
        states = model(**one, output_hidden_states=True, logits_to_keep=1).hidden_states
    image = one["input_ids"][0] == IMAGE_TOKEN
    entering = torch.stack([state[0, image].float() for state in states[2:layers]])
    strength = (entering[..., dims].abs() / entering.pow(2).mean(-1, keepdim=True).sqrt()).amax(-1)
    tau = float(strength.flatten().kthvalue(max(1, int(strength.numel() * (1 - SINK_SHARE)))).values)
    calibration = {
        "schema": 1,
        "model": name,
        "architecture": model.config.model_type,
        "layers": layers,
        "heads": text.num_attention_heads,
        "sink": {"dims": dims, "tau": tau},
        "gaze": {
            "saliency_layers": [round(11 / 32 * layers)],
            "enhanced_layers": list(range(round(12 / 32 * layers), round(23 / 32 * layers))),
            "alpha": 5.0,
        },
        "visual_heads": {"layers": [1, *range(layers - round(14 / 32 * layers), layers)]},
    }
    return calibration, float((strength > tau).float().mean())


def _facts(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    text = model.config.get_text_config()
    ids = inputs["input_ids"]
    image_token = getattr(model.config, "image_token_id", None)
    return {
        "architecture": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "hidden": text.hidden_size,
        "prompt_tokens": int(ids.shape[1]),
        "image_tokens": 0 if image_token is None else int((ids[0] == image_token).sum()),
        "step": _step(model, *ids.shape),
    }


def _step(model: Any, batch: int, prompt: int) -> dict[str, int]:
    """The least that a decode step behind the prompt must read, in bytes, and compute, in floating-point operations."""
    text, embedded = model.config.get_text_config(), model.get_input_embeddings().weight
    parts = [*find_family(model).decoder(model).parameters(), *model.get_output_embeddings().parameters()]
    weights = {id(one): one for one in parts}
    if embedded is not model.get_output_embeddings().weight:
        weights.pop(id(embedded), None)  # a row for each token is nothing
    heads, layers = text.num_attention_heads, text.num_hidden_layers
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    held = 2 * batch * prompt * layers * (getattr(text, "num_key_value_heads", None) or heads) * size
    numbers = sum(one.numel() for one in weights.values())
    read = sum(one.numel() * one.element_size() for one in weights.values())
    return {
        "bytes": read + held * embedded.element_size(),
        "flops": 2 * batch * numbers + 4 * batch * prompt * layers * heads * size,
    }
