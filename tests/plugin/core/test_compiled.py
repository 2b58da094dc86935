"""Decode steps in a compiled graph: the same numbers, no graph break, one graph whatever the prompt.

The backend runs the captured graph as it is, so that what is tested is the capture; `make test-all` has the other methods
and decoders.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import sightline
import torch
from sightline.common.errors import LayoutError, UncompiledWarning
from sightline.plugin.core.compiled import GRAPHS
from transformers import CompileConfig, StaticCache

from tests.helpers import naive, tiny
from tests.helpers.engine import Answer, calibration, entry, generate, prompts, shared

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
#: A copy that shares the prompt, one that reads it beside, one with a shorter prompt and one with a longer.
COPIES = ("decore", "hicd", "cad", "icd", "vcd", "avisc", "m3id", "pai_guidance")
PARTLY = {"signal": "entropy", "scale": 1.0}


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Any:
    case = shared(getattr(request, "param", "llava"))
    _forget(case)
    yield case
    _forget(case)


def _forget(case: tiny.TinyCase) -> None:
    """Let go of all graphs."""
    case.model.__dict__.pop(GRAPHS, None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


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


def _some(names: tuple[str, ...], *kept: str) -> list[Any]:
    return [pytest.param(name, marks=() if name in kept else pytest.mark.matrix) for name in names]


def _both(case: tiny.TinyCase, kind: str, **how: Any) -> tuple[Answer, Answer]:
    """Uncompiled and compiled."""
    static = {"cache_implementation": "static", "max_new_tokens": 6, **how}
    plain = generate(case.model, prompts(case, kind), disable_compile=True, **static)
    return plain, generate(case.model, prompts(case, kind), compile_config=_config(), **static)


def _assert_close(ours: Answer, reference: Answer) -> None:
    assert ours.tokens.tolist() == reference.tokens.tolist()
    torch.testing.assert_close(ours.logits, reference.logits, atol=1e-4, rtol=1e-4)


def _doubt(case: tiny.TinyCase) -> float:
    """The plain model's median entropy."""
    logits = generate(case.model, prompts(case, "padded"), max_new_tokens=6).logits
    return float(torch.distributions.Categorical(logits=logits).entropy().median())


def _attach(case: tiny.TinyCase, config: dict[str, Any], **options: Any) -> sightline.Plug:
    return sightline.attach(case.model, config, calibration={**_calibration(case), **naive.sections(case)}, **options)


@pytest.mark.parametrize("case", [pytest.param("llava", marks=pytest.mark.matrix), "llava_gqa"], indirect=True)
@pytest.mark.parametrize("name", _some(COPIES, "decore", "icd"))
def test_a_copy_of_the_model_is_compiled_with_it(case: tiny.TinyCase, name: str) -> None:
    """Its rows are rows of the pass: as many graphs as plain needs for prompts of other lengths, however often attached."""
    kinds = ("one", "other") if name == "decore" else ("padded",)
    for kind in kinds:
        _both(case, kind)
    plain = _compiled()
    _forget(case)
    setup = naive.SETUPS[name]
    for _ in range(2):
        with _attach(case, {"decoder": setup.config}, **setup.options):
            for kind in kinds:
                reference, ours = _both(case, kind)
                _assert_close(ours, reference)
    assert _compiled() == plain == 1


def test_a_copied_model_has_graphs_of_its_own(case: tiny.TinyCase) -> None:
    setup = naive.SETUPS["decore"]
    with _attach(case, {"decoder": setup.config}, **setup.options):
        _answers(case, "one", compile_config=_config())
    mine = case.model.__dict__[GRAPHS]
    assert mine.functions
    assert mine.stand_ins
    theirs = copy.deepcopy(case.model).__dict__[GRAPHS]
    assert not theirs.functions
    assert not theirs.stand_ins


@pytest.mark.parametrize("name", _some(("decore", "hicd", "cad", "icd"), "icd"))
def test_a_copy_goes_on_uncompiled(case: tiny.TinyCase, name: str) -> None:
    """What the graph has added to its keys is there for a pass without one, and the model's cache holds the model's rows."""
    setup, inputs = naive.SETUPS[name], prompts(case, "padded")
    wanted = {
        "return_dict_in_generate": True,
        "cache_implementation": "static",
        "max_new_tokens": 4,
        "do_sample": False,
    }
    logits = []
    with _attach(case, {"decoder": setup.config}, **setup.options):
        for how in ({"disable_compile": True}, {"compile_config": _config()}):
            out = case.model.generate(**inputs, **wanted, max_cache_len=64, **how)
            cache = out.past_key_values
            assert {len(layer.keys) for layer in cache.layers} == {3}
            for token in (5, 9):
                ids = torch.full((3, 1), token)
                mask = torch.ones(3, int(cache.get_seq_length()) + 1, dtype=torch.long)
                mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
                logits.append(case.model(ids, attention_mask=mask, past_key_values=cache).logits)
    assert _compiled() == 1
    torch.testing.assert_close(torch.cat(logits[2:]), torch.cat(logits[:2]), atol=1e-4, rtol=1e-4)


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["decore", "cad"])
def test_beams_are_compiled_where_plain_ones_are(case: tiny.TinyCase, name: str) -> None:
    _both(case, "pair", num_beams=2)
    plain = _compiled()
    _forget(case)
    setup = naive.SETUPS[name]
    with _attach(case, {"decoder": setup.config}, **setup.options):
        reference, ours = _both(case, "pair", num_beams=2)
    assert ours.tokens.tolist() == reference.tokens.tolist()
    assert _compiled() == plain


