"""The prompt's text beside the prompt, in one pass, against the same text in a pass of its own."""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline.plugin.reading.beside import TextBeside

from tests.helpers import naive, tiny
from tests.helpers.engine import Answer, calibration, decoder_layers, entry, generate, prompts, shared

pytestmark = pytest.mark.filterwarnings("ignore::sightline.NoEffectWarning")
FAMILIES = tiny.names(images=True)
APART = {"gemma3": "its layers are told different things", "mllama": "some read the image by cross-attention"}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    with tiny.one_thread():
        yield


def say(family: str, kind: str, more: dict[str, Any] | None = None, **how: Any) -> tuple[Answer, Any, int]:
    """The answer, the report, and how often the first layer ran for the first token."""
    case, calls = shared(family), []
    handle = decoder_layers(case.model)[0].register_forward_hook(lambda *_: calls.append(1))
    config = {"methods": [entry("vhr")], **(more or {})}
    facts = calibration(case, **naive.sections(case))
    try:
        with sightline.attach(case.model, config, calibration=facts) as plug:
            calls.clear()
            answer = generate(case.model, prompts(case, kind), **how)
            return answer, plug.report(), len(calls) - (answer.tokens.shape[1] - 1)
    finally:
        handle.remove()


def both(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **how: Any) -> tuple[int, int]:
    """Compares the two ways; returns how often the first layer ran."""
    ours, report, passes = say(*arguments, **how)
    with monkeypatch.context() as patch:
        patch.setattr(TextBeside, "possible", staticmethod(lambda host, kwargs: False))
        apart, expected, twice = say(*arguments, **how)
    torch.testing.assert_close(ours.scores, apart.scores, atol=2e-5, rtol=1e-5)
    assert ours.tokens.tolist() == apart.tokens.tolist()
    assert report == expected
    return passes, twice


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_that_of_a_pass_of_its_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("padded", "mixed" if shared(family).uneven else "images"):
        passes, twice = both(monkeypatch, family, kind)
        assert (passes, twice) == ((2, 2) if family in APART else (1, 2)), kind


@pytest.mark.parametrize("how", [{"cache_implementation": "static"}, {"num_beams": 2}], ids=["static cache", "beams"])
def test_other_caches(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert both(monkeypatch, "llava_gqa", "pair", **how) == (1, 2)


@pytest.mark.parametrize(
    ("more", "passes"),
    [
        ({"decoder": "dola"}, 1),  # it looks at the model alone
        ({"decoder": {"decore": {"heads": 6}}}, 2),  # its copy rides in the same pass
        ({"decoder": "vcd"}, 3),  # its copy reads the prompt, too
        ({"methods": [entry("vhr"), entry("var")]}, 1),
    ],
)
def test_beside_others(more: dict[str, Any], passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert both(monkeypatch, "llava_gqa", "padded", more)[0] == passes


def test_a_pass_that_returns_more_than_logits_is_as_the_model_makes_it() -> None:
    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    with sightline.attach(case.model, {"methods": [entry("vhr")]}, calibration=calibration(case)):
        out = case.model(**inputs, use_cache=True, output_hidden_states=True)
    assert {state.shape[1] for state in out.hidden_states} == {inputs["input_ids"].shape[1]}
    with sightline.attach(case.model, {"methods": [entry("vhr")]}, calibration=calibration(case)):
        out = case.model.generate(**inputs, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True)
    assert {state.shape[1] for state in out.hidden_states[0]} == {inputs["input_ids"].shape[1]}


def test_a_long_text_has_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.plugin.reading.beside.MOST", 3)
    assert both(monkeypatch, "llava_gqa", "padded") == (2, 2)
