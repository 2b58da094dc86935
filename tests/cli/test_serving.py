"""`sightline export` and `serve` from the shell."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import sightline
import torch
from sightline.cli.main import main
from sightline.models.loading import load_model
from sightline.models.prompting import encoded, turn

from tests.helpers.shell import Capture, fails

GAINS = "methods: [{head_gain: {head_list: [[0, 1], [2, 3]], gain: -1.0}}]\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gains.yaml"
    path.write_text(GAINS)
    return path


def test_an_exported_checkpoint_answers_as_the_attached_model(config: Path, tmp_path: Path, capsys: Capture) -> None:
    out, record = tmp_path / "out", tmp_path / "record.json"
    assert (
        main(["export", "embedded", "--config", str(config), "--fold", "--out", str(out), "--json", str(record)]) == 0
    )
    assert "folded the factors of 2 heads into o_proj (float32)" in capsys.readouterr().out
    assert json.loads(record.read_text()) == json.loads((out / "sightline.json").read_text())
    model, processor = load_model("embedded")
    inputs = encoded(model, processor, [turn(processor, "Is there a ball?")])
    with torch.no_grad(), sightline.attach(model, str(config)):
        expected = model(**inputs).logits
    again, _ = load_model(str(out))
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    # What is folded in is not folded in again.
    line = fails(["export", str(out), "--config", str(config), "--fold", "--out", str(tmp_path / "two")], capsys)
    assert "already has a configuration folded" in line


def test_what_cannot_be_folded_is_said_in_one_line(config: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ["--fold", "--out", str(tmp_path / "out")]
    assert "'var' does more than scale heads" in fails(["export", "embedded", "--config", "var", *out], capsys)
    decore = tmp_path / "decore.yaml"
    decore.write_text("decoder: {decore: {head_list: [[0, 1]]}}\n")
    assert "sightline serve" in fails(["export", "embedded", "--config", str(decore), *out], capsys)
    assert "--fold" in fails(["export", "embedded", "--config", str(config), *out[1:]], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_serve_says_what_to_install(config: Path, capsys: Capture) -> None:
    line = fails(["serve", "mine", "--config", str(config), "--max-model-len", "512"], capsys)
    assert "pip install 'sightline-lvlm[vllm]'" in line
