"""`sightline calibrate` on model types that have no published constants, with their own processors."""

from __future__ import annotations

from pathlib import Path

import pytest
import sightline
from sightline.profiling.calibrate import calibrate

from tests.zoo import pictures
from tests.zoo.processors import PROCESSORS, TORCHVISION
from tests.zoo.prove import Subject, plain_fault

PROFILES = ["sinks", "gaze", "visual-heads", "replies", "inducing-heads"]  # what it needs no skill of the model for


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in ("qwen3_vl", "gemma4") else pytest.mark.matrix) for one in PROCESSORS]
)
def test_a_type_is_calibrated_with_its_own_processor(name: str, tmp_path: Path) -> None:
    """What is measured is what methods find in the file."""
    if name in TORCHVISION:
        pytest.importorskip("torchvision")
    if (fault := plain_fault("image", name)) is not None:
        pytest.skip(f"this release of transformers cannot run it, attached or not: {fault}")
    subject = Subject("image", name)
    processor = PROCESSORS[name](subject.model.config)
    out = tmp_path / "measured.yaml"
    measured = calibrate(subject.model, processor, profiles=PROFILES, samples=2, batch=2, out=out)
    assert list(measured.sections) == PROFILES
    inputs = pictures.prompt(subject.model, name)
    with sightline.attach(subject.model, {"methods": ["var"]}, calibration=out, processor=processor) as plug:
        subject.answer(inputs, subject.model)
        assert plug.report()["var"]
