"""Builds a tiny random model of any transformers model type: its default configuration, every size made small.

The default configuration says what a type is made of: which layers take turns, how many query heads share a key head,
which experts, towers and windows there are. What follows keeps those patterns and shrinks the numbers by their names,
so that one table of name patterns serves hundreds of types; `overrides.py` says what the names do not.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import torch
import transformers as tf

from tests.helpers.tiny import randomise
from tests.zoo.overrides import CONFIGS

VOCAB = 256
PAD, BOS, EOS = 0, 1, 2
TEXT = (10, 200)  # ids of ordinary text tokens; the special ones lie above
WIDTH, HEADS, LAYERS, HEAD = 64, 8, 4, 16
SIDE = 16  # of a picture
TOWER = ("vision", "audio", "speech", "vq", "qformer", "sam", "image", "codec", "decoder_config", "encoder", "aligner")
IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}

#: name of a field (whole match) -> its small value; the first that fits decides. None keeps the value.
RULES: list[tuple[str, Any]] = [
    (r"type_vocab_size|additional_vocab_size|num_labels|in_channels|num_channels|audio_channels|out_channels", None),
    (r"(.*_)?vocab_size(_.*)?", VOCAB),
    (
        r"num_(hidden_)?layers|n_layers?|depth|(de|en)coder_layers|num_(de|en)coder_layers|layers|num_blocks|resampler_depth",
        "layers",
    ),
    (r"conf_num_hidden_layers|audio_num_hidden_layers|aligner_num_add_layers|num_global_layers|aux_num_.*layers", 1),
    (
        r"num_hidden_groups|num_nextn_predict_layers|num_mtp_layers|first_k_dense_replace|num_dense_layers|num_kv_shared_layers",
        "few",
    ),
    (
        r"(.*_)?(num_key_value_heads|num_global_key_value_heads|n_head_kv|num_kv_heads|kv_n_heads|multi_query_group_num)",
        "kv",
    ),
    (r"linear_num_key_heads|linear_num_heads|index_n_heads|indexer_n_heads|.*ngram|n_mamba_heads", 2),
    (r"(mamba_)?n_groups|mamba_n_groups|num_groups|n_group|topk_group|num_expert_group|moe_topk_group", 1),
    (r"linear_num_value_heads", 4),
    (r"mamba_(n|num)_heads", 8),
    (
        r"num_attention_heads|n_heads?|num_heads|(.*_)?attention_heads|swa_num_attention_heads|heads|resampler_n_heads|resampler_heads|num_mem_heads",
        "heads",
    ),
    (r"conf_num_attention_heads", 4),
    (r"qk_head_dim", 2 * HEAD),
    (r"mamba_d_head|mamba_head_dim", HEAD),
    (
        r"(.*_)?head_dim|kv_channels|d_kv|d_head|attention_head_dim|global_head_dim|v_head_dim|resampler_dim_head|key_dim|query_pre_attn_scalar",
        HEAD,
    ),
    (r"rotary_dim", HEAD // 2),
    (r"(.*_)?lora_rank|o_rank|.*lowrank", 16),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts|num_selected_experts|moe_num_active.*", "two"),
    (r".*shared_experts?", "one"),
    (r"(.*_)?(num|n)(_local|_routed|_free)?_experts?", "experts"),
    (r"(mamba_)?d_state|state_size|ssm_state_size|d_conv|mamba_dt_rank|time_step_rank", 8),
    (r"mamba_chunk_size|chunk_size", 8),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_source_positions|max_target_positions|seq_length|max_sequence_length|model_max_length|position_embedding_size",
        "positions",
    ),
    (r"original_max_position_embeddings|floor_scale", "short"),
    (r"(.*_)?sliding_window(_size)?|attention_chunk_size|local_attention|window_size|block_length", "window"),
]
WIDE = re.compile(
    r".*(hidden|intermediate|ffn|embed|embd|inner|mlp|dim|width|d_model|d_ff|channels|size|proj|latent).*"
)
KEEP = re.compile(
    r".*(_token|_id|_ids|_index|theta|eps|factor|topk|kernel|stride|patch|image_size|merge|conv|budget|scal|tokens|steps|"
    r"sampling|chunk|batch|per_layer_interval|period|offset|version|seed|freq|hop|mel_bins).*"
)


def tiny_config(model_type: str) -> Any:
    """The default configuration of a model type with every size made small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = tf.CONFIG_MAPPING[model_type]
        # What the defaults of a type lack to be valid stands under "".
        given = CONFIGS.get(model_type, {}).get("", {})
        small = _shrunk(kind(**given).to_dict(), model_type, tower=False)
        return kind.from_dict(small)


def _shrunk(fields: dict[str, Any], path: str, tower: bool) -> dict[str, Any]:
    """The fields of one configuration, made small, those of its parts included."""
    own = str(fields.get("model_type") or "")
    layers = _layer_count(fields)
    chosen = _chosen(fields, layers, 2 if tower else LAYERS)
    heads = next((fields[n] for n in ("num_attention_heads", "n_head", "n_heads", "num_heads") if fields.get(n)), None)
    facts = {"layers": layers, "chosen": chosen, "heads": heads, "tower": tower, "next": 249}
    out = {}
    for name, value in fields.items():
        if name == "per_layer_config":
            own_layers = {int(index): dict(values) for index, values in value.items()}
            out[name] = {
                str(new): {
                    key: _small(key, one, {**facts, "heads": own_layers[old].get("num_attention_heads", heads)})
                    for key, one in own_layers[old].items()
                }
                for new, old in enumerate(chosen)
                if old in own_layers
            }
        elif isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            inside = tower or any(word in name for word in TOWER)
            out[name] = _shrunk(value, f"{path}.{name}", inside)
        elif name not in ("transformers_version", "id2label", "label2id"):
            out[name] = _small(name, value, facts)
    _rope(out)
    more = CONFIGS.get(own, {})
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = {**out[key], **value}
        elif key:
            out[key] = value
    return out


