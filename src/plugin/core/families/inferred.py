"""What a model tells of itself, where its family has no declaration: decoder, blocks, attention, norm, picture tokens.

Nothing here is taken on trust: `core/check.py` runs a few tokens through an attached model and compares.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from torch import nn

from ....common.errors import UnsupportedModelError

BLOCKS = ("layers", "h", "blocks", "block", "layer")  # where decoders keep their blocks
INSIDE = ("language_model", "text_model", "decoder", "model", "transformer")  # where a decoder holds the one it wraps
NORMS = re.compile(
    r"(final_?)?(layer_?)?norm(_f|_final)?|ln_f|final_norm|norm_f|output_norm|embedding_norm", re.IGNORECASE
)
INTERFACE = "ALL_ATTENTION_FUNCTIONS"  # what an attention of transformers asks for the function that computes it
IMAGES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")  # fields; sound is no picture
ORDINARY = frozenset(  # arguments of a forward pass that carry no picture
    [
        "self",
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "cache",
        "cache_params",
        "inputs_embeds",
        "labels",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "cache_position",
        "logits_to_keep",
        "num_logits_to_keep",
        "token_type_ids",
        "mm_token_type_ids",
        "moe_mm_token_type_ids",
        "rope_deltas",
        "kwargs",
        "args",
        "head_mask",
        "cross_attention_mask",
        "per_layer_inputs",
        "use_audio_in_video",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "mm_encoder_outputs",
    ]
)


def text_decoder(model: nn.Module) -> nn.Module:
    """The module that holds the blocks of the text decoder. Raises UnsupportedModelError where none is found."""
    found: Any = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    seen: list[nn.Module] = []
    while found not in seen:
        if _blocks(found) is not None:
            return found
        seen.append(found)
        inner = (getattr(found, name, None) for name in INSIDE)
        found = next((one for one in inner if isinstance(one, nn.Module)), found)
    number = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)  # type: ignore[union-attr, operator]
    lists = [one for one in model.modules() if (_blocks(one) is not None) and len(blocks(one)) == number]
    if len(lists) == 1:  # an encoder that is used as a decoder (BERT)
        return lists[0]
    raise UnsupportedModelError(
        f"'{type(model).__name__}' has no list of decoder blocks that could be found ({', '.join(BLOCKS)} of its decoder):"
        " declare its family (CONTRIBUTING.md, Add a model family)"
    )


def blocks(decoder: nn.Module) -> list[nn.Module]:
    """The blocks of a text decoder, in order."""
    return list(_blocks(decoder) or ())


def _blocks(decoder: nn.Module) -> nn.ModuleList | None:
    for name in BLOCKS:
        held = getattr(decoder, name, None)
        if isinstance(held, nn.ModuleList) and len(held):
            return held
    return None


def self_attention(block: nn.Module) -> nn.Module | None:
    """The softmax attention of a block that transformers' interface computes; None where the block has none.

    Raises UnsupportedModelError where there are several and none of them is called self-attention.
    """
    found = [
        (name, one)
        for name, one in block.named_modules()
        if asks_interface(type(one)) and hasattr(one, "layer_idx")  # type: ignore[arg-type]
    ]
    if len(found) > 1:
        named = [pair for pair in found if re.search(r"self_?att|^attn$|^attention$", pair[0])]
        found = named if len(named) == 1 else found
    if len(found) > 1:
        raise UnsupportedModelError(
            f"a block ({type(block).__name__}) has several attentions ({', '.join(name for name, _ in found)}), and which of"
            " them is the sequence's own cannot be told: declare its family (CONTRIBUTING.md, Add a model family)"
        )
    return found[0][1] if found else None


@functools.cache
def asks_interface(kind: type[nn.Module]) -> bool:
    """Whether a module's forward asks transformers' attention interface for its function."""
    forward = inspect.unwrap(kind.forward)
    code = getattr(forward, "__code__", None)
    return code is not None and INTERFACE in code.co_names


def final_norm(decoder: nn.Module) -> nn.Module | None:
    """The norm behind the last block; None where it cannot be told."""
    named = [one for name, one in decoder.named_children() if NORMS.fullmatch(name)]
    return named[-1] if named else None


def placeholder_fields(config: Any) -> tuple[str, ...]:
    """The fields of a configuration that hold the ids of picture and video placeholders."""
    return tuple(name for name in IMAGES if isinstance(getattr(config, name, None), int))


def vision_arguments(model: nn.Module) -> tuple[str, ...]:
    """The forward arguments that carry pictures, videos or sound, none of which belongs to another pass."""
    names = inspect.signature(model.forward).parameters
    return tuple(name for name in names if name not in ORDINARY)
