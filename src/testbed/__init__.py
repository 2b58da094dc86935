"""A testbed: a small LLaVA trained by this project on generated scenes, with exact ground truth. Not a real LVLM.

It names objects that a kitchen or a street usually has and this picture lacks, by itself, for the reason real models
do: its language prior is strong and its look at the picture is weak. Everything here is light to import; torch and
transformers load with the model.
"""

from __future__ import annotations

from .model import load, prompt
from .scenes import SYNONYMS, Scene, SceneObject, cooccurrence, frequency, scene, scenes
from .sprites import CATEGORIES
from .text import CAPTION_PROMPT, QUESTION, question

__all__ = [
    "CAPTION_PROMPT",
    "CATEGORIES",
    "QUESTION",
    "SYNONYMS",
    "Scene",
    "SceneObject",
    "cooccurrence",
    "frequency",
    "load",
    "prompt",
    "question",
    "scene",
    "scenes",
]
