"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: images of any size, three-part rotary positions."""

from __future__ import annotations

from .base import Family, register_family

register_family(
    Family(
        model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        image_token_fields=("image_token_id", "video_token_id"),
        vision_inputs=(
            "pixel_values",
            "pixel_values_videos",
            "image_grid_thw",
            "video_grid_thw",
            "second_per_grid_ts",
        ),
    )
)
register_family(
    Family(
        model_types=("paddleocr_vl",),
        image_token_fields=("image_token_id",),
        vision_inputs=("pixel_values", "image_grid_thw"),
        no_forks="its layers lay out rotary positions in a way that a copy's rows do not follow yet",
    )
)
