"""Gates: the right rows at the right strength, for the right number of passes, whatever they are put on.

`Gated` in `naive.py` says what an answer is, token by token, each in runs of its own. An open gate has the bits of no
gate, a shut one those of the plain model: that runs over all methods, and over the ways of calling `generate`.
"""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline import CalibrationError, ConfigError, LayoutError, UnsupportedModelError

from tests.helpers import naive, tiny
from tests.helpers.engine import METHODS, NEW, calibration, entry, fits, generate, prompts, shared
from tests.helpers.matrix import covering
from tests.helpers.modes import MODES
from tests.helpers.refusal import refused

FAMILY = "llava_gqa"
FAMILIES = ["llava_gqa", "qwen2_vl", "gemma3", "instructblip"]
CASES = [(family, name) for family in FAMILIES for name in METHODS if fits(name, family)]
GROUNDING = {"heads": [[1, 2], [3, 0]], "weights": {"entropy": -1.0, "image": 4.0, "query": 2.0}, "threshold": -2.0}
CUT = {"auroc": 0.7, "of_hallucinated": 0.6, "of_true": 0.2}
THRESHOLDS = {
    "words": 30,
    "wrong": 10,
    "now": {
        "entropy": {"value": 4.6, "side": "above", **CUT},
        "probability": {"value": 0.08, "side": "below", **CUT},
        "image_attention": {"value": 0.42, "side": "above", **CUT},
    },
    "previous": {
        "entropy": {"value": 4.56, "side": "above", **CUT},
        "probability": {"value": 0.09, "side": "below", **CUT},
        "image_attention": {"value": 0.082, "side": "below", **CUT},
    },
}
WEIGHTS, HEADS = {"entropy": -1.0, "image": 4.0, "query": 2.0}, [(1, 2), (3, 0)]


def facts(family: str, **more: Any) -> dict[str, Any]:
    return {
        **calibration(shared(family)),
        **naive.sections(shared(family)),
        "grounding": GROUNDING,
        "gate_thresholds": THRESHOLDS,
        **more,
    }


def attach(family: str, config: dict[str, Any], **options: Any) -> sightline.Plug:
    options = {"query": naive.question, **options}
    return sightline.attach(shared(family).model, config, calibration=facts(family), **options)


def pai(**when: Any) -> dict[str, Any]:
    return {"methods": [{"pai": {"alpha": 1.0, "when": when}}]}


# --- open and shut ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["previous", "now"])
@pytest.mark.parametrize(("family", "name"), covering(CASES))
@pytest.mark.filterwarnings("ignore::sightline.NoEffectWarning")
def test_always_open_is_no_gate_and_never_open_is_plain(family: str, name: str, by: str) -> None:
    """Down to the bits, in greedy search, in beams and with a static cache."""
    case = shared(family)
    settings = {**entry(name)[name], **({"rows": "all"} if name == "faith" else {})}
    for mode in ("padded", "static", "beams"):
        kind, how = MODES[mode]
        inputs = prompts(case, kind)
        plain = generate(case.model, inputs, **how)
        answers = []
        for above in (None, -1.0, 1e6):
            when = None if above is None else {"signal": "entropy", "above": above, "by": by}
            with attach(family, {"methods": [{name: {**settings, "when": when}}]}) as plug:
                answers.append(generate(case.model, inputs, **how))
                report = plug.report()[name]
            if above is not None:
                opened = NEW if above < 0 else 0
                assert report["gate"]["decided"] == NEW
                assert report["gate"]["opened"] == [opened] * len(report["gate"]["opened"])
                assert report["gate"].get("again", max(opened - 1, 0)) == max(opened - 1, 0), "the prompt is rehearsed"
                assert report["acted"] == bool(opened)
        assert answers[1].same_bits(answers[0]), mode
        assert answers[2].same_bits(plain), mode


@pytest.mark.parametrize("name", naive.SETUPS)
def test_a_gate_on_a_decoder(name: str) -> None:
    """An open one is no gate; under a shut one the scores are the model's own, whose pass carries the copy all the same."""
    case, setup = shared(FAMILY), naive.SETUPS[name]
    inputs = prompts(case, "padded")
    plain = generate(case.model, inputs)
    with attach(FAMILY, {"decoder": setup.config}, **setup.options):
        free = generate(case.model, inputs)
    for by in ("previous", "now"):
        for above, expected in ((-1.0, free), (1e6, plain)):
            config = {"when": {"signal": "entropy", "above": above, "by": by}, "decoder": setup.config}
            with attach(FAMILY, config, **setup.options):
                ours = generate(case.model, inputs)
            assert ours.tokens.tolist() == expected.tokens.tolist()
            torch.testing.assert_close(ours.scores, expected.scores, atol=1e-4, rtol=1e-4)


# --- the right rows --------------------------------------------------------------------------------------------------

