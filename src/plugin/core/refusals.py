"""What of a model, and of a call of it, edits cannot be faithful to: refused, with the mend."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from ...common.errors import CallError, LayoutError, UnsupportedModelError
from . import compat
from .attention import EAGER, IMPLEMENTATION

KNOWN = re.compile(
    r"sdpa|eager|flex_attention|flash_attention_\w+|kernels-community/\S*flash\S*"
)  # they give way to sdpa


def check_loading(model: nn.Module) -> None:
    """Refuse a model that is not in memory, or whose attention is none that sdpa computes, too."""
    if not compat.brings_weights(model) and any(p.is_meta for p in model.parameters()):
        raise UnsupportedModelError(
            "the model is on the meta device, it has no weights: load it with from_pretrained, or materialise it first"
        )
    name = compat.attention_name(model.config.get_text_config(decoder=True))  # type: ignore[operator, union-attr]
    if name not in (None, IMPLEMENTATION, EAGER) and not KNOWN.fullmatch(name):
        raise UnsupportedModelError(
            f"the text decoder runs attention as '{name}', which may be another one than sdpa computes: load the model with"
            " attn_implementation='sdpa', or call model.set_attn_implementation('sdpa')"
        )


def check_generate(given: Any, kwargs: Mapping[str, Any], default: Any) -> None:
    """Refuse the modes of `generate` that read the prompt in a way the layout cannot follow."""
    if isinstance(given, Tensor) and given.shape[0] == 0:
        raise LayoutError("the prompt batch is empty: pass at least one row")
    generation = kwargs.get("generation_config") or default
    for name, bad, mend in (
        ("use_cache", lambda value: value is False, "leave use_cache on"),
        ("prefill_chunk_size", lambda value: value is not None, "read the prompt in one piece"),
        ("assistant_model", lambda value: value is not None, "generate without an assistant"),
        ("assistant_early_exit", lambda value: value is not None, "generate without an assistant"),
        ("prompt_lookup_num_tokens", lambda value: value is not None, "generate without prompt lookup"),
        (
            "guidance_scale",
            lambda value: value not in (None, 1),
            "its second prompt would replace the first one's edits",
        ),
    ):
        value = kwargs.get(name, getattr(generation, name, None))
        if bad(value):
            shown = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            raise UnsupportedModelError(f"generate({name}={shown}) cannot be combined with attention edits: {mend}")


def check_pass(kwargs: Mapping[str, Any], text_config: Any) -> None:
    """Refuse a pass whose attention is another one by now, or which asks for attention weights."""
    name = compat.attention_name(text_config)
    if name not in (IMPLEMENTATION, EAGER):
        raise UnsupportedModelError(
            f"the model's attention was switched to '{name}' while something is attached, so that no edit would be carried"
            " out: detach, switch, and attach again"
        )
    asked = kwargs.get("output_attentions")
    if asked or (asked is None and getattr(text_config, "output_attentions", False)):
        raise UnsupportedModelError(
            "output_attentions was asked for, but the fused kernel has no weights to give while something is attached: use"
            " attach(..., trace={'maps': True}) for the attention on the image, or detach"
        )


def refusing(call: str) -> Callable[..., NoReturn]:
    """Stands in for a call that would run the decoder with another attention."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        mend = (
            "detach first, and attach again afterwards" if call.startswith("set_") else "use generate, or detach first"
        )
        raise CallError(f"{call} would run the model without the edits that are attached to it: {mend}")

    return refuse


def check_carried(plan: Mapping[int, Any], visited: set[int]) -> None:
    """Raises UnsupportedModelError where layers with edits ran another attention, or none."""
    missed = sorted(plan.keys() - visited)
    if missed:
        raise UnsupportedModelError(
            f"the edits of layer {missed[0]} were not carried out in this pass, because the model ran another attention"
            " there, or left the layer out: attach to the model as from_pretrained loads it"
        )
