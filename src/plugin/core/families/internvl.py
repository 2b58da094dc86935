"""InternVL in its transformers form (`OpenGVLab/InternVL*-hf`)."""

from __future__ import annotations

from .base import Family, register_family

register_family(Family(model_types=("internvl",), image_token_fields=("image_token_id",)))
