"""Decode steps in a compiled graph: the same bits, no graph break, one graph whatever the prompt.

The backend runs the captured graph as it is, so that what is tested is the capture; `make test-all` has the other methods.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import sightline
import torch
from sightline.common.errors import UncompiledWarning
from sightline.plugin.core.compiled import GRAPHS
from transformers import CompileConfig

from tests.helpers import tiny
from tests.helpers.engine import calibration, entry, generate, prompts, shared

METHODS = (
    "head_gain",
    "gift",
    "vhr",
    "var",
    "pai",
    "zerotuning",
    "locore",
    "ocr_sink",
    "pasta",
    "spotlight",
    "focus",
    "vaf",
)
SPANS: dict[str, dict[str, Any]] = {"pasta": {"span": "question"}, "spotlight": {"span": "image"}}


@pytest.fixture
def case() -> Any:
    case = shared("llava")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield case
    case.model.__dict__.pop(GRAPHS, None)
    torch._dynamo.reset()


def _config() -> CompileConfig:
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    return config


def _calibration(case: tiny.TinyCase) -> dict[str, Any]:
    text = case.model.config.get_text_config()
    scores = torch.rand(text.num_hidden_layers, text.num_attention_heads, generator=torch.Generator().manual_seed(0))
    return calibration(case, retrieval_heads={"scores": scores.tolist()})


def _compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _answers(case: tiny.TinyCase, kind: str, **how: Any) -> torch.Tensor:
    return generate(case.model, prompts(case, kind), cache_implementation="static", **how).logits


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in METHODS[:2] else pytest.mark.matrix) for name in METHODS]
)
def test_one_graph_serves_every_prompt(case: tiny.TinyCase, method: str) -> None:
    config = {"methods": [entry(method, **SPANS.get(method, {}))]}
    with sightline.attach(case.model, config, calibration=_calibration(case)):
        for kind in ("one", "other"):  # the second is shorter
            plain = _answers(case, kind, disable_compile=True)
            torch.testing.assert_close(_answers(case, kind, compile_config=_config()), plain, atol=0, rtol=0)
            assert _compiled() == 1
    with sightline.attach(case.model, config, calibration=_calibration(case)):  # a second attachment finds the graph
        torch.testing.assert_close(_answers(case, "other", compile_config=_config()), plain, atol=0, rtol=0)
        assert _compiled() == 1


@pytest.mark.matrix
def test_two_kinds_of_plan_are_two_graphs(case: tiny.TinyCase) -> None:
    with sightline.attach(case.model, {"methods": [entry("vhr")]}, calibration=_calibration(case)):
        outer = _answers(case, "one", compile_config=_config())
        with sightline.attach(case.model, {"methods": [entry("pai")]}, calibration=_calibration(case)):
            inner = _answers(case, "one", compile_config=_config())
            assert _compiled() == 2
        again = _answers(case, "one", compile_config=_config())
        assert _compiled() == 2
    torch.testing.assert_close(again, outer, atol=0, rtol=0)
    assert not torch.equal(inner, outer)


@pytest.mark.parametrize(
    ("config", "options"),
    [({"decoder": {"decore": {"heads": 3}}}, {}), ({"methods": [entry("vhr")]}, {"trace": {"maps": True}})],
    ids=["a copy beside the model", "a trace with maps"],
)
def test_what_cannot_be_compiled_runs_and_says_so_once(
    case: tiny.TinyCase, config: dict[str, Any], options: dict[str, Any]
) -> None:
    with sightline.attach(case.model, config, calibration=_calibration(case), **options):
        plain = _answers(case, "one", disable_compile=True)
        with pytest.warns(UncompiledWarning) as said:
            got = _answers(case, "one", compile_config=_config())
        assert len([one for one in said if one.category is UncompiledWarning]) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error", UncompiledWarning)
            _answers(case, "one", compile_config=_config())
    torch.testing.assert_close(got, plain, atol=0, rtol=0)
    assert _compiled() == 0
