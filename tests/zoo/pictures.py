"""A prompt with one picture for any image-text model, from what its forward and its configuration ask for.

The number of placeholders is what the model itself makes of the picture (`get_image_features`), counted; where that cannot
be asked, the model's own complaint tells it (`counted`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IMAGE = 250
Inputs = dict[str, Any]


def arguments(model: Any) -> list[str]:
    """What a model's forward takes."""
    return list(inspect.signature(model.forward).parameters)


def prompt(model: Any, model_type: str) -> Inputs:
    """Some text, the placeholders of one picture, some text; and the picture's tensors."""
    given = BUILDERS.get(model_type, draw)(model)
    names = arguments(model)
    text = torch.randint(10, 200, (12,), generator=torch.Generator().manual_seed(5)).tolist()
    lead = [] if model_type in LEADING else [1, *text[:4]]

    def inputs(count: int) -> Inputs:
        ids = torch.tensor([[*lead, *[IMAGE] * count, *text[4:]]])
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}
        marks = (ids == IMAGE).long()
        for name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
            if name in names:
                made[name] = marks
        if "token_type_ids" in names:
            made["token_type_ids"] = torch.zeros_like(ids) if model_type == "paligemma" else marks
        if "cross_attention_mask" in given:
            made["cross_attention_mask"] = given["cross_attention_mask"].expand(1, ids.shape[1], -1, -1)
        if "image_embeds_position_mask" in names:
            made["image_embeds_position_mask"] = marks
        return made

    return inputs(counted(model, given, inputs))


#: types whose prompt begins with the picture
LEADING = ("blip-2", "instructblip", "paligemma", "kosmos-2", "kosmos-2.5")


def vision(model: Any) -> Any:
    config = model.config
    found = (getattr(config, name, None) for name in ("vision_config", "vq_config"))
    return next((one for one in found if one is not None), config)


def first(config: Any, *names: str, default: int) -> int:
    """The first of these fields that is set, of its first dimension."""
    value = next((getattr(config, name) for name in names if getattr(config, name, None)), default)
    return value if isinstance(value, int) else value[0]


def draw(model: Any) -> Inputs:
    """The tensors of one picture, by the arguments of the model's forward."""
    rng = torch.Generator().manual_seed(4)
    names, config = arguments(model), vision(model)
    patch = first(config, "patch_size", default=4)
    channels = first(config, "in_channels", "in_chans", "num_channels", default=3)
    flat = channels * patch * patch
    if "image_grid_thw" in names:
        merge = first(config, "spatial_merge_size", "merge_kernel_size", "merge_size", default=2)
        time = first(config, "temporal_patch_size", "patch_temporal", default=1)
        grid = torch.tensor([[1, 2 * merge, 2 * merge]])
        made = {"pixel_values": torch.randn(int(grid.prod()), flat * time, generator=rng), "image_grid_thw": grid}
        if "image_merge_sizes" in names:
            made["image_merge_sizes"] = torch.tensor([2])
        return made
    if "image_grid_hw" in names:
        return {"pixel_values": torch.randn(16, flat, generator=rng), "image_grid_hw": torch.tensor([[4, 4]])}
    if "spatial_shapes" in names:
        mask = torch.ones(1, 16, dtype=torch.long)
        pixels = torch.randn(1, 16, flat, generator=rng)
        return {"pixel_values": pixels, "spatial_shapes": torch.tensor([[4, 4]]), "pixel_attention_mask": mask}
    if "target_sizes" in names:
        pixels = torch.randn(1, channels, patch, 64 * patch, generator=rng)
        return {"pixel_values": pixels, "target_sizes": torch.tensor([[8, 8]], dtype=torch.int32)}
    if "image_position_ids" in names:
        pool = first(config, "pooling_kernel_size", default=3)
        side = 2 * pool
        places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).view(1, -1, 2)
        return {"pixel_values": torch.rand(1, side * side, flat, generator=rng), "image_position_ids": places}
    side = first(config, "image_size", "resolution", default=4 * patch)
    pixels = torch.randn(1, channels, side, side, generator=rng)
    if "image_sizes" in names and hasattr(model.config, "image_grid_pinpoints"):
        high, wide = model.config.image_grid_pinpoints[0]
        tiles = 1 + (high // side) * (wide // side)
        return {
            "pixel_values": torch.randn(1, tiles, channels, side, side, generator=rng),
            "image_sizes": torch.tensor([[high, wide]]),
        }
    if "pixel_attention_mask" in names:
        return {"pixel_values": pixels[None], "pixel_attention_mask": torch.ones(1, 1, side, side, dtype=torch.long)}
    if "image_sizes" in names and "vision_feature_layer" not in names:
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]])}
    if "high_res_pixel_values" in names:
        large = first(model.config.high_res_vision_config, "image_size", default=side)
        return {"pixel_values": pixels, "high_res_pixel_values": torch.randn(1, channels, large, large, generator=rng)}
    return {"pixel_values": pixels}


