"""The subset that `studies.gpu` runs on a card, without one: on a device that is pretended, and in half precision here."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from studies.gpu import conformance
from studies.gpu.conformance import FAMILIES, Case
from tests.helpers import tiny
from tests.helpers.devices import FAR, TwoDevices, between, place, put
from tests.helpers.engine import decoder_layers
from tests.helpers.matrix import covering

CASES = [(case.family, case.name) for family in FAMILIES for case in conformance.cases(family)]
#: Gemma makes its masks by vmap, which no pretended device can follow.
AWAY = ("llava_onevision", *(family for family in FAMILIES if family != "gemma3"))
AWAY_CASES = [(case.family, case.name) for family in AWAY for case in conformance.cases(family)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with conformance.exact("cpu"):
        yield


@pytest.fixture(scope="module")
def away() -> dict[str, object]:
    """Models that are wholly on another device, by family."""
    return {family: put(copy.deepcopy(tiny.get(family).model)) for family in AWAY}


@pytest.mark.parametrize(("family", "name"), covering(AWAY_CASES))
def test_everything_is_made_where_the_model_is(away: dict[str, object], family: str, name: str) -> None:
    """And no layer of a decode step waits for the device."""
    case, model = Case(family, name), away[family]
    tokens, expected = conformance.expected(case, "padded")
    inputs = put(conformance.inputs_of(family, "padded", "float32", "cpu"))
    with TwoDevices() as devices:
        waits: Counter[str] = Counter()
        begin, end = (lambda: setattr(devices, "waits", waits)), (lambda: setattr(devices, "waits", None))
        with between(decoder_layers(model), begin, end):
            _, scores = conformance.said(case, model, inputs, put({"tokens": tokens.clone()})["tokens"])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert not waits, waits


@pytest.mark.parametrize(("family", "name"), covering(CASES))
def test_half_precision(family: str, name: str) -> None:
    """Close to what float32 says, and finite where that is."""
    for dtype in ("bfloat16", "float16"):
        row = conformance.measure(Case(family, name), "padded", dtype, "cpu")
        assert conformance.passes(row, dtype), row


def test_the_pretended_device_tells_a_tensor_that_was_left_behind() -> None:
    far = put({"x": torch.ones(3)})["x"]
    with TwoDevices() as devices:
        assert place(far * 2) == place(torch.ones_like(far)) == FAR
        with pytest.raises(AssertionError, match="tensors on"):
            far + torch.ones(3)
        devices.waits = Counter()
        assert far.sum() > 0
        far[far > 0].tolist()
        assert devices.waits == {"__bool__": 1, "__getitem__": 1, "tolist": 1}


def test_a_wrong_answer_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 is held to what the CPU says, not to something like it."""
    case = Case("llava_gqa", "vhr")
    assert conformance.passes(conformance.measure(case, "one", "float32", "cpu"), "float32")
    plain = Case("llava_gqa", "plain").attached
    conformance.expected(case, "one")
    monkeypatch.setattr(Case, "attached", plain)
    for dtype in conformance.BOUNDS:
        assert not conformance.passes(conformance.measure(case, "one", dtype, "cpu"), dtype)
