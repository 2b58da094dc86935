"""`--data testbed`: the embedded model's test scenes as benchmark images."""

from __future__ import annotations

from typing import Any

from ..runner.suite import Source

SCENES = 150
"""Scenes without a --limit."""


def scenes(source: Source) -> list[Any]:
    """Test scenes, which no setting has seen."""
    from ... import testbed

    return list(testbed.scenes("test", source.limit or SCENES, seed=source.seed))


def scene_name(scene: Any) -> str:
    return f"{scene.split}-{scene.seed}-{scene.index}"