def _layer_count(fields: dict[str, Any]) -> int | None:
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "decoder_layers", "encoder_layers")
    return next((fields[n] for n in names if isinstance(fields.get(n), int)), None)


def _chosen(fields: dict[str, Any], layers: int | None, most: int) -> list[int]:
    """Which layers stay: one of each kind that the lists by layer tell apart, then the first ones."""
    if layers is None or layers <= most:
        return list(range(layers or 0))
    lists = [v for v in fields.values() if isinstance(v, list | tuple) and len(v) == layers]
    apart = {int(index): values for index, values in (fields.get("per_layer_config") or {}).items()}
    kinds: dict[Any, int] = {}
    for index in range(layers):
        kinds.setdefault(repr([*(one[index] for one in lists), apart.get(index)]), index)
    first = sorted(kinds.values())[:6]
    more = [i for i in range(layers) if i not in first][: max(0, most - len(first))]
    return sorted([*first, *more])


def _small(name: str, value: Any, facts: dict[str, Any]) -> Any:
    """The small value of one field."""
    layers, chosen = facts["layers"], facts["chosen"]
    if name == "image_grid_pinpoints":  # in tiles of the tower's size
        tile = min(min(pair) for pair in value)
        return [[SIDE * side // tile for side in pair] for pair in value]
    if isinstance(value, list | tuple) and value:
        if facts["tower"] and name in ("image_size", "patch_size"):
            return [_small(name, one, facts) for one in value]
        return _small_list(name, list(value), layers, chosen)
    if value is None and re.fullmatch(r"(image|video)_token_(id|index)", name):
        return _token(name, facts)
    if isinstance(value, bool) or not isinstance(value, int) or value == 0:
        return value
    if re.fullmatch(r".*(token_id|token_index|_token|_id)", name) and not name.startswith("num"):
        return _token(name, facts)
    if facts["tower"] and name in ("image_size", "patch_size", "resolution"):
        return min(value, {"image_size": SIDE, "patch_size": 4, "resolution": 32}[name])
    for pattern, small in RULES:
        if re.fullmatch(pattern, name):
            return value if small is None else _value(small, value, facts)
    if KEEP.fullmatch(name):
        return value
    return min(value, WIDTH) if WIDE.fullmatch(name) else value


def _token(name: str, facts: dict[str, Any]) -> int:
    """An id of its own for each special token."""
    if name in IDS:
        return IDS[name]
    for word, fixed in (("image", 250), ("video", 251), ("audio", 252)):
        if re.fullmatch(rf"{word}_token(_id|_index)|{word}_id|{word}_pad_token_id", name):
            return fixed
    facts["next"] -= 1
    return int(facts["next"])


def _value(small: Any, value: int, facts: dict[str, Any]) -> int:
    heads = 4 if facts["tower"] else HEADS
    if small == "kv":
        if value in (1, facts["heads"]):
            return value if value == 1 else heads
        return 2
    named = {
        "layers": len(facts["chosen"]) if value == facts["layers"] else min(value, 2),
        "few": min(value, 1),
        "heads": heads,
        "one": min(value, 1),
        "two": min(value, 2),
        "experts": 4 if value else 0,
        "positions": 512,
        "short": 128,
        "window": 8 if value > 1 else value,
    }
    return named[small] if isinstance(small, str) else int(small)


def _small_list(name: str, value: list[Any], layers: int | None, chosen: list[int]) -> list[Any]:
    if layers and len(value) == layers and not all(isinstance(v, int) and v == i for i, v in enumerate(value)):
        return [value[i] for i in chosen]
    indices = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if indices and layers and re.fullmatch(r".*(layer|index|indices|idxs).*", name) and max(value) <= layers:
        negative = [v for v in value if v < 0]
        kept = sorted({min(len(chosen) - 1, v * len(chosen) // layers) for v in value if v >= 0})
        return [max(v, -len(chosen)) for v in negative] + kept
    return value


def _rope(fields: dict[str, Any]) -> None:
    """Sections of a rotary embedding that fit the small heads."""
    for holder in (fields, fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}):
        section = holder.get("mrope_section") if isinstance(holder, dict) else None
        if not section:
            continue
        size = fields.get("head_dim") or fields.get("hidden_size", WIDTH) // (
            fields.get("num_attention_heads") or HEADS
        )
        factor = holder.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0
        half = int(size * factor) // 2
        parts = [max(1, math.floor(half * part / sum(section))) for part in section]
        parts[0] += half - sum(parts)
        holder["mrope_section"] = parts


def build(config: Any, auto: Any, kernel: str | None = None) -> Any:
    """A seeded random model of a configuration, in evaluation mode, its attention far from uniform and computed by `kernel`."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = auto.from_config(config, **({} if kernel is None else {"attn_implementation": kernel}))
        randomise(model)
    model.float().eval().requires_grad_(False)
    model.generation_config = tf.GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None, use_cache=True)
    return model
