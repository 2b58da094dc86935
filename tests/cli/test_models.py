"""`sightline models` and `sightline check`: what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sightline.cli.main import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    return out + err


def test_models_lists_every_type(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "models")
    assert "qwen3_vl" in text
    assert "deepseek_v3" in text
    assert "types work" in text


def test_models_of_a_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    text = printed(capsys, "models", "gpt_oss", "--json", str(file))
    assert "contrast with masked heads" in text
    (one,) = json.loads(file.read_text())
    assert one["results"]["attach"] == "ok"


def test_models_of_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'llama" in printed(capsys, "models", "lama5", status=2)


def test_check_says_what_runs_and_what_measures_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "check", "embedded")
    assert "layers edited" in text
    assert "vhr" in text
    assert "decore" in text
    assert "yes" in text


def test_check_knows_the_processor_that_every_command_attaches_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    printed(capsys, "check", "embedded", "--json", str(tmp_path / "check.json"))
    uses = {use["name"]: use for use in json.loads((tmp_path / "check.json").read_text())["uses"]}
    assert uses["icd"]["works"]
    assert uses["spotlight"]["works"]
    assert uses["pasta"]["lacks"] == ["retrieval_heads"]
    assert "'begin' and 'end'" in uses["cad"]["reason"]
