"""PaliGemma and Gemma 3: image tokens see each other both ways; PaliGemma's whole prompt does."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Family, register_family


class PaliGemma(Family):
    def read_text(self, model: nn.Module, ids: Tensor, mask: Tensor) -> None:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        both_ways = mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        self.decoder(model)(input_ids=ids, attention_mask=both_ways, position_ids=positions + 1, use_cache=False)


register_family(
    PaliGemma(
        model_types=("paligemma",),
        image_token_fields=("image_token_id",),
        vision_inputs=("pixel_values",),
        bidirectional_prompt=True,
    )
)
register_family(
    Family(model_types=("gemma3",), image_token_fields=("image_token_id",), vision_inputs=("pixel_values",))
)
