"""What vLLM cannot carry is refused before the engine starts, in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import sightline
from sightline.serving import engine
from sightline.serving.launch import serve
from sightline.serving.plugin import PLACES, chosen_class

from tests.serving.served.models import OPTIONS

GAINS = {"methods": [{"head_gain": {"head_list": [[1, 2]]}}]}
DECORE = {"decoder": {"decore": {"head_list": [[1, 2]]}}}
ZEROTUNING = {"methods": [{"zerotuning": {"gain": 2.0}}]}


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (
            GAINS,
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "leave speculative decoding off",
        ),
        (GAINS, {"pipeline_parallel_size": 2}, "tensor_parallel_size"),
        (GAINS, {"enable_lora": True}, "merge the adapter"),
        (DECORE, {"kv_cache_dtype": "fp8"}, "keep the cache in the model's number type"),
        (GAINS, {"hf_overrides": {"architectures": ["Other"]}}, "hf_overrides names architectures"),
        (GAINS, {"model_impl": "terratorch"}, "model_impl='terratorch'"),
        ("cad", {}, "'cad' contrasts with a prompt of its own"),
        ("icd", {}, "'icd' contrasts with a prompt of its own"),
        ("pasta", {}, "'pasta' does more than scale heads"),
        ("vcd", {}, "'vcd' takes pictures away"),
        (ZEROTUNING, {"kv_cache_dtype": "fp8"}, "keep the cache in the model's number type"),
        ("var", {}, "'var' does more than scale heads"),
        ({"methods": []}, {}, "has no effect"),
    ],
)
def test_before_the_engine_starts(tiny: Any, config: Any, options: Any, words: str) -> None:
    with pytest.raises(sightline.SightlineError) as caught:
        engine(str(tiny("llama")), config, **{**OPTIONS, **options})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_calibration_for_other_heads(tiny: Any) -> None:
    known = {"model": "x", "architecture": "llama", "layers": 4, "heads": 8}
    with pytest.raises(sightline.CalibrationError, match="head count 8 in the file, 4 in the model"):
        engine(str(tiny("llama")), DECORE, calibration=known)


def test_model_types_that_are_not_proven() -> None:
    with pytest.raises(sightline.UnsupportedModelError, match="model type 'gemma3_text' is not proven in vLLM"):
        chosen_class("gemma3_text", "auto")
    with pytest.raises(sightline.UnsupportedModelError, match="vLLM's own class for 'llava' is not proven"):
        chosen_class("llava", "vllm")
    assert chosen_class("llava", "auto") == "TransformersMultiModalForCausalLM"
    assert chosen_class("qwen2", "transformers") == "TransformersForCausalLM"


def test_an_old_vllm(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    with pytest.raises(sightline.SightlineError, match=r"vLLM 0\.31\.2 is too old, Sightline needs 0\.32"):
        engine(str(tiny("llama")), GAINS)


def test_a_vllm_that_lacks_what_is_wrapped(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    monkeypatch.delattr(GPUModelRunner, PLACES[-1][2])
    with pytest.raises(sightline.SightlineError, match=r"GPUModelRunner\._model_forward"):
        engine(str(tiny("llama")), GAINS)


def test_plain_vllm_understands_additional_config(tiny: Any, tmp_path: Path) -> None:
    """What `vllm serve --additional-config` comes to: the plugin is found by its entry point, and checks."""
    from vllm.engine.arg_utils import EngineArgs

    file = tmp_path / "gains.yaml"
    file.write_text("methods: [{head_gain: {head_list: [[1, 2]]}}]\n")
    given = {"sightline": {"config": str(file)}, "mine": 1}
    made = EngineArgs(
        model=str(tiny("llama")), additional_config=given, skip_tokenizer_init=True
    ).create_engine_config()
    assert made.model_config.architecture == "SightlineLlamaForCausalLM"
    assert made.additional_config["sightline"]["plan"]["gains"] == [[1, 2, -1.0]]
    assert made.additional_config["mine"] == 1
    for wrong in ({"config": "nothing-like-it"}, {"settings": 1}, {}):
        with pytest.raises(sightline.ConfigError):
            EngineArgs(model=str(tiny("llama")), additional_config={"sightline": wrong}).create_engine_config()


def test_a_shell_says_it_in_one_line(tiny: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.cli.main import main

    assert main(["serve", str(tiny("llama")), "--config", "cad", "--port", "1"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: decoder 'cad'")
    assert line.count("\n") == 1
    # One of vLLM's own options, known only when it has read them.
    file = Path(tiny("llama")) / "gains.yaml"
    file.write_text("methods: [{head_gain: {head_list: [[1, 2]]}}]\n")
    options = ["--pipeline-parallel-size", "2", "--skip-tokenizer-init", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["sightline"])
    assert main(["serve", str(tiny("llama")), "--config", str(file), *options]) == 2
    assert "tensor_parallel_size" in capsys.readouterr().err
    with pytest.raises(sightline.SightlineError, match="cannot read the configuration of model"):
        serve("/nowhere/at/all", str(file))
