"""A decoder that takes gradients inside `generate` (SGRS): the graph is there when it is needed and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sightline
import torch
import transformers as tf
from sightline import CalibrationError, ConfigError, UnsupportedModelError
from sightline.decoders.sgrs import drawing_law
from sightline.plugin.reading.strategies import Contrasted

from tests.helpers import naive, tiny
from tests.helpers.engine import METHODS, NEW, calibration, entry, fits, generate, prompts, shared
from tests.helpers.refusal import refused

SGRS = {"decoder": {"sgrs": {"layers": [1, 2]}}}


def wanting_gradients() -> tiny.TinyCase:
    """A case whose weights ask for gradients, as those of a model fresh from `from_pretrained` do."""
    case = tiny.fresh("llava_gqa")
    case.model.requires_grad_(True)
    return case


# --- the law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, None])
def test_the_law_of_the_draws(rounds: int | None) -> None:
    """Against every order of draws one by one, for every set of accepted candidates."""
    logs = torch.randn(16, 4, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    accepted = torch.tensor([[bool(i >> j & 1) for j in range(4)] for i in range(16)])
    scores = torch.rand(16, 4, generator=torch.Generator().manual_seed(3)) / 2 + accepted / 2
    ours = drawing_law(logs, accepted, scores.argmax(-1, keepdim=True), rounds)
    for i in range(16):
        found = dict(enumerate(scores[i].tolist()))
        chances = dict(enumerate(logs[i].exp().tolist()))
        expected = naive.SGRS(rounds=rounds).law(chances, found, 0.5)
        torch.testing.assert_close(ours[i].exp(), torch.tensor(list(expected.values())))
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(16))


def test_the_law_of_chances_beyond_float() -> None:
    """A candidate that is all but certain is dropped: the others are drawn by what is left."""
    logs = torch.tensor([[0.0, -200.0, -201.0]])
    law = drawing_law(logs, torch.tensor([[False, True, True]]), torch.tensor([[1]]), 2)
    torch.testing.assert_close(law[0, 1:], torch.tensor([0.0, -1.0]).log_softmax(-1))


def test_candidates_are_dropped() -> None:
    """Else most of the tests here would be idle."""
    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    with sightline.attach(case.model, SGRS) as plug:
        ours = generate(case.model, inputs, max_new_tokens=8)
        report = plug.report()["sgrs"]
    open_to = ours.scores.isfinite().sum(-1)
    assert (open_to[:, 0] == 5).all(), "nothing was said yet that a threshold could follow"
    assert (open_to < 5).any()
    assert ours.tokens.tolist() != generate(case.model, inputs, max_new_tokens=8).tokens.tolist()
    assert set(report) == {"acted", "candidates", "scores", "threshold"}
    assert [len(row) for row in report["scores"]] == [5, 5, 5]
    kept = ours.scores[:, -1].gather(1, torch.tensor(report["candidates"])).isfinite()
    reached = torch.tensor(report["scores"]) >= torch.tensor(report["threshold"])[:, None]
    assert torch.equal(kept, reached)


# --- the graph -------------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Any, tiny.Inputs], Any]] = {
    "generate": lambda model, inputs: model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_hidden_states=True
    ),
    "static": lambda model, inputs: model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, cache_implementation="static"
    ),
    "forward": lambda model, inputs: model(**inputs, use_cache=True, output_hidden_states=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wanting", [False, True])
def test_no_graph_is_left(way: str, wanting: bool) -> None:
    case = wanting_gradients() if wanting else shared("llava_gqa")
    with sightline.attach(case.model, SGRS) as plug:
        out = WAYS[way](case.model, prompts(case, "padded"))
        assert torch.is_grad_enabled()
        assert isinstance(plug.reading, Contrasted)
        contrast: Any = plug.reading.contrast
        assert not contrast.weights
        assert not any(held.requires_grad for held in contrast.memory.values())
    held = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
    assert held
    states = [h for step in out.get("hidden_states") or () for h in (step if isinstance(step, tuple) else (step,))]
    assert not any(t.requires_grad for t in [*held, *states])
    if way == "forward":
        assert not out.logits.requires_grad
    assert all(p.grad is None for p in case.model.parameters())


def test_weights_that_want_gradients_change_nothing() -> None:
    case, other = wanting_gradients(), shared("llava_gqa")
    answers = []
    for model in (case.model, other.model):
        with sightline.attach(model, SGRS):
            answers.append(generate(model, prompts(other, "padded"), max_new_tokens=6))
    assert answers[0].tokens.tolist() == answers[1].tokens.tolist()
    torch.testing.assert_close(answers[0].scores, answers[1].scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "paligemma"])
def test_a_forward_over_the_whole_prompt(family: str) -> None:
    """Its graph is of all rows, where `generate` reads the last one apart; PaliGemma's rows see each other both ways."""
    case = shared(family)
    inputs = prompts(case, "padded")
    with sightline.attach(case.model, SGRS):
        first = generate(case.model, inputs, max_new_tokens=1)
        whole = case.model(**inputs)
    plain = case.model(**inputs)
    torch.testing.assert_close(whole.logits[:, -1], first.scores[:, 0], atol=1e-4, rtol=1e-4)
    earlier = inputs["attention_mask"][:, :-1].bool()
    torch.testing.assert_close(whole.logits[:, :-1][earlier], plain.logits[:, :-1][earlier], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_through_every_method(method: str) -> None:
    """Above and in the target layers; padding, which weighs nothing, must not turn them into NaN."""
    case = shared("llava_gqa")
    assert fits(method, "llava_gqa")
    batch = prompts(case, "padded")
    config = {"methods": [entry(method)], **SGRS}
    with sightline.attach(case.model, config, calibration=calibration(case)) as plug:
        together = generate(case.model, batch)
        scores = plug.report()["sgrs"]["scores"]
        assert all(score is not None and score > 0 for row in scores for score in row)
        for i in range(3):
            alone = generate(case.model, case.row(batch, i))
            assert alone.tokens[0].tolist() == together.tokens[i].tolist()
            torch.testing.assert_close(alone.scores[0], together.scores[i], atol=1e-3, rtol=1e-3)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_settings() -> None:
    case = shared("llava")
    for settings, kind, words in (
        ({"candidates": 0}, ConfigError, ("decoder.sgrs.candidates", "0")),
        ({"rounds": 0}, ConfigError, ("decoder.sgrs.rounds", "0")),
        ({"window": 0}, ConfigError, ("decoder.sgrs.window", "0")),
        ({"alpha": -0.1}, ConfigError, ("decoder.sgrs.alpha", "-0.1")),
        ({"span": "question"}, ConfigError, ("decoder.sgrs.span", "behind_image", "generated")),
        ({"layers": []}, ConfigError, ("decoder.sgrs.layers",)),
        ({"layers": [4]}, CalibrationError, ("sgrs.layers", "4", "0..3")),
        ({"candidates": 50, "rounds": 4}, ConfigError, ("sgrs", "50", "4", "rounds: null")),
    ):
        with refused(case, kind, *words):
            sightline.attach(case.model, {"decoder": {"sgrs": settings}})


def test_inference_mode() -> None:
    case = shared("llava")
    with (
        refused(case, UnsupportedModelError, "gradients", "inference_mode", "no_grad"),
        sightline.attach(case.model, "sgrs"),
        torch.inference_mode(),
    ):
        generate(case.model, prompts(case, "one"))


def test_a_quantised_cache() -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    cache = tf.QuantizedCache.__new__(tf.QuantizedCache)  # its backends are optional
    cache.layers = []
    with refused(case, UnsupportedModelError, "gradients", "cache", "quantised"), sightline.attach(case.model, "sgrs"):
        case.model(**inputs, past_key_values=cache)


def _narrow(model: Any) -> None:
    weight = model.get_decoder().layers[2].mlp.up_proj.weight
    model.get_decoder().layers[2].mlp.up_proj.weight = torch.nn.Parameter(
        weight.to(torch.float8_e4m3fn), requires_grad=False
    )


def _quantised(model: Any) -> None:
    model.quantization_method = tf.utils.quantization_config.QuantizationMethod.GPTQ


def _compiled(model: Any) -> None:
    model.compile()


UNFIT: dict[str, tuple[Callable[[Any], None], tuple[str, ...]]] = {
    "fp8": (_narrow, ("sgrs", "gradients", "float8_e4m3fn", "bfloat16")),
    "quantised": (_quantised, ("sgrs", "gradients", "gptq", "load")),
    "compiled": (_compiled, ("sgrs", "gradients", "compiled", "torch.compile")),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_models_without_gradients(kind: str) -> None:
    spoil, words = UNFIT[kind]
    case = tiny.fresh("llava")
    spoil(case.model)
    before = set(case.model.__dict__)
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(case.model, "sgrs")
    for word in words:
        assert word in str(caught.value)
    assert set(case.model.__dict__) == before
