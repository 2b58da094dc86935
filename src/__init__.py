"""Sightline: training-free, inference-time edits that make vision-language models hallucinate less.

`attach` puts a configuration to work on a Hugging Face model for a `with` block, `wrap` keeps it on. Who writes a method
takes `Method`, `Session`, `Settings`, `register` and the edits from here; who writes a decoder, `Decoder`, `Contrast`,
`Branch` and `register_decoder`. Names are imported on first use, so that `import sightline` and the shell's `--help`
stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common.errors import (
        CalibrationError,
        CallError,
        ConfigError,
        LayoutError,
        NoEffectWarning,
        ScoresError,
        SightlineError,
        UncompiledWarning,
        UnsupportedModelError,
    )
    from .models.loading import load_model
    from .plugin.attach import Plug, attach, unwrap, wrap
    from .plugin.branches.branch import Branch
    from .plugin.branches.decoder import Contrast, Decoder, register_decoder
    from .plugin.calibration.files import Calibration
    from .plugin.config import Config, methods
    from .plugin.core.edits import (
        Add,
        Bias,
        Disperse,
        Edit,
        Gain,
        Input,
        InputProbe,
        Mass,
        OutputProbe,
        Reweight,
        Rows,
        Shift,
        WeightProbe,
    )
    from .plugin.core.layout import Layout, Step
    from .plugin.core.method import Method, ModelFacts, Session, Settings
    from .plugin.core.registry import register
    from .plugin.methods.emphasis import unmark
    from .plugin.reading.score import Score, score
    from .preprocessing.carve import Carving, carve, carve_all, carved_inputs

__version__ = "0.1.0"
__all__ = [
    "Add",
    "Bias",
    "Branch",
    "Calibration",
    "CalibrationError",
    "CallError",
    "Carving",
    "Config",
    "ConfigError",
    "Contrast",
    "Decoder",
    "Disperse",
    "Edit",
    "Gain",
    "Input",
    "InputProbe",
    "Layout",
    "LayoutError",
    "Mass",
    "Method",
    "ModelFacts",
    "NoEffectWarning",
    "OutputProbe",
    "Plug",
    "Reweight",
    "Rows",
    "Score",
    "ScoresError",
    "Session",
    "Settings",
    "Shift",
    "SightlineError",
    "Step",
    "UncompiledWarning",
    "UnsupportedModelError",
    "WeightProbe",
    "attach",
    "carve",
    "carve_all",
    "carved_inputs",
    "load_model",
    "methods",
    "register",
    "register_decoder",
    "score",
    "unmark",
    "unwrap",
    "wrap",
]

_HOMES = {
    **dict.fromkeys(
        (
            "Plug",
            "attach",
            "unwrap",
            "wrap",
        ),
        "plugin.attach",
    ),
    **dict.fromkeys(
        (
            "CalibrationError",
            "CallError",
            "ConfigError",
            "LayoutError",
            "ScoresError",
            "NoEffectWarning",
            "SightlineError",
            "UncompiledWarning",
            "UnsupportedModelError",
        ),
        "common.errors",
    ),
    **dict.fromkeys(("load_model",), "models.loading"),
    **dict.fromkeys(("Calibration",), "plugin.calibration.files"),
    **dict.fromkeys(
        (
            "Config",
            "methods",
        ),
        "plugin.config",
    ),
    **dict.fromkeys(("unmark",), "plugin.methods.emphasis"),
    **dict.fromkeys(
        (
            "Score",
            "score",
        ),
        "plugin.reading.score",
    ),
    **dict.fromkeys(
        (
            "Carving",
            "carve",
            "carve_all",
            "carved_inputs",
        ),
        "preprocessing.carve",
    ),
    **dict.fromkeys(
        (
            "Add",
            "Bias",
            "Disperse",
            "Edit",
            "Gain",
            "Input",
            "InputProbe",
            "Mass",
            "OutputProbe",
            "Reweight",
            "Rows",
            "Shift",
            "WeightProbe",
        ),
        "plugin.core.edits",
    ),
    **dict.fromkeys(
        (
            "Layout",
            "Step",
        ),
        "plugin.core.layout",
    ),
    **dict.fromkeys(
        (
            "Method",
            "ModelFacts",
            "Session",
            "Settings",
        ),
        "plugin.core.method",
    ),
    **dict.fromkeys(("register",), "plugin.core.registry"),
    **dict.fromkeys(("Branch",), "plugin.branches.branch"),
    **dict.fromkeys(
        (
            "Contrast",
            "Decoder",
            "register_decoder",
        ),
        "plugin.branches.decoder",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
