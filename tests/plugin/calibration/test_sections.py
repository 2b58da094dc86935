"""A missing section names the command that measures it."""

from __future__ import annotations

import shlex

import pytest
import sightline
from sightline import CalibrationError
from sightline.plugin.calibration.sections import MEASURED, how_to_get, profile_of
from sightline.profiling.profiles import PROFILES

from tests.helpers.engine import calibration, shared


def test_every_profile_is_named_by_its_section() -> None:
    sections = {profile.section: name for name, profile in PROFILES.items()}
    assert sections.keys() == MEASURED
    for section, name in sections.items():
        assert profile_of(section) == name
        assert f"`sightline calibrate 'my model' --profile {name}`" in how_to_get(section, "my model")
    assert "sightline calibrate" not in how_to_get("focus_heads", "m")


@pytest.mark.parametrize(
    ("method", "profile"), [("var", "sinks"), ("decore", "retrieval-heads"), ("hicd", "inducing-heads")]
)
def test_attach_names_the_command(method: str, profile: str) -> None:
    case = shared("llava")
    data = calibration(case)
    for section in ("sink", "retrieval_heads", "inducing_heads"):
        data.pop(section, None)
    with pytest.raises(CalibrationError) as caught:
        sightline.attach(case.model, method, calibration=data)
    name = shlex.quote(case.model.name_or_path or type(case.model).__name__)
    assert f"sightline calibrate {name} --profile {profile}" in str(caught.value)
