"""`sightline eval --engine vllm`: the replies of transformers, scored alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sightline import ConfigError
from sightline.benchmarks.benchmark import DataSource
from sightline.benchmarks.runner import suite
from sightline.plugin.config import Config
from sightline.serving import evaluation

from tests.serving.served.models import OPTIONS, apart, evaluated
from tests.serving.served.test_llava import KNOWN, VHR

COUNT = 12


def test_the_same_replies(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tmp_path / "known.yaml"
    known.write_text(yaml.safe_dump(KNOWN))
    expected = apart(evaluated, llava, VHR, known, tmp_path / "transformers", COUNT)
    benchmark, out = suite.read("chair", DataSource(None, 2)), tmp_path / "served"
    given: dict[str, Any] = {"calibration": known, "new_tokens": COUNT, "options": OPTIONS}
    result = evaluation.evaluate(benchmark, str(llava), {"vhr": Config.load(VHR)}, out, **given)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["runs"] for sample in samples] == expected
    assert all(result["throughput"][name] > 0 for name in ("plain", "vhr"))
    assert json.loads((out / "result.json").read_text())["benchmark"] == "chair"

    def unwanted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(evaluation, "_asked", unwanted)
    again = evaluation.evaluate(benchmark, str(llava), {"vhr": Config.load(VHR)}, out, **given)
    assert again["throughput"] == result["throughput"]


def test_given_answers_are_not_scored(tiny: Any, tmp_path: Path) -> None:
    from sightline.models.samples import Sample

    benchmark = suite.read("chair", DataSource(None, 1))
    benchmark.samples[0] = Sample("1", "Is it?", choices=("yes", "no"))
    with pytest.raises(ConfigError, match="scores given answers"):
        evaluation.evaluate(benchmark, str(tiny("llama")), {}, tmp_path)
