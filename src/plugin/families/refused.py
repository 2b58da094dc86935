"""Families whose attention cannot be edited faithfully yet, and why."""

from __future__ import annotations

from .base import refuse

refuse("gpt_oss", reason="its heads have learned attention sinks, which sdpa does not compute")
refuse(
    "instructblipvideo",
    reason="its frames are put through the Q-Former one by one, for which it has no adapter; use instructblip",
)
refuse(
    "mllama",
    reason="its image is read by cross-attention layers, which have no image tokens to edit; use a LLaVA-style model",
)