def counted(model: Any, given: Inputs, inputs: Callable[[int], Inputs]) -> int:
    """How many placeholders the picture needs."""
    try:
        with torch.no_grad():
            out = model.get_image_features(**given)
        return _rows(model, out)
    except (AttributeError, TypeError, ValueError):
        pass
    complaint = _complaint(model, inputs(1))
    if complaint is None:
        return 1
    said = re.search(r"tokens:? (\d+).*features:? (\d+)", complaint)
    if said is None:
        raise ValueError(complaint)
    features, width = int(said[2]), model.config.get_text_config(decoder=True).hidden_size
    return next((n for n in (features, features // width) if _complaint(model, inputs(n)) is None), features)


def _complaint(model: Any, inputs: Inputs) -> str | None:
    """What a model says of a wrong number of placeholders; None of the right one."""
    try:
        with torch.no_grad():
            model(**inputs)
    except (ValueError, RuntimeError, IndexError) as error:
        return str(error)
    return None


def _rows(model: Any, out: Any) -> int:
    """Features of the text decoder's width in what `get_image_features` returned."""
    given = (getattr(out, name, None) for name in ("pooler_output", "deepstack_features"))
    features = next((one for one in given if one is not None), out)
    if isinstance(features, (list, tuple)) and features and isinstance(features[0], (list, tuple)):
        features = features[0]
    if isinstance(features, (list, tuple)):  # one set of several, and maybe the layer that it goes to
        features = [part for one in features for part in (one if isinstance(one, (list, tuple)) else [one])]
    parts = features if isinstance(features, list) else [features]
    width = model.config.get_text_config(decoder=True).hidden_size
    return sum(part.numel() for part in parts if isinstance(part, Tensor)) // width


def _molmo(model: Any) -> Inputs:
    """One overview crop of 4 x 4 patches, pooled 2 x 2, and no further crop."""
    size = 3 * first(vision(model), "patch_size", default=14) ** 2
    pooled = torch.arange(16).view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
    pixels = torch.randn(1, 16, size, generator=torch.Generator().manual_seed(4))
    grids, crops = torch.tensor([[2, 2, 0, 0]]), torch.tensor([1])
    return {"pixel_values": pixels, "image_token_pooling": pooled, "image_grids": grids, "image_num_crops": crops}


def _kimi(model: Any) -> Inputs:
    """Four by four patches, each a picture of its own for the first convolution."""
    patch = first(vision(model), "patch_size", default=14)
    pixels = torch.randn(16, 3, patch, patch, generator=torch.Generator().manual_seed(4))
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}


def _granular(model: Any) -> Inputs:
    """One tile, and which tiles there are."""
    return {**draw(model), "pixel_attention_mask": torch.ones(1, 1).bool()}


def _inkling2(model: Any) -> Inputs:
    """Four squares of merged patches, colours last; the grid counts squares."""
    side = vision(model).patch_size * vision(model).spatial_merge_size
    pixels = torch.randn(4, side, side, 3, generator=torch.Generator().manual_seed(4))
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2, 2]])}


def _inkling(model: Any) -> Inputs:
    """Four patches of two frames, colours last."""
    config, rng = vision(model), torch.Generator().manual_seed(4)
    return {
        "pixel_values": torch.randn(
            4, config.temporal_patch_size, config.patch_size, config.patch_size, 3, generator=rng
        )
    }


def _fuyu(model: Any) -> Inputs:
    size = model.config.num_channels * model.config.patch_size**2
    return {"image_patches": torch.randn(1, 4, size, generator=torch.Generator().manual_seed(4)) / 8}


def _merged(model: Any) -> Inputs:
    """Two by two patches that are merged before the model."""
    norm = next(one for name, one in model.named_modules() if name.endswith("patch_ln1"))
    size = norm.normalized_shape[0]
    places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="xy"), -1).view(1, -1, 2)
    pixels = torch.rand(1, 4, size, generator=torch.Generator().manual_seed(4))
    return {"pixel_values": pixels, "image_position_ids": places}


def _asked(model: Any) -> Inputs:
    """A picture, and a question to the Q-Former."""
    asked = torch.arange(20, 26)[None]
    return {**draw(model), "qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked)}


def _tiled(model: Any) -> Inputs:
    """One tile of those that there is room for; the sequence holds a mark."""
    side, tiles = vision(model).image_size, vision(model).max_num_tiles
    mask = torch.zeros(1, 1, tiles, dtype=torch.long)
    mask[..., 0] = 1
    pixels = (
        torch.randn(1, 1, tiles, 3, side, side, generator=torch.Generator().manual_seed(4))
        * mask[..., None, None, None]
    )
    ratio = torch.ones(1, 1, dtype=torch.long)
    seen = mask[:, None]  # by every token
    return {"pixel_values": pixels, "aspect_ratio_ids": ratio, "aspect_ratio_mask": mask, "cross_attention_mask": seen}


BUILDERS: dict[str, Callable[[Any], Inputs]] = {
    "fuyu": _fuyu,
    "gemma4_unified": _merged,
    "granite_docling": _granular,
    "inkling2": _inkling2,
    "inkling2_loop": _inkling2,
    "inkling_mm_model": _inkling,
    "instructblip": _asked,
    "kimi_k25": _kimi,
    "paddleocr_vl": _kimi,
    "mllama": _tiled,
    "molmo2": _molmo,
}
