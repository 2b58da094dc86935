"""Idefics3 and SmolVLM: an image is a grid of tiles with row and column marks between them."""

from __future__ import annotations

from .base import Family, register_family

register_family(
    Family(
        model_types=("idefics3", "smolvlm"),
        image_token_fields=("image_token_id",),
        vision_inputs=("pixel_values", "pixel_attention_mask", "image_hidden_states"),
        pictures_by_row=True,
    )
)
