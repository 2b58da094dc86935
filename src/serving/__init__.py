"""Serving: configurations folded into a checkpoint for any engine, or carried by vLLM (`sightline export`, `serve`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .launch import engine

__all__ = ["engine"]


def __getattr__(name: str) -> Any:
    if name != "engine":
        raise AttributeError(f"module 'sightline.serving' has no attribute '{name}'")
    from .launch import engine

    return engine
