"""Sightline: training-free, inference-time edits that make vision-language models hallucinate less.

`attach` puts a configuration to work on a Hugging Face model for a `with` block, `wrap` keeps it on. Names are imported
on first use, so that `import sightline` and the shell's `--help` stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoders.score import Score, score
    from .plugin.calibration import Calibration
    from .plugin.config import Config
    from .plugin.emphasis import unmark
    from .plugin.errors import CalibrationError, ConfigError, LayoutError, SightlineError, UnsupportedModelError
    from .plugin.registry import methods
    from .plugin.wrapper import Plug, attach, unwrap, wrap
    from .preprocessing.carve import Carving, carve, carve_all, carved_inputs

__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "CalibrationError",
    "Carving",
    "Config",
    "ConfigError",
    "LayoutError",
    "Plug",
    "Score",
    "SightlineError",
    "UnsupportedModelError",
    "attach",
    "carve",
    "carve_all",
    "carved_inputs",
    "methods",
    "score",
    "unmark",
    "unwrap",
    "wrap",
]

_HOMES = {
    **dict.fromkeys(("Plug", "attach", "unwrap", "wrap"), "plugin.wrapper"),
    **dict.fromkeys((n for n in __all__ if n.endswith("Error")), "plugin.errors"),
    "Calibration": "plugin.calibration",
    "Config": "plugin.config",
    "methods": "plugin.registry",
    "unmark": "plugin.emphasis",
    **dict.fromkeys(("Score", "score"), "decoders.score"),
    **dict.fromkeys(("Carving", "carve", "carve_all", "carved_inputs"), "preprocessing.carve"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
