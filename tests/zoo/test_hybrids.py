"""Models some of whose layers have no softmax attention: which layers settings may name, what is left out, what is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import sightline
from sightline import CalibrationError, UnsupportedModelError

from tests.helpers.engine import assert_message
from tests.zoo.prove import Subject


@functools.cache
def hybrid() -> Subject:
    """Linear layers with softmax layers behind every third of them."""
    subject = Subject("text", "qwen3_next")
    subject.take_host()
    return subject


def gains(*heads: list[int]) -> dict[str, Any]:
    return {"methods": [{"head_gain": {"head_list": list(heads)}}]}


def test_settings_name_the_models_own_layers() -> None:
    subject = hybrid()
    (softmax,) = subject.layers
    with sightline.attach(subject.model, gains([softmax, 1])):
        edited = subject.answer(subject.prompts())
    assert (edited - subject.answer(subject.prompts())).abs().max() > 1e-3


def test_a_layer_without_softmax_attention_cannot_be_named() -> None:
    subject = hybrid()
    with pytest.raises(CalibrationError) as caught:
        sightline.attach(subject.model, gains([0, 1]))
    assert_message(caught.value, "layer 0", "no softmax attention", str(subject.layers[0]))


def test_the_report_names_the_layers_that_run_plain() -> None:
    subject = hybrid()
    with sightline.attach(subject.model, "zerotuning") as plug:
        subject.answer(subject.prompts())
        left_out = plug.report()["zerotuning"]["left_out"]
    assert left_out == [n for n in range(4) if n not in subject.layers]


def test_a_copy_that_would_need_states_of_its_own_is_refused() -> None:
    """CAD's copy reads another prompt: its linear layers would have other states."""
    subject = hybrid()

    def context(ids: Any) -> Any:
        """The second and third token."""
        marked = ids == -1
        marked[:, -4:-2] = True
        return marked

    with (
        sightline.attach(subject.model, {"decoder": {"cad": {}}}, context=context),
        pytest.raises(UnsupportedModelError) as caught,
    ):
        subject.answer(subject.prompts())
    assert_message(caught.value, "states of its own", "LinearAttentionLayer", "layer 0")
    subject.answer(subject.prompts())
