"""Sightline: training-free, inference-time edits that make vision-language models hallucinate less.

`attach` puts a configuration to work on a Hugging Face model for a `with` block, `wrap` keeps it on. Names are imported
on first use, so that `import sightline` and the shell's `--help` stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common.errors import CalibrationError, ConfigError, LayoutError, SightlineError, UnsupportedModelError
    from .plugin.attach import Plug, attach, unwrap, wrap
    from .plugin.calibration.files import Calibration
    from .plugin.config import Config, methods
    from .plugin.methods.emphasis import unmark
    from .plugin.reading.score import Score, score
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
    **dict.fromkeys(("Plug", "attach", "unwrap", "wrap"), "plugin.attach"),
    **dict.fromkeys((n for n in __all__ if n.endswith("Error")), "common.errors"),
    "Calibration": "plugin.calibration.files",
    "Config": "plugin.config",
    "methods": "plugin.config",
    "unmark": "plugin.methods.emphasis",
    **dict.fromkeys(("Score", "score"), "plugin.reading.score"),
    **dict.fromkeys(("Carving", "carve", "carve_all", "carved_inputs"), "preprocessing.carve"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
