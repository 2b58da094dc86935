"""Mllama (Llama 3.2 Vision): some layers read the image by cross-attention, the sequence holds a mark in its place.

The mark is what the layout calls the image: it tells where the image stands, and a prompt without its image is one
without the mark, for which the model leaves the cross-attention layers out. Methods that weigh image tokens have none to
weigh; the patches are the only keys of the cross-attention layers, where "more attention on the image" says nothing. Those
layers are left alone: their heads have no output without an image that VHR could compare, and no published method asks
for them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Family, register_family


class Mllama(Family):
    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.self_attn if hasattr(layer, "self_attn") else layer.cross_attn  # type: ignore[return-value]

    def across(self, config: Any) -> frozenset[int]:
        return frozenset(config.get_text_config().cross_attention_layers)


register_family(
    Mllama(
        model_types=("mllama", "mllama_text_model"),
        image_token_fields=("image_token_id",),
        vision_inputs=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_states"),
    )
)
