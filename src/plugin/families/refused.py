"""Families whose attention cannot be edited faithfully yet, and why."""

from __future__ import annotations

from .base import refuse

refuse("gpt_oss", reason="its heads have learned attention sinks, which sdpa does not compute")
refuse(
    "instructblip",
    "instructblipvideo",
    "blip-2",
    reason="its image goes through a Q-Former; what the methods mean there is not settled, use a LLaVA-style model",
)
refuse(
    "mllama",
    reason="its image is read by cross-attention layers, which have no image tokens to edit; use a LLaVA-style model",
)
