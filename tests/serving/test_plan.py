"""A configuration becomes plain numbers, or is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline.plugin.branches.decoder import DECODERS
from sightline.plugin.calibration.folded import MARKER
from sightline.plugin.core.registry import METHODS
from sightline.serving.plan import ServedPlan, resolve
from transformers import LlamaConfig, LlavaConfig

TEXT = LlamaConfig(num_hidden_layers=4, num_attention_heads=8, hidden_size=64, num_key_value_heads=4, vocab_size=256)
SEEING = LlavaConfig(text_config=TEXT, image_token_id=250)
SERVED = {"head_gain", "vhr", "faith", "zerotuning"}, {"decore", "hicd", "juice", "vcd", "m3id", "pai_guidance"}


def calibration(architecture: str = "llama") -> dict[str, Any]:
    scores = [[float((layer * 8 + head * 5) % 13) for head in range(8)] for layer in range(4)]
    return {
        "model": "mine",
        "architecture": architecture,
        "layers": 4,
        "heads": 8,
        "retrieval_heads": {"scores": scores},
        "inducing_heads": {"scores": scores},
        "conflict_heads": {"enhance": [[1, 2]], "suppress": [[3, 0]]},
        "visual_heads": {"scores": scores, "layers": [1, 3]},
        "premise_heads": {"heads": [[2, 5], [0, 1]]},
        "head_gates": dict.fromkeys(("facilitating", "irrelevant", "interfering"), [[0.5] * 8] * 4),
    }


def plan(config: Any, known: Any = None, model: Any = TEXT) -> ServedPlan:
    return resolve("mine", config, calibration() if known is None else known, loaded=model)


def test_factors_of_methods_multiply() -> None:
    config = {"methods": [{"head_gain": {"head_list": [[0, 1], [2, 3]], "gain": 2.0}}, {"faith": {"rows": "all"}}]}
    config["methods"][1]["faith"]["heads"] = 2
    found = plan(config)
    assert {(layer, head): number for layer, head, number in found.gains} == {
        (0, 1): 0.0,
        (2, 3): 2.0,
        (2, 5): 0.0,
    }
    assert found.seen == found.gains
    assert not found.looks
    assert found.table(found.gains, 1.0).shape == (4, 8)


def test_static_vhr_is_for_prompts_with_a_picture() -> None:
    config = {"methods": [{"vhr": {"static": True, "alpha": 3.0}}, {"head_gain": {"head_list": [[0, 0]], "gain": 0.5}}]}
    found = plan(config, calibration("llava"), SEEING)
    assert found.looks
    assert found.gains == ((0, 0, 0.5),)
    assert {number for _, _, number in found.seen} == {0.5, 3.0}
    assert {layer for layer, _, _ in found.seen} == {0, 1, 3}


def test_a_method_of_pictures_has_no_effect_on_a_text_model() -> None:
    with pytest.raises(sightline.ConfigError, match="has no effect"):
        plan({"methods": [{"vhr": {"static": True}}]})


@pytest.mark.parametrize(
    ("config", "change", "rows", "first"),
    [
        ({"decore": {"heads": 3}}, "disperse", "last", 0),
        ({"decore": {"head_list": [[2, 1]], "mask": "output", "span": "prompt"}}, "silence", "all", 2),
        ({"hicd": {"head_list": [[1, 1]]}}, "disperse", "all", 1),
        ({"hicd": {"head_list": [[1, 1]], "span": "prompt"}}, "disperse", "prompt", 1),
        ({"juice": {}}, "add", "all", 1),
    ],
)
def test_copies(config: Any, change: str, rows: str, first: int) -> None:
    copied = plan({"decoder": config}).copied
    assert copied is not None
    assert (copied.change, copied.rows, copied.first) == (change, rows, first)


@pytest.mark.parametrize(("name", "pictures"), [("vcd", "redrawn"), ("m3id", "none"), ("pai_guidance", "none")])
def test_copies_of_other_pictures(name: str, pictures: str) -> None:
    found = plan(name, calibration("llava"), SEEING)
    assert found.copied is not None
    assert (found.copied.pictures, found.copied.rows, found.copied.first) == (pictures, "all", 0)
    assert found.looks
    assert found.widened == (pictures == "none")
    with pytest.raises(sightline.ConfigError, match=f"'{name}' takes pictures away, and 'mine' reads none"):
        plan(name)


def test_factors_on_the_first_token() -> None:
    found = plan({"methods": [{"zerotuning": {"gain": 3.0, "head_list": [[1, 2], [3, 0]]}}]})
    assert found.first == ((1, 2, 3.0), (3, 0, 3.0))
    assert found.widened
    assert not found.gains
    assert not found.looks


def test_a_plan_survives_its_json() -> None:
    found = plan({"methods": ["head_gain"], "decoder": {"decore": {"heads": 5}}})
    assert ServedPlan.model_validate_json(found.model_dump_json()) == found
    assert found.calibration is not None


def test_a_copy_scores_as_its_decoder_does() -> None:
    """`combined` from the settings in a plan is what `generate` gets."""
    copied = plan({"decoder": {"hicd": {"heads": 2, "alpha": 0.4, "beta": 0.1}}}).copied
    assert copied is not None
    decoder = DECODERS.find(copied.decoder)
    base, weak = torch.randn(2, 3, 50).unbind(0)
    first, second = base.log_softmax(-1), weak.log_softmax(-1)
    expected = 1.4 * first - 0.4 * second
    expected[first < first.amax(-1, keepdim=True) + torch.tensor(0.1).log()] = -torch.inf
    torch.testing.assert_close(
        decoder.combined(decoder.config(**copied.settings), base, weak), expected.log_softmax(-1)
    )


@pytest.mark.parametrize(
    "name", [*sorted(METHODS.known().keys() - SERVED[0]), *sorted(DECODERS.known().keys() - SERVED[1])]
)
def test_what_depends_on_the_prompt_is_refused_by_name_before_anything_else(name: str) -> None:
    """Without a calibration: nobody should measure one to be refused then."""
    with pytest.raises(sightline.ConfigError) as caught:
        resolve("mine", name, loaded=TEXT)
    message = str(caught.value)
    assert f"'{name}'" in message
    assert "\n" not in message
    assert "head_gain" in message or "decore" in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"methods": []}, "has no effect"),
        (
            {"methods": [{"head_gain": {"head_list": [[0, 0]], "when": {"signal": "entropy", "above": 1.0}}}]},
            "'head_gain' has a gate",
        ),
        ({"methods": [{"head_gain": {"head_list": [[0, 0]], "gain": 1.0}}]}, "has no effect"),
        ({"methods": [{"zerotuning": {"gain": 1.0}}]}, "has no effect"),
        ({"methods": ["vhr"]}, "static: true"),
        ({"methods": ["faith"]}, "rows: all"),
        ({"methods": [{"head_gain": {"head_list": [[9, 0]]}}]}, "names head 9-0"),
    ],
)
def test_refusals(config: Any, words: str) -> None:
    with pytest.raises(sightline.SightlineError, match=words):
        plan(config)


def test_a_calibration_of_another_model_is_refused() -> None:
    with pytest.raises(sightline.CalibrationError, match="does not fit this model"):
        plan({"decoder": {"decore": {"heads": 5}}}, calibration("qwen2"))


def test_folded_weights_are_not_served_with_a_configuration_again(tmp_path: Any) -> None:
    (tmp_path / MARKER).write_text("{}")
    with pytest.raises(sightline.ConfigError, match="already has a configuration folded"):
        resolve(str(tmp_path), "decore", calibration(), loaded=TEXT)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(sightline.SightlineError, match="cannot read the configuration of model"):
        resolve("/nowhere/at/all", {"methods": [{"head_gain": {"head_list": [[0, 0]]}}]})
