"""The user's own calibration files: found by name and weights, so that no two models share one."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sightline import Calibration, CalibrationError
from sightline.plugin.calibration.files import FOLDER, find_shipped, found_at, own_file
from sightline.plugin.calibration.identity import identity
from torch import nn

from tests.helpers.engine import shared

SHAPE: dict[str, Any] = {"architecture": "llava", "layers": 2, "heads": 3}


class Named(nn.Linear):
    """Something with weights and the name of a model."""

    def __init__(self, name: str, seed: int = 0):
        super().__init__(16, 8, bias=False)
        self.name_or_path = name
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            nn.init.normal_(self.weight)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def write(path: Path, tau: float = 1.0) -> Calibration:
    mine = Calibration.load({"model": "m", **SHAPE, "sink": {"dims": [1], "tau": tau}})
    path.write_text(mine.dump(), encoding="utf-8")
    os.utime(path, ns=(int(tau), int(tau)))
    return mine


def test_two_models_of_one_name_have_a_file_each() -> None:
    first, second = Named("runs/a/checkpoint", 1), Named("runs/b/checkpoint", 2)
    assert own_file(first) != own_file(second)
    mine = write(own_file(first))
    assert find_shipped(first) == mine
    assert find_shipped(second) is None
    other = write(own_file(second), 2.0)
    assert (find_shipped(first), find_shipped(second)) == (mine, other)
    with torch.no_grad():
        first.weight.neg_()  # trained on in the same folder
    assert find_shipped(first) is None


def test_a_model_keeps_its_file_when_it_is_moved_or_loaded_in_another_type() -> None:
    model = Named("runs/a/checkpoint")
    mine = write(own_file(model))
    for changed in (Named("elsewhere/checkpoint"), Named("checkpoint").bfloat16(), Named("checkpoint").half()):
        assert find_shipped(changed) == mine
    case = shared("llava")
    assert identity(case.model) == identity(copy.deepcopy(case.model).half())


def test_the_users_own_file_comes_first() -> None:
    for name in ("llava-hf/llava-1.5-7b-hf", "models/liuhaotian/llava-v1.5-7b", "Somebody/New-Model"):
        model = Named(name)
        assert "llava-1.5-7b-hf-" in own_file(model).name or own_file(model).name.startswith("new-model-")
        for tau in (1.0, 2.0):  # a file that changed is read anew
            mine = write(own_file(model), tau)
            assert find_shipped(model) == Calibration.load("auto", model) == mine
        assert found_at(model) == str(own_file(model))


def test_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Named("llava-1.5-7b-hf")
    write(own_file(model))
    monkeypatch.setenv(FOLDER, str(tmp_path / "elsewhere"))
    found = find_shipped(model)
    assert found is not None
    assert found.model == "llava-hf/llava-1.5-7b-hf"
    assert found_at(model) == "shipped for llava-hf/llava-1.5-7b-hf"
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert own_file(model).parent == tmp_path / "data" / "sightline" / "calibration"


@pytest.mark.parametrize("name", ["..", "a/..", "\0", "a b?", "x" * 300, "", "/"])
def test_no_name_leads_out_of_the_folder(name: str, folder: Path) -> None:
    file = own_file(Named(name))
    assert file.parent == folder
    write(file)
    assert find_shipped(Named(name)) is not None


def test_weights_that_cannot_be_compared() -> None:
    quantised = Named("runs/checkpoint", 5)
    quantised.is_quantized = True  # type: ignore[assignment]
    assert find_shipped(quantised) is None
    mine = write(own_file(Named("checkpoint", 1)))
    assert find_shipped(quantised) == mine
    write(own_file(Named("checkpoint", 2)))
    with pytest.raises(
        CalibrationError, match=r"2 calibration files could be meant for 'runs/checkpoint'.*--calibration"
    ):
        find_shipped(quantised)
    own = write(own_file(quantised), 3.0)
    assert find_shipped(quantised) == own


def test_a_model_that_is_only_named() -> None:
    """As `sightline serve` and `export` plan it, before any weight is loaded."""
    named = SimpleNamespace(name_or_path="checkpoint")
    assert find_shipped(named) is None
    mine = write(own_file(Named("checkpoint", 1)))
    assert find_shipped(named) == mine
    write(own_file(Named("checkpoint", 2)))
    with pytest.raises(CalibrationError, match="2 calibration files"):
        find_shipped(named)