@pytest.mark.parametrize("name", _some(("decore", "hicd", "cad", "icd"), "cad"))
def test_a_cache_that_is_reordered_moves_the_rows_of_a_copy(case: tiny.TinyCase, name: str) -> None:
    """In a loop of one's own, two rows for each prompt: transformers' beam search does not compile."""
    setup, width = naive.SETUPS[name], 64
    inputs = {name: value.repeat_interleave(2, 0) for name, value in prompts(case, "pair").items()}
    length = inputs["input_ids"].shape[1]
    logits: list[torch.Tensor] = []
    with _attach(case, {"decoder": setup.config}, **setup.options):
        for call in (case.model, case.model.get_compiled_call(_config())):
            cache = StaticCache(config=case.model.config.get_text_config(), max_cache_len=width)
            case.model(**inputs, past_key_values=cache)
            valid = torch.nn.functional.pad(inputs["attention_mask"].bool(), (0, width - length))
            for step, rows in enumerate(([0, 1, 2, 3], [1, 0, 3, 3], [1, 1, 3, 2])):
                cache.reorder_cache(torch.tensor(rows))
                valid[:, length + step] = True
                mask = torch.zeros(4, 1, 1, width).masked_fill(~valid[:, None, None], torch.finfo(torch.float32).min)
                ids = torch.tensor([[5], [11], [8], [7]]) + step
                positions = valid.sum(1, keepdim=True) - 1
                out = call(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
                logits.append(out.logits.clone())
    assert _compiled() == 1
    torch.testing.assert_close(torch.cat(logits[3:]), torch.cat(logits[:3]), atol=1e-4, rtol=1e-4)


def test_a_cache_that_is_reordered_across_prompts_is_refused(case: tiny.TinyCase) -> None:
    setup, inputs = naive.SETUPS["cad"], prompts(case, "pair")
    with _attach(case, {"decoder": setup.config}, **setup.options):
        cache = case.model(**inputs).past_key_values
        with pytest.raises(LayoutError, match="across prompts"):
            cache.reorder_cache(torch.tensor([1, 0]))


@pytest.mark.parametrize("by", ["previous", pytest.param("now", marks=pytest.mark.matrix)])
@pytest.mark.parametrize("name", _some(("head_gain", "pai", "spotlight", "locore", "focus"), "pai", "spotlight"))
def test_a_gate_opens_and_shuts_in_one_graph(case: tiny.TinyCase, name: str, by: str) -> None:
    method = entry(name, **SPANS.get(name, {}))[name]
    when = {**PARTLY, "above": _doubt(case), "by": by}
    with _attach(case, {"methods": [{name: {**method, "when": when}}]}) as plug:
        reference, ours = _both(case, "padded")
        opened = plug.report()[name]["gate"]["opened"]
    assert 0 < sum(opened) < 3 * 6, "the gate does not change"
    _assert_close(ours, reference)
    assert _compiled() == 1


@pytest.mark.parametrize("which", ["both", pytest.param("decoder", marks=pytest.mark.matrix)])
def test_a_method_under_a_gate_rides_with_a_copy(case: tiny.TinyCase, which: str) -> None:
    """The method's rule speaks of the rows of one part at a time; only a copy that reads the same prompt carries it."""
    when = {**PARTLY, "above": _doubt(case)}
    decoder = {"decore": {"heads": 3, "when": when}}
    methods = [{"ocr_sink": {**entry("ocr_sink")["ocr_sink"], "when": when}}, entry("locore")]
    with _attach(case, {"decoder": decoder, "methods": methods if which == "both" else []}):
        reference, ours = _both(case, "padded")
    _assert_close(ours, reference)
    assert _compiled() == 1


@pytest.mark.matrix
@pytest.mark.parametrize("method", ["locore", "ocr_sink", "pai", "head_gain", "focus"])
def test_a_copy_of_another_prompt_is_left_alone_by_methods(case: tiny.TinyCase, method: str) -> None:
    setup = naive.SETUPS["cad"]
    with _attach(case, {"decoder": setup.config, "methods": [entry(method)]}, **setup.options):
        reference, ours = _both(case, "padded")
    _assert_close(ours, reference)
    assert _compiled() == 1


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"decoder": {"juice": {"heads": 2}}}, {}),
        ({"decoder": naive.SETUPS["sid"].config}, {}),
        ({"methods": [entry("vhr")]}, {"trace": {"maps": True}}),
    ],
    ids=["a copy whose heads see the model's", "a copy that each token changes", "a trace with maps"],
)
def test_what_cannot_be_compiled_runs_and_says_so_once(
    case: tiny.TinyCase, config: dict[str, Any], options: dict[str, Any]
) -> None:
    with _attach(case, config, **options):
        plain = _answers(case, "one", disable_compile=True)
        with pytest.warns(UncompiledWarning) as said:
            got = _answers(case, "one", compile_config=_config())
        assert len([one for one in said if one.category is UncompiledWarning]) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error", UncompiledWarning)
            _answers(case, "one", compile_config=_config())
    torch.testing.assert_close(got, plain, atol=0, rtol=0)
    assert _compiled() == 0
