"""BLIP-2 and InstructBLIP: a Q-Former condenses a picture to a few tokens, which replace placeholders in the prompt.

These are the image tokens. The model embeds the prompt and hands it to a language model inside (OPT, Vicuna), whose own
`generate` makes the answer; Flan-T5 inside is refused. InstructBLIP's Q-Former reads the question, too, but what it
makes of it is gone with its tokens: reading a prompt without its image is reading it without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .base import Family, register_family

OUTER = ("mm_encoder_outputs", "labels")  # arguments that the language model must not get, beside the pictures


class QFormer(Family):
    def generator(self, model: nn.Module) -> nn.Module:
        return model.language_model  # type: ignore[return-value]

    def decoder(self, model: nn.Module) -> nn.Module:
        return model.language_model.get_decoder()  # type: ignore[union-attr, operator]

    def norm(self, model: nn.Module) -> nn.Module:
        decoder = self.decoder(model)
        return decoder.norm if hasattr(decoder, "norm") else decoder.final_layer_norm  # type: ignore[return-value]

    def handed(self, model: nn.Module, given: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
        inner = {name: value for name, value in given.items() if name not in (*self.vision_inputs, *OUTER)}
        pictures = {name: given[name] for name in self.vision_inputs if given.get(name) is not None}
        redrawn = any(value is not told.get(name) for name, value in pictures.items())
        ids = inner.pop("input_ids", None)
        if inner.get("inputs_embeds") is not None and not redrawn:
            return inner
        image = told["input_ids"] == model.config.image_token_id  # type: ignore[union-attr]
        features = told["inputs_embeds"][image]
        if redrawn:
            features = model.get_image_features(**pictures, return_dict=True).pooler_output.flatten(0, 1)  # type: ignore[operator]
            copies = int(image.sum()) // len(features)  # beams and several answers per prompt
            rows = features.split(image.sum(-1)[::copies].tolist())
            features = torch.cat([row for row in rows for _ in range(copies)])
        embeds = model.get_input_embeddings()(ids)  # type: ignore[operator]
        image = (ids == model.config.image_token_id)[..., None]  # type: ignore[union-attr]
        return {**inner, "inputs_embeds": embeds.masked_scatter(image, features.to(embeds))}


register_family(
    QFormer(
        model_types=("blip-2",),
        image_token_fields=("image_token_id",),
        vision_inputs=("pixel_values", "interpolate_pos_encoding"),
    )
)
register_family(
    QFormer(
        model_types=("instructblip",),
        image_token_fields=("image_token_id",),
        vision_inputs=("pixel_values", "interpolate_pos_encoding", "qformer_input_ids", "qformer_attention_mask"),
    )
)
