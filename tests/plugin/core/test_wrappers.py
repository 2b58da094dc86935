"""Models inside wrappers: peft, torch.compile, data parallelism, and wrappers that nobody knows."""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline import UnsupportedModelError
from sightline.plugin.core.wrappers import inner_model
from torch import nn

from tests.helpers import tiny
from tests.helpers.engine import calibration, entry, generate, prompts, shared

CONFIG = {"methods": [entry("gift")], "decoder": "vcd"}


class Adapted(nn.Module):
    """Holds a model as peft does: its own `forward` and `generate` call the model's inside."""

    def __init__(self, model: Any):
        super().__init__()
        self.base_model = model
        self.peft_config: dict[str, Any] = {}

    def get_base_model(self) -> Any:
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model.generate(*args, **kwargs)


class Foreign(Adapted):
    """The same without a name that tells what is inside."""

    get_base_model = None  # type: ignore[assignment]


WRAPPERS: dict[str, Any] = {
    "adapter": Adapted,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data parallel": lambda model: nn.DataParallel(model),
    "two": lambda model: torch.compile(Adapted(model), backend="eager"),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapper_answers_as_the_model_inside(kind: str) -> None:
    case, inputs = shared("llava_gqa"), prompts(shared("llava_gqa"), "padded")
    wrapped, known = WRAPPERS[kind](case.model), calibration(case)
    assert inner_model(wrapped) is case.model
    with sightline.attach(case.model, CONFIG, calibration=known):
        expected, logits = generate(case.model, inputs), case.model(**inputs).logits
    bare = generate(case.model, inputs)
    assert not bare.same_bits(expected)
    with sightline.attach(wrapped, CONFIG, calibration=known) as plug:
        speaker = wrapped if hasattr(wrapped, "generate") else wrapped.module
        assert generate(speaker, inputs).same_bits(expected)
        assert plug.report()["gift"]["acted"]
        assert torch.equal(wrapped(**inputs).logits, logits)
        assert torch.equal(case.model(**inputs).logits, logits)
    assert generate(case.model, inputs).same_bits(bare)


def test_wrap_and_unwrap_through_a_wrapper() -> None:
    case, inputs = shared("llava_gqa"), prompts(shared("llava_gqa"), "one")
    wrapped, bare = Adapted(case.model), generate(shared("llava_gqa").model, inputs)
    assert sightline.wrap(wrapped, CONFIG, calibration=calibration(case)) is wrapped
    assert not generate(wrapped, inputs).same_bits(bare)
    assert sightline.unwrap(case.model) is case.model
    assert generate(wrapped, inputs).same_bits(bare)


def test_scores_through_a_wrapper() -> None:
    case, inputs = shared("llava_gqa"), prompts(shared("llava_gqa"), "one")
    with sightline.attach(Adapted(case.model), CONFIG, calibration=calibration(case)):
        mine = sightline.score(Adapted(case.model), inputs, [[[5, 6], [7]]])
        assert mine == sightline.score(case.model, inputs, [[[5, 6], [7]]])


@pytest.mark.parametrize(
    ("wrapped", "words"),
    [
        (lambda model: Foreign(model), "attach to the model inside, here model.base_model"),
        (lambda model: nn.Linear(2, 2), "no transformers model"),
        (lambda model: "llava", "no transformers model"),
    ],
)
def test_what_cannot_be_seen_through_is_refused(wrapped: Any, words: str) -> None:
    case = shared("llava_gqa")
    with pytest.raises(UnsupportedModelError, match=words):
        sightline.attach(wrapped(case.model), CONFIG, calibration=calibration(case))
    assert "forward" not in case.model.__dict__


def test_learned_prompts_are_refused() -> None:
    wrapped = Adapted(shared("llava_gqa").model)
    wrapped.peft_config = {"default": type("Prefix", (), {"is_prompt_learning": True})()}
    with pytest.raises(UnsupportedModelError, match="learned tokens"):
        sightline.attach(wrapped, {})


@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl"])
def test_an_adapted_model_equals_the_merged_one(family: str) -> None:
    peft = pytest.importorskip("peft")
    case = tiny.get(family)  # a model of its own: peft puts its layers into it
    inputs, known = prompts(case, "padded"), calibration(shared(family))
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(case.model, lora)
    with sightline.attach(adapted, CONFIG, calibration=known) as plug:
        mine = generate(adapted, inputs)
        assert plug.report()["gift"]["acted"]
    bare = generate(adapted, inputs)
    merged = adapted.merge_and_unload()
    with sightline.attach(merged, CONFIG, calibration=known):
        theirs = generate(merged, inputs)
    assert torch.equal(mine.tokens, theirs.tokens)
    torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mine.logits, bare.logits, atol=1e-3)
