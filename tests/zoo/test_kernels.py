"""What an attached model runs on where sdpa cannot compute its attention: learned sinks, capped logits."""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline import UnsupportedModelError
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from tests.helpers.engine import assert_message
from tests.zoo.prove import CHECKS, Subject

NOTHING: dict[str, Any] = {"methods": []}


@pytest.fixture
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before transformers 5.24: Gemma 2 says that sdpa computes it, and sdpa takes no notice of the cap."""

    def sdpa(*args: Any, softcap: float | None = None, **kwargs: Any) -> Any:
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sdpa)


@pytest.mark.usefixtures("_silent")
@pytest.mark.parametrize("check", [True, False])
def test_a_cap_that_sdpa_leaves_out_is_named(check: bool) -> None:
    subject = Subject("text", "gemma2")
    plain = subject.answer(subject.prompts())
    with pytest.raises(UnsupportedModelError) as caught, sightline.attach(subject.model, NOTHING, check=check):
        subject.answer(subject.prompts())
    assert_message(caught.value, "sdpa", "softcap", "Gemma2Attention", "attn_implementation='eager'", "newer")
    assert torch.equal(subject.answer(subject.prompts()), plain)


@pytest.mark.usefixtures("_silent")
@pytest.mark.parametrize("check", ["empty", "bias", "reweight", "decore", "detach"])
def test_loaded_on_eager_it_has_its_cap(check: str) -> None:
    subject = Subject("text", "gemma2", "eager")
    subject.take_host()
    CHECKS[check](subject)
    with sightline.attach(subject.model, NOTHING) as plug:
        assert plug._host.stage.eager


@pytest.mark.parametrize(("name", "kernel"), [("gpt_oss", "flex_attention"), ("gemma2", "flex_attention")])
def test_loaded_on_another_kernel_it_runs_on_eager(name: str, kernel: str) -> None:
    """The check holds it against eager, not against what sdpa would make of it."""
    eager, flex = Subject("text", name, "eager"), Subject("text", name, kernel)
    with sightline.attach(eager.model, NOTHING):
        expected = eager.answer(eager.prompts())
    with sightline.attach(flex.model, NOTHING):
        assert torch.equal(flex.answer(flex.prompts()), expected)
    assert flex.model.config._attn_implementation == kernel