#: Each signal with a threshold that opens at some tokens of the answers below, and not at others.
GATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "entropy before": ({"signal": "entropy", "above": 4.56}, {"above": 4.56}),
    "entropy now": ({"signal": "entropy", "above": 4.56, "by": "now"}, {"above": 4.56, "now": True}),
    "probability now": (
        {"signal": "probability", "below": 0.08, "by": "now"},
        {"signal": "probability", "below": 0.08, "now": True},
    ),
    "image before": (
        {"signal": "image_attention", "below": 0.082},
        {"signal": "image_attention", "below": 0.082},
    ),
    "image now": (
        {"signal": "image_attention", "above": 0.42, "by": "now"},
        {"signal": "image_attention", "above": 0.42, "now": True},
    ),
    "grounding now": (
        {"signal": "grounding", "by": "now"},
        {"signal": "grounding", "below": -2.0, "now": True, "weights": WEIGHTS, "heads": HEADS},
    ),
    "divergence": ({"signal": "divergence", "above": 0.3}, {"signal": "divergence", "above": 0.3, "now": True}),
    "scaled before": ({"signal": "entropy", "above": 4.0, "scale": 1.0}, {"above": 4.0, "scale": 1.0}),
    "scaled now": (
        {"signal": "probability", "below": 0.2, "scale": 0.2, "by": "now"},
        {"signal": "probability", "below": 0.2, "scale": 0.2, "now": True},
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_methods_equal_their_reference(name: str) -> None:
    """Rows of a batch, beams and given answers; each strength is of its own row and of its own beam."""
    when, theirs = GATES[name]
    case = shared(FAMILY)
    batch, pair, model = prompts(case, "padded"), prompts(case, "pair"), naive.of(case.model)
    reference = naive.Gated(**theirs)
    with attach(FAMILY, pai(**when)) as plug:
        ours = generate(case.model, batch, max_new_tokens=6)
        opened = plug.report()["pai"]["gate"]["opened"]
        beams = generate(case.model, pair, max_new_tokens=4, num_beams=2).tokens.tolist()
        scored = sightline.score(case.model, pair, [[[20, 31, 150]], [[44, 12, 9]]])
    found = []
    for i, answer in enumerate(ours.tokens.tolist()):
        row = case.row(batch, i)
        torch.testing.assert_close(
            ours.scores[i].double(), reference(model, row, answer[:-1]), atol=1e-3, rtol=1e-3, msg=f"row {i}"
        )
        shares = reference.strengths(model, row, answer[:-1])
        assert opened[i] == sum(share > 0 for share in shares)
        found += shares
    assert min(found) < 1, "the gate is never shut, not even a little"
    assert max(found) > 0, "the gate is never open"
    for i in range(2):
        row = case.row(pair, i)
        assert beams[i] == naive.beams(model, reference, row, 4, 2)
        tokens = [[20, 31, 150], [44, 12, 9]][i]
        logs = reference(model, row, tokens)[:-1].log_softmax(-1)
        assert scored[i][0].tokens == pytest.approx(logs[range(3), tokens].tolist(), abs=1e-3)


@pytest.mark.parametrize("name", ["entropy before", "probability now", "image now", "divergence", "scaled now"])
@pytest.mark.parametrize("decoder", ["m3id", "vcd"])
def test_decoders_equal_their_reference(decoder: str, name: str) -> None:
    (when, theirs), setup = GATES[name], naive.SETUPS[decoder]
    case = shared(FAMILY)
    batch, model = prompts(case, "padded"), naive.of(case.model)
    reference = naive.Gated(other=setup.reference, **theirs)
    with attach(FAMILY, {"decoder": {decoder: {**setup.settings, "when": when}}}):
        ours = generate(case.model, batch, max_new_tokens=6)
    for i, answer in enumerate(ours.tokens.tolist()):
        expected = reference(model, case.row(batch, i), answer[:-1])
        torch.testing.assert_close(ours.scores[i].double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("by", ["previous", "now"])
@pytest.mark.parametrize("signal", ["entropy", "probability", "image_attention"])
def test_without_a_threshold_it_is_the_calibrated_one(signal: str, by: str, decoder: bool) -> None:
    case, known = shared(FAMILY), THRESHOLDS[by][signal]  # type: ignore[index]
    found = []
    for given in ({}, {known["side"]: known["value"]}):
        when = {"signal": signal, "by": by, **given}
        config = {"decoder": {"m3id": {"when": when}}} if decoder else pai(**when)
        with attach(FAMILY, config) as plug:
            answer = generate(case.model, prompts(case, "padded"), max_new_tokens=6)
        found.append((answer, plug.report()))
    (ours, report), (theirs, expected) = found
    assert ours.same_bits(theirs)
    assert report == expected
    if not decoder:
        opened = report["pai"]["gate"]["opened"]
        assert 0 < sum(opened) < 6 * len(opened)


def test_a_gate_of_the_whole_is_one_gate() -> None:
    """Methods and decoder act at the same tokens; what has a gate of its own keeps it."""
    case = shared(FAMILY)
    inputs = prompts(case, "padded")
    config = {
        "when": {"signal": "entropy", "above": 4.56, "by": "now"},
        "methods": [{"pai": {"alpha": 1.0}}, {"vhr": {"when": {"signal": "probability", "below": 0.0}}}],
        "decoder": "m3id",
    }
    with attach(FAMILY, config) as plug:
        generate(case.model, inputs, max_new_tokens=6)
        report = plug.report()
    assert report["pai"]["gate"] == report["m3id"]["gate"]
    assert report["vhr"]["gate"]["opened"] != report["pai"]["gate"]["opened"]


# --- the right cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "above"), [("previous", 4.56), ("now", 4.56), ("now", 1e6), ("now", -1.0)])
def test_passes(by: str, above: float) -> None:
    """By the previous token no pass is added; by the one under way, one where it opens, and the prompt's once."""
    case = shared(FAMILY)
    passes: list[int] = []
    layer = tiny.decoder(case.model).layers[0]
    hook = layer.register_forward_pre_hook(lambda module, args, kwargs: passes.append(1), with_kwargs=True)
    try:
        with attach(FAMILY, pai(signal="entropy", above=above, by=by)) as plug:
            passes.clear()
            generate(case.model, prompts(case, "one"), max_new_tokens=8)
            gate = plug.report()["pai"]["gate"]
    finally:
        hook.remove()
    again = gate.get("again", 0)
    assert len(passes) == 8 + again + (by == "now")
    if by == "now":
        assert gate["opened"][0] - again in (0, 1), "of the first token the rehearsal decides"


def test_a_trace_shows_each_token_once() -> None:
    case = shared(FAMILY)
    with attach(FAMILY, pai(signal="entropy", above=4.56, by="now"), trace=True) as plug:
        generate(case.model, prompts(case, "padded"), max_new_tokens=6)
        table = plug.trace
    for row in table:
        assert sum(row[name] for name in ("image", "query", "prompt", "output")) == pytest.approx(1, abs=1e-4)


# --- refusals --------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no threshold by layer": (
        {"signal": "entropy", "by": "layer"},
        ("methods[0].pai.when", "by: layer", "above", "below"),
    ),
    "no threshold ahead": ({"signal": "divergence"}, ("methods[0].pai.when", "divergence", "above", "below")),
    "two": ({"signal": "entropy", "above": 1.0, "below": 2.0}, ("methods[0].pai.when", "one of the two")),
    "a signal": ({"signal": "surprise", "above": 1.0}, ("methods[0].pai.when.signal", "entropy", "surprise")),
    "a key": ({"signal": "entropy", "abov": 1.0}, ("methods[0].pai.when.abov", "did you mean 'above'")),
    "a scale": ({"signal": "entropy", "above": 1.0, "scale": 0.0}, ("methods[0].pai.when.scale", "0")),
    "ahead of before": (
        {"signal": "divergence", "above": 1.0, "by": "previous"},
        ("methods[0].pai.when", "divergence", "previous"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings(name: str) -> None:
    when, words = WRONG[name]
    with refused(shared(FAMILY), ConfigError, *words):
        attach(FAMILY, pai(**when))


def test_where_it_means_nothing() -> None:
    case, text = shared(FAMILY), shared("llama")
    when = {"signal": "entropy", "above": 1.0}
    with refused(case, ConfigError, "faith", "when", "rows: all"):
        attach(
            FAMILY, {"methods": [{"faith": {"rows": "span", "span": "question", "head_list": [[0, 1]], "when": when}}]}
        )
    with refused(case, CalibrationError, "gate", "section 'grounding'"):
        sightline.attach(case.model, pai(signal="grounding"), calibration=calibration(case))
    for name in ("entropy", "probability", "image_attention"):
        with refused(
            case, CalibrationError, f"gate '{name}'", "section 'gate_thresholds'", "--profile gate-thresholds"
        ):
            sightline.attach(case.model, pai(signal=name), calibration=calibration(case))
    blind = {"signal": "divergence", "above": 0.1}
    with (
        refused(text, LayoutError, "gate on divergence", "image"),
        attach("llama", {"methods": [{"zerotuning": {"when": blind}}]}),
    ):
        generate(text.model, prompts(text, "one"))
    with refused(case, UnsupportedModelError, "one by one"), attach(FAMILY, pai(**when)):
        out = case.model(**prompts(case, "one"), use_cache=True)
        mask = torch.ones(1, prompts(case, "one")["input_ids"].shape[1] + 2, dtype=torch.long)
        more = {"past_key_values": out.past_key_values, "attention_mask": mask, "output_hidden_states": True}
        case.model(input_ids=torch.tensor([[20, 30]]), **more)
