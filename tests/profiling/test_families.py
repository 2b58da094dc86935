"""`sightline calibrate` on model types that have no published constants, with their own processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
from sightline.common.readers import Notes
from sightline.models.prompting import batch_inputs
from sightline.models.samples import TESTBED
from sightline.profiling.calibrate import calibrate
from sightline.profiling.data.examples import examples
from sightline.profiling.probes import presence
from sightline.profiling.probes.direct import Direct, row_by_row

from tests.zoo import pictures
from tests.zoo.processors import PROCESSORS, TORCHVISION
from tests.zoo.prove import Subject, plain_fault

PROFILES = ["sinks", "gaze", "visual-heads", "replies", "inducing-heads"]  # what it needs no skill of the model for


@pytest.fixture(
    params=[
        pytest.param(one, marks=() if one in ("qwen3_vl", "gemma3", "gemma4") else pytest.mark.matrix)
        for one in PROCESSORS
    ]
)
def name(request: pytest.FixtureRequest) -> str:
    """A model type that can be run here."""
    if request.param in TORCHVISION:
        pytest.importorskip("torchvision")
    if (fault := plain_fault("image", request.param)) is not None:
        pytest.skip(f"this release of transformers cannot run it, attached or not: {fault}")
    return str(request.param)


def test_a_type_is_calibrated_with_its_own_processor(name: str, tmp_path: Path) -> None:
    """What is measured is what methods find in the file."""
    subject = Subject("image", name)
    processor = PROCESSORS[name](subject.model.config)
    out = tmp_path / "measured.yaml"
    measured = calibrate(subject.model, processor, profiles=PROFILES, samples=2, batch=2, out=out)
    assert list(measured.sections) == PROFILES
    inputs = pictures.prompt(subject.model, name)
    with sightline.attach(subject.model, {"methods": ["var"]}, calibration=out, processor=processor) as plug:
        subject.answer(inputs, subject.model)
        assert plug.report()["var"]


@torch.no_grad()
def test_probes_are_told_all_that_its_processor_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits behind the questions of a probe are the model's own behind the processor's whole output."""
    given: list[Any] = []

    def kept(*args: Any) -> Any:
        given.append(batch_inputs(*args))
        return given[-1]

    monkeypatch.setattr(presence, "batch_inputs", kept)
    subject = Subject("image", name)
    shown = examples(TESTBED, 2, seed=0, sees=True, notes=Notes())
    questions = presence.asked(subject.model, PROCESSORS[name](subject.model.config), shown)
    own = [subject.model(**inputs).logits[0, -1] for inputs in given]
    with Direct(subject.model) as direct:
        for question, logits in zip(questions, own, strict=True):
            ids = torch.tensor([question.choice.prompt])
            read = direct({}, ids, **row_by_row([question.choice.pictures], ids.shape[1]))
            torch.testing.assert_close(read[0, -1], logits, atol=1e-4, rtol=1e-3)
