"""LLaVA and its heirs: image features replace `<image>` placeholders, rows of tiles included."""

from __future__ import annotations

from .base import Family, register_family

register_family(
    Family(
        model_types=("llava",),
        image_token_fields=("image_token_id",),
    )
)
register_family(
    Family(
        model_types=("llava_next", "llava_onevision"),
        image_token_fields=("image_token_id", "video_token_id"),
        vision_inputs=("pixel_values", "image_sizes", "pixel_values_videos", "image_sizes_videos", "batch_num_images"),
    )
)
