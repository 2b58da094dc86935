"""Families whose attention cannot be edited faithfully yet, and why."""

from __future__ import annotations

from .base import refuse

refuse(
    "instructblipvideo",
    reason="its frames are put through the Q-Former one by one, for which it has no adapter; use instructblip",
)
