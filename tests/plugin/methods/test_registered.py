"""Whatever is registered has a naive float64 reference and equals it; what has none fails here by its name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import sightline
import torch
from sightline.plugin.branches.decoder import DECODERS

from tests.helpers import naive, tiny
from tests.helpers import reference as ref
from tests.helpers.cases import _case, _compare, _gaze, _gift, _var, _vhr
from tests.helpers.engine import METHODS, entry, generate
from tests.helpers.rules import (
    SOME,
    compare,
    focus,
    gain_table,
    locore,
    ocr_sink,
    paint,
    pasta,
    scaled,
    spotlight,
    vaf,
    zerotuning,
)

FAMILY = "llava_gqa"
LAYERS = list(range(tiny.LAYERS))


def _gift_as_published() -> None:
    case, gaze = _case("gqa"), _gaze("late", 6)
    _compare(case, [{"gift": {}}], [_gift(**gaze)], calibration=case.calibration(**gaze))


def _focused() -> None:
    heads, directions = [(1, 3), (3, 0)], np.random.default_rng(2).normal(size=(2, tiny.HIDDEN // tiny.HEADS))
    known = {"focus_heads": {"heads": [list(head) for head in heads], "directions": directions.tolist()}}
    compare(FAMILY, {"focus": {"factor": 3.0}}, focus(3.0, heads, directions), **known)


def _in_rows_of_all(name: str, **settings: object) -> None:
    compare(FAMILY, {name: {"head_list": SOME, **settings}}, scaled(gain_table(SOME, 0.0)))


def _gated(name: str, when: dict[str, object], reference: naive.Reference) -> None:
    case = tiny.get(FAMILY)
    prompt, model = case.inputs(1), naive.of(case.model)
    config = {"methods": [{name: {"layers": [1, 2], "when": when}}]}
    with sightline.attach(case.model, config, query=naive.question):
        answer = generate(case.model, prompt)
    expected = reference(model, prompt, answer.tokens[0, :-1].tolist())
    torch.testing.assert_close(answer.scores[0].double(), expected, atol=1e-4, rtol=1e-4)
    assert (expected - naive.Reference()(model, prompt, answer.tokens[0, :-1].tolist())).abs().max() > 1e-2


#: How each method is held against its reference, once; its own test file goes through the settings and families.
REFERENCES: dict[str, Callable[[], object]] = {
    "vhr": lambda: _compare(_case("gqa"), [{"vhr": {}}], [_vhr(_case("gqa"))]),
    "var": lambda: _compare(_case("gqa"), [{"var": {}}], [_var(_case("gqa"))]),
    "gift": _gift_as_published,
    "pai": lambda: _compare(
        _case("gqa"), [{"pai": {"alpha": 0.5}}], [lambda: ref.Boost(lambda p: 0.5 * p.image, list(range(2, 6)))]
    ),
    "vaf": lambda: compare(FAMILY, {"vaf": {"enhance": 1.6, "suppress": 0.5, "layers": [1, 2]}}, vaf(1.6, 0.5, [1, 2])),
    "paint": lambda: compare("deep", {"paint": {}}, paint(0.7, 0.3, 0.25, [2, 3])),
    "zerotuning": lambda: compare(
        FAMILY, {"zerotuning": {"gain": 4.0}}, zerotuning(np.full((tiny.LAYERS, tiny.HEADS), 4.0))
    ),
    "pasta": lambda: compare(FAMILY, {"pasta": {"alpha": 0.01, "head_list": SOME}}, pasta(0.01, SOME)),
    "spotlight": lambda: compare(FAMILY, {"spotlight": {"target": 0.6}}, spotlight(0.6, "exact", "head", LAYERS)),
    "locore": lambda: compare(
        FAMILY, {"locore": {"beta": 0.5, "layers": [1]}}, locore(0.5, 32, [1], logit=False, renormalise=True)
    ),
    "ocr_sink": lambda: compare(FAMILY, {"ocr_sink": {"beta": 0.4, "head_list": SOME}}, ocr_sink(0.4, SOME)),
    "focus": _focused,
    "cgvlm": lambda: _gated(
        "cgvlm",
        {"signal": "interaction", "above": 1.5, "picture": "random"},
        naive.CGVLM(threshold=1.5, layers=[1, 2]),
    ),
    "cai": lambda: _gated(
        "cai", {"signal": "entropy", "above": 4.5, "by": "layer"}, naive.CAI(layers=[1, 2], above=4.5)
    ),
    "faith": lambda: _in_rows_of_all("faith", rows="all"),
    "head_gain": lambda: _in_rows_of_all("head_gain", gain=0.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_equals_a_reference(name: str) -> None:
    assert entry(name)
    REFERENCES[name]()


@pytest.mark.parametrize("name", DECODERS.known())
def test_every_decoder_has_a_reference(name: str) -> None:
    """`tests/decoders` runs each of the setups, so a decoder without one would go untested."""
    assert name in {setup.name for setup in naive.SETUPS.values()}
