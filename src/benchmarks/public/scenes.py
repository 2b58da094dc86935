"""`--data testbed`: the embedded model's test scenes as benchmark images."""

from __future__ import annotations

from typing import Any

from ..benchmark import DataSource
from .chair import Vocabulary

SCENES = 150
"""Scenes without a --limit."""
CAPTION_TOKENS = 60
SPLIT = "test"
"""The split that no setting has seen; settings are chosen on "calibration" (`sightline tune`)."""


def scenes(source: DataSource) -> list[Any]:
    """Test scenes, which no setting has seen."""
    from ... import testbed

    return list(testbed.scenes(SPLIT, source.limit or SCENES, seed=source.seed))


def scene_name(scene: Any) -> str:
    return f"{scene.split}-{scene.seed}-{scene.index}"


def scene_vocabulary() -> Vocabulary:
    """The object names of the scenes, with their synonyms and plurals."""
    from ... import testbed

    return Vocabulary(testbed.CATEGORIES, testbed.SYNONYMS)
