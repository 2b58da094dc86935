"""Mllama: what its cross-attention layers mean for methods and decoders, beyond what the conformance tests reach."""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline import CalibrationError, ConfigError, SightlineError, UnsupportedModelError
from sightline.plugin.branches.heads import best_heads, random_heads
from sightline.plugin.core.method import ModelFacts

from tests.helpers import naive, tiny
from tests.helpers import rules as more
from tests.helpers.engine import SETTINGS, calibration, generate, prompts, shared
from tests.helpers.naive import SETUPS
from tests.helpers.refusal import refused

OWN = [layer for layer in range(tiny.LAYERS + 3) if layer != tiny.ACROSS]


def attach(config: dict[str, Any], **options: Any) -> sightline.Plug:
    case = shared("mllama")
    facts = {**calibration(case), **naive.sections(case)}
    return sightline.attach(case.model, config, **{"calibration": facts, **options})


# --- the float64 references ------------------------------------------------------------------------------------------


def gains(factor: float) -> more.Array:
    """One factor for every head of the layers that attend to the sequence."""
    table = more.np.full((len(OWN) + 1, tiny.HEADS), factor)
    table[tiny.ACROSS] = float("nan")  # never asked for
    return table


def test_zerotuning() -> None:
    more.compare("mllama", {"zerotuning": {}}, more.zerotuning(gains(4.0)), kind="images")
    table = torch.rand(len(OWN) + 1, tiny.HEADS).add(0.5)
    rule = more.zerotuning(table.double().numpy())
    more.compare("mllama", {"zerotuning": {}}, rule, first_token={"gains": table.tolist()})


def test_spotlight() -> None:
    more.compare("mllama", {"spotlight": {"target": 0.6}}, more.spotlight(0.6, "exact", "head", OWN))


def test_locore() -> None:
    """Its layers are those of the default that attend to the sequence."""
    rule = more.locore(0.5, 2, [2], logit=False, renormalise=True)
    more.compare("mllama", {"locore": {"beta": 0.5, "window": 2}}, rule)


def test_focus() -> None:
    directions = more.np.random.default_rng(2).normal(size=(2, 8))
    known = {"focus_heads": {"heads": [[1, 3], [6, 0]], "directions": directions.tolist()}}
    more.compare("mllama", {"focus": {"factor": 3.0}}, more.focus(3.0, [(1, 3), (6, 0)], directions), **known)


@pytest.mark.parametrize("kind", ["padded", "images"])
def test_vhr(kind: str) -> None:
    """Heads behind the layer that reads the image, and one before it, against a prompt that has no image and no mark."""
    case, model = shared("mllama"), naive.of(tiny.get("mllama").model)
    inputs = prompts(case, kind)
    with attach({"methods": [{"vhr": {"alpha": 3.0}}]}, calibration=None) as plug:
        ours = generate(case.model, inputs)
        chosen = torch.tensor(plug.report()["vhr"]["head_map"])
    assert chosen.any(-1).nonzero().flatten().tolist() == [1, 5, 6]
    for i, tokens in enumerate(ours.tokens.tolist()):
        alone = case.row(inputs, i)
        change, _ = naive.reinforced(model, alone, 3.0, [1, 5, 6])
        expected = naive.Reference(edits=(change,))(model, alone, tokens[:-1])
        torch.testing.assert_close(ours.logits[i].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, setup in SETUPS.items() if not setup.image])
def test_decoders_on_text_alone(name: str) -> None:
    """Without any image the model leaves its cross-attention layers out."""
    case, setup = shared("mllama"), SETUPS[name]
    inputs = case.inputs(2, lengths=(9, 6), images_per_row=0)
    with attach({"decoder": setup.config}, **setup.options):
        ours = generate(case.model, inputs)
    for i, tokens in enumerate(ours.tokens.tolist()):
        expected = setup.reference(naive.of(tiny.get("mllama").model), case.row(inputs, i), tokens[:-1])
        assert expected.argmax(-1).tolist() == tokens
        torch.testing.assert_close(ours.scores[i].double(), expected, atol=1e-3, rtol=1e-3)


def test_an_image_that_comes_encoded() -> None:
    """As cross_attention_states, in place of pixels."""
    case = shared("mllama")
    inputs = dict(prompts(case, "padded"))
    order = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    seen = case.model.model.vision_model(**{name: inputs[name] for name in order}).last_hidden_state
    states = case.model.model.multi_modal_projector(seen).reshape(-1, seen.shape[-2], tiny.HIDDEN)
    given = {name: value for name, value in inputs.items() if name not in order}
    for config in ({"methods": [{"vhr": {}}]}, {"decoder": SETUPS["hicd"].config}):
        with attach(config):
            logits = case.model(**given, cross_attention_states=states).logits
            torch.testing.assert_close(logits, case.model(**inputs).logits)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pai", "var", "gift", "paint", "vaf", "cgvlm"])
def test_methods_that_weigh_image_tokens(name: str) -> None:
    with refused(shared("mllama"), UnsupportedModelError, f"method '{name}'", "image tokens", "cross-attention", "vhr"):
        attach({"methods": [{name: SETTINGS.get(name, {})}]})


@pytest.mark.parametrize("name", [name for name, setup in naive.SETUPS.items() if not setup.fits("mllama")])
def test_decoders_that_weigh_image_tokens(name: str) -> None:
    with refused(
        shared("mllama"), UnsupportedModelError, f"decoder '{name}'", "image tokens", "cross-attention", "vcd"
    ):
        attach({"decoder": name})


def test_a_gate_that_looks_at_the_image() -> None:
    when = {"signal": "image_attention", "below": 0.1}
    with refused(shared("mllama"), UnsupportedModelError, "gate", "cross-attention", "entropy", "divergence"):
        attach({"when": when, "methods": ["zerotuning"]})


@pytest.mark.parametrize("name", ["pasta", "spotlight"])
def test_the_image_as_emphasis(name: str) -> None:
    with refused(shared("mllama"), ConfigError, name, "no image tokens", "'span'", "question"):
        attach({"methods": [{name: {"span": "image"}}]})


NAMED: dict[str, dict[str, Any]] = {
    "zerotuning": {"methods": [{"zerotuning": {"layers": [3, 4]}}]},
    "spotlight": {"methods": [{"spotlight": {"layers": [4], "span": "question"}}]},
    "pasta": {"methods": [{"pasta": {"head_list": [[4, 0]], "span": "question"}}]},
    "vhr": {"methods": [{"vhr": {"layers": [4]}}]},
    "decore": {"decoder": {"decore": {"head_list": [[4, 1]]}}},
    "juice": {"decoder": {"juice": {"enhance": [[4, 1]]}}},
    "dola": {"decoder": {"dola": {"layers": [2, 4]}}},
}


@pytest.mark.parametrize("name", NAMED)
def test_layers_that_are_left_alone(name: str) -> None:
    with refused(shared("mllama"), CalibrationError, f"{name}.", "layer 4", "cross-attention", "other than 4"):
        attach(NAMED[name])


def test_heads_are_ranked_without_them() -> None:
    """Whatever a calibration file says of their heads."""
    facts = ModelFacts("m", "mllama", 3, 2, 8, across=frozenset({1}))
    assert best_heads([[0.0, 1.0], [9.0, 9.0], [2.0, 0.5]], 3, facts, "x") == ((2, 0), (0, 1), (2, 1))
    assert {layer for layer, _ in random_heads(4, [], 0, facts, "x")} == {0, 2}
    with pytest.raises(SightlineError, match="has 4"):
        best_heads([[0.0] * 2] * 3, 5, facts, "x")
