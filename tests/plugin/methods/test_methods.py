"""Attention methods that need no second branch, against naive float64 references written from the papers' formulas.

The reference runs a double-precision copy of a tiny model over one whole unpadded sequence at a time, without a cache,
and computes attention one head and one row at a time. Every row of a left-padded batch must give the reference's logits
at each generated step, and so must the row alone. The bound is 1e-4 on logits of order 1 to 10; the largest error seen is
printed by `pytest -s`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import sightline
import torch
from sightline import CalibrationError, ConfigError, LayoutError, SightlineError, UnsupportedModelError
from sightline.plugin.core.edits import move
from sightline.plugin.core.method import ModelFacts
from sightline.plugin.methods.emphasis import unmark
from torch import Tensor

from tests.helpers import tiny
from tests.helpers.engine import assert_message, calibration, entry, generate, prompts, shared
from tests.helpers.rules import (
    BOUND,
    EVERY,
    FAMILIES,
    RANDOM_GAINS,
    SOME,
    STEPS,
    TEXTS,
    Array,
    Rule,
    answer,
    case_of,
    compare,
    directions,
    encoded,
    every_family,
    expected,
    focus,
    gain_table,
    locore,
    ocr_sink,
    paint,
    pasta,
    plain,
    spotlight,
    tokenizer,
    zerotuning,
)

# --- the reference ---------------------------------------------------------------------------------------------------


@every_family
def test_the_reference_is_the_model(family: str) -> None:
    """Without any method, so that a difference elsewhere is a method's."""
    case = shared(family)
    inputs = prompts(case, "one")
    got = generate(case.model, inputs, max_new_tokens=STEPS)
    wanted = expected(family, inputs, got.tokens[0].tolist(), plain)
    assert np.abs(got.logits[0].double().numpy() - wanted).max() < BOUND


# --- ZeroTuning, arXiv 2505.11739 ------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(
    ("settings", "known", "gains"),
    [
        ({}, {}, gain_table(EVERY, 4.0)),
        ({"gain": 0.2}, {}, gain_table(EVERY, 0.2)),
        ({"gain": 3.0, "layers": [1, 2]}, {}, gain_table([(n, h) for n, h in EVERY if n in (1, 2)], 3.0)),
        ({"gain": 8.0, "head_list": SOME}, {}, gain_table(SOME, 8.0)),
        ({}, {"first_token": {"gains": RANDOM_GAINS.tolist()}}, RANDOM_GAINS),
        ({"gain": 0.3}, {"first_token": {"gains": RANDOM_GAINS.tolist()}}, gain_table(EVERY, 0.3)),
    ],
    ids=["default", "down", "layers", "heads", "calibrated", "setting before calibration"],
)
def test_zerotuning(family: str, settings: dict[str, Any], known: dict[str, Any], gains: Array) -> None:
    compare(family, {"zerotuning": settings}, zerotuning(gains), **known)


# --- PASTA, arXiv 2311.02262 -----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_pasta(family: str, alpha: float) -> None:
    compare(family, {"pasta": {"alpha": alpha, "head_list": SOME}}, pasta(alpha, SOME))


@every_family
def test_pasta_takes_the_best_retrieval_heads(family: str) -> None:
    """A share of 0.1 of 32 heads is 4 of them."""
    scores = np.random.default_rng(1).random((tiny.LAYERS, tiny.HEADS))
    best = sorted(EVERY, key=lambda pair: -scores[pair])[:4]
    known = {"retrieval_heads": {"scores": scores.tolist()}}
    compare(family, {"pasta": {"share": 0.1}}, pasta(0.01, best), **known)


# --- Spotlight, arXiv 2505.12025 -------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("scope", ["head", "row", "layer"])
@pytest.mark.parametrize("form", ["exact", "released"])
@pytest.mark.parametrize("target", [0.2, 0.8])
def test_spotlight(family: str, form: str, scope: str, target: float) -> None:
    settings = {"form": form, "scope": scope, "target": target}
    compare(family, {"spotlight": settings}, spotlight(target, form, scope, list(range(tiny.LAYERS))))


@every_family
def test_spotlight_in_some_layers(family: str) -> None:
    compare(family, {"spotlight": {"target": 0.6, "layers": [0, 3]}}, spotlight(0.6, "exact", "head", [0, 3]))


def test_the_default_spotlight_is_exact_per_head() -> None:
    config = sightline.methods()["spotlight"].config()
    assert config.model_dump() | {"form": "exact", "scope": "head", "target": 0.2} == config.model_dump()


def test_a_mass_too_small_to_lift_stays() -> None:
    """A factor on it would overflow and make the row NaN."""
    masses = torch.tensor([0.0, 1e-42, 1e-38, 1e-20, 0.1])
    change = move(0.99)(masses)
    assert torch.isfinite(change).all()
    assert change[:3].tolist() == [0, 0, 0]
    lifted = masses * (1 + change) / (masses * (1 + change) + 1 - masses)
    torch.testing.assert_close(lifted[3:], torch.full((2,), 0.99))


def test_a_layers_mean_needs_the_prompt_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    case = shared("llava")
    config = {"methods": [{"spotlight": {"span": "question", "scope": "layer", "target": 0.5}}]}
    monkeypatch.setattr("sightline.plugin.core.explicit.CHUNK_ELEMENTS", 10)
    with sightline.attach(case.model, config), pytest.raises(LayoutError) as caught:
        generate(case.model, prompts(case, "one"))
    assert_message(caught.value, "scope: layer", "scope: row")


# --- LocoRE, arXiv 2601.20279 ----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(("form", "renormalise"), [("weights", True), ("weights", False), ("logits", True)])
@pytest.mark.parametrize("window", [0, 2, 32])
def test_locore(family: str, form: str, renormalise: bool, window: int) -> None:
    settings = {"beta": 1.5, "window": window, "form": form, "renormalise": renormalise, "layers": [0, 2, 3]}
    rule = locore(1.5, window, [0, 2, 3], logit=form == "logits", renormalise=renormalise)
    compare(family, {"locore": settings}, rule)


@pytest.mark.parametrize(
    ("layers", "wanted"), [(32, [9, 10, 11, 12, 13, 14]), (4, [1]), (1, [0]), (30, [8, *range(9, 14)])]
)
def test_layers_in_proportion(layers: int, wanted: list[int]) -> None:
    assert ModelFacts("m", "llama", layers, heads=8, hidden=64).proportion(9, 15) == wanted


def test_locore_looks_past_the_room_of_a_static_cache() -> None:
    case = shared("llava_gqa")
    batch = prompts(case, "padded")
    with sightline.attach(case.model, {"methods": [{"locore": {"beta": 4.0, "window": 1}}]}):
        grown = generate(case.model, batch, max_new_tokens=STEPS)
        static = generate(case.model, batch, max_new_tokens=STEPS, cache_implementation="static")
    torch.testing.assert_close(static.logits, grown.logits, atol=BOUND, rtol=BOUND)


def test_locore_when_the_window_has_dropped_the_prompt() -> None:
    """A sliding cache whose first column is a generated token."""
    case = shared("mistral_sliding")
    steps = case.model.config.sliding_window + 6
    inputs = prompts(case, "one")
    with sightline.attach(case.model, {"methods": [{"locore": {"beta": 2.0, "window": 40}}]}):
        got = generate(case.model, inputs, max_new_tokens=steps)
    rule = locore(2.0, 40, [1], logit=False, renormalise=True)
    wanted = expected("mistral_sliding", inputs, got.tokens[0].tolist(), rule)
    assert np.abs(got.logits[0].double().numpy() - wanted).max() < BOUND


# --- OCR heads' sink sharing, arXiv 2505.15865 -----------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("beta", [0.0, 0.4, 0.9])
def test_ocr_sink(family: str, beta: float) -> None:
    compare(family, {"ocr_sink": {"beta": beta, "head_list": SOME}}, ocr_sink(beta, SOME))


@pytest.mark.parametrize("section", ["ocr_heads", "concept_heads"])
@pytest.mark.parametrize("measured", [("scores",), ("scores", "hits")])
def test_ocr_sink_takes_the_calibrations_heads(section: str, measured: tuple[str, ...]) -> None:
    """By `hits` where they are measured, else by `scores`."""
    tables = {name: np.random.default_rng(i).random((tiny.LAYERS, tiny.HEADS)) for i, name in enumerate(measured)}
    best = sorted(EVERY, key=lambda pair: -tables[measured[-1]][pair])[:3]
    known = {section: {name: table.tolist() for name, table in tables.items()}}
    compare("llava_gqa", {"ocr_sink": {"section": section, "heads": 3}}, ocr_sink(0.4, best), **known)


# --- Focus Directions, arXiv 2503.23306 ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "blip_2"])  # OPT scales its queries before anyone sees them
@pytest.mark.parametrize(("factor", "count"), [(0.2, 20), (3.0, 20), (-3.0, 2)])
def test_focus(family: str, factor: float, count: int) -> None:
    size = tiny.decoder(shared(family).model).layers[0].self_attn.head_dim
    heads = [(1, 3), (1, 4), (0, 7), (3, 0)]
    directions = np.random.default_rng(2).normal(size=(4, size))
    rule = focus(factor, heads[:count], directions[:count])
    known = {"focus_heads": {"heads": [list(head) for head in heads], "directions": directions.tolist()}}
    compare(family, {"focus": {"factor": factor, "heads": count}}, rule, **known)


# --- PAINT, arXiv 2501.12206 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["padded", "images"])
@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, paint(0.7, 0.3, 0.25, [2, 3])),
        ({"alpha": 0.0, "beta": 1.5}, paint(0.0, 1.5, 0.25, [2, 3])),
        ({"alpha": 1.0, "ratio": 0.5, "layers": [1, 3]}, paint(1.0, 0.3, 0.5, [1, 3])),
    ],
    ids=["default", "summary", "local"],
)
def test_paint(settings: dict[str, Any], rule: Rule, kind: str) -> None:
    compare("deep", {"paint": settings}, rule, kind=kind)


def test_paint_with_several_answers_per_picture() -> None:
    """`generate` encodes the pictures before it repeats the rows; every copy of a row is boosted alike."""
    case = case_of("deep")
    batch = prompts(case, "images")
    with sightline.attach(case.model, {"methods": [entry("paint")]}) as plug:
        once = generate(case.model, batch)
        boosted = plug.report()["paint"]["boosted"]
        several = generate(case.model, batch, do_sample=True, num_return_sequences=2)
        assert plug.report()["paint"]["boosted"] == [count for count in boosted for _ in range(2)]
    assert len(set(boosted)) > 1, "the rows have 2, 1 and 3 pictures"
    torch.testing.assert_close(several.logits[::2, 0], once.logits[:, 0], atol=BOUND, rtol=BOUND)


def test_paint_leaves_the_tower_as_it_was() -> None:
    """Hooks are on the tower while a call runs, also where it fails, and not after."""
    case = case_of("deep")
    tower = case.model.model.vision_tower

    def hooks() -> int:
        return sum(len(m._forward_hooks) for name, m in tower.named_modules() if name.endswith(("q_proj", "k_proj")))

    seen: list[int] = []
    watch = tower.register_forward_pre_hook(lambda module, args: seen.append(hooks()))
    with sightline.attach(case.model, {"methods": [entry("paint")]}):
        generate(case.model, prompts(case, "one"))
        case.model(**prompts(case, "one"))
        with pytest.raises(LayoutError):
            case.model(input_ids=prompts(case, "one")["input_ids"])
        assert hooks() == 0
    watch.remove()
    assert seen == [4, 4]


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_vl", "smolvlm", "llama"])
def test_paint_refuses_other_towers(family: str) -> None:
    model = shared(family).model
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, "paint")
    assert_message(caught.value, "paint", "class token", model.config.model_type, "use pai")


# --- emphasis --------------------------------------------------------------------------------------------------------


def overlapping(texts: list[str], spans: list[list[tuple[int, int]]]) -> Tensor:
    """By the tokenizer's own offsets: which tokens of a left-padded batch share a character with the row's spans."""
    out = tokenizer()(texts, return_offsets_mapping=True)["offset_mapping"]
    width = max(map(len, out))
    rows = [
        [any(a < stop and b > start for start, stop in own) for a, b in row]
        for row, own in zip(out, spans, strict=True)
    ]
    return torch.tensor([[False] * (width - len(row)) + row for row in rows])


def between_marks(text: str) -> list[tuple[int, int]]:
    return [match.span(1) for match in re.finditer("<emphasis>(.*?)</emphasis>", text)]


def found(texts: list[str], settings: dict[str, Any], emphasis: Any) -> list[int]:
    """The number of emphasised tokens in each row, as the report tells."""
    with sightline.attach(
        shared("llama").model, {"methods": [{"spotlight": settings}]}, processor=tokenizer(), emphasis=emphasis
    ) as plug:
        generate(shared("llama").model, encoded(texts))
        return plug.report()["spotlight"]["emphasised"]


def test_marks_in_the_prompt() -> None:
    """A batch of two rows, the second with two passages: as if a function had marked their tokens."""
    mask = overlapping(TEXTS, [between_marks(text) for text in TEXTS])
    assert 0 < mask.sum() < encoded(TEXTS)["attention_mask"].sum() / 2
    assert answer(TEXTS, None).same_bits(answer(TEXTS, lambda ids: mask))
    assert not answer(TEXTS, None).same_bits(answer(TEXTS, lambda ids: mask.roll(1, 1)))


def test_marks_taken_out_before_tokenising() -> None:
    text, passages = unmark(TEXTS[1])
    assert (text, passages) == ("Is it late? Say no. Then name one city.", ["Say no.", "one city"])
    mask = overlapping([text], [[(text.find(p), text.find(p) + len(p)) for p in passages]])
    assert answer([text], passages).same_bits(answer([text], lambda ids: mask))
    one = overlapping([text], [[(12, 19)]])
    assert answer([text], "Say no.").same_bits(answer([text], lambda ids: one))


def test_overlapping_passages_are_united() -> None:
    """Twice emphasised is emphasised; a passage that occurs twice is emphasised twice."""
    text = "Say no. Say no. It is late."
    mask = overlapping([text], [[(0, 15)]])
    assert answer([text], ["Say no.", "no. Say"]).same_bits(answer([text], lambda ids: mask))
    nested = "Say <emphasis>no. <emphasis>It is</emphasis> late</emphasis>."
    assert unmark(nested) == ("Say no. It is late.", ["no. It is late"])
    assert between_marks(nested)[0][0] == 14
    mask = overlapping([nested], [[(14, nested.rfind("</emphasis>"))]])
    assert answer([nested], None).same_bits(answer([nested], lambda ids: mask))


def test_marks_of_your_own() -> None:
    text = "Say [no]. It is late."
    settings = {"begin": "[", "end": "]"}
    assert unmark(text, "[", "]") == ("Say no. It is late.", ["no"])
    assert found([text], settings, None) == overlapping([text], [[(5, 7)]]).sum(-1).tolist()


def test_the_image_as_emphasis() -> None:
    """Spotlight on the picture; a row without any stays plain."""
    case = shared("llava")
    batch = prompts(case, "mixed")
    bare = generate(case.model, case.row(batch, 1))
    with sightline.attach(case.model, {"methods": [{"spotlight": {"span": "image", "target": 0.9}}]}) as plug:
        both = generate(case.model, batch)
        assert plug.report()["spotlight"]["emphasised"] == (batch["input_ids"] == tiny.IMAGE).sum(-1).tolist()
    torch.testing.assert_close(both.logits[1:2], bare.logits, atol=BOUND, rtol=BOUND)


def refused_prompt(texts: list[str], emphasis: Any, *words: str, **how: Any) -> None:
    """Every one of the two methods refuses the prompt, with a LayoutError that says `words`."""
    case = shared("llama")
    for config in ({"spotlight": {}}, {"pasta": {"head_list": SOME}}):
        with (
            sightline.attach(case.model, {"methods": [config]}, processor=tokenizer(), emphasis=emphasis),
            pytest.raises(LayoutError) as caught,
        ):
            generate(case.model, encoded(texts, **how))
        assert_message(caught.value, *words)


def test_a_mark_that_never_closes() -> None:
    refused_prompt(["Say <emphasis>no."], None, "row 0", "'<emphasis>' at character 4", "never closes", "truncation")
    refused_prompt([TEXTS[0], "Say no.</emphasis>"], None, "row 1", "'</emphasis>' at character 7", "ends nothing")
    for text in ("Say <emphasis>no.", "Say no.</emphasis>", "<emphasis>a</emphasis></emphasis>"):
        with pytest.raises(LayoutError) as caught:
            unmark(text)
        assert_message(caught.value, "the text", "character")


def test_a_passage_cut_by_truncation() -> None:
    length = int(overlapping(TEXTS[:1], [between_marks(TEXTS[0])])[0].nonzero()[-1])
    cut = {"truncation": True, "max_length": length}
    refused_prompt(TEXTS[:1], None, "never closes", "truncation", **cut)
    refused_prompt(TEXTS[:1], ["Answer in one word."], "'Answer in one word.'", "row 0", "truncation", **cut)


def test_nothing_emphasised() -> None:
    refused_prompt([TEXTS[0], "Say no."], None, "row 1", "nothing between")
    refused_prompt(["Say <emphasis></emphasis>no."], None, "row 0", "nothing between")
    refused_prompt([TEXTS[0], "Say no."], ["Answer in one word."], "row 1", "does not stand in")
    refused_prompt(TEXTS, lambda ids: torch.zeros_like(ids), "no token", "marked")


def test_an_emphasis_function_that_does_not_fit() -> None:
    refused_prompt(TEXTS, lambda ids: torch.ones_like(ids[:, 1:]), "emphasis function", "shape")
    refused_prompt(TEXTS, lambda ids: [[True]], "emphasis function", "list")
    shorter = int(encoded(TEXTS)["attention_mask"].sum(-1).argmin())
    refused_prompt(TEXTS, lambda ids: torch.ones_like(ids), "padding", f"row {shorter}", "outside the prompt")


# --- what does not fit -----------------------------------------------------------------------------------------------


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[SightlineError], tuple[str, ...]]] = {
    "a target of 0": (
        {"spotlight": {"target": 0.0}},
        {},
        ConfigError,
        ("spotlight.target", "greater than", "(got 0.0)"),
    ),
    "a target of 1": ({"spotlight": {"target": 1.0}}, {}, ConfigError, ("spotlight.target", "less than", "(got 1.0)")),
    "spotlight without a processor": ({"spotlight": {}}, {}, ConfigError, ("spotlight", "processor=", "emphasis=")),
    "pasta without a processor": ({"pasta": {"head_list": SOME}}, {}, ConfigError, ("pasta", "processor=")),
    "marks that are the same": (
        {"spotlight": {"begin": "*", "end": "*"}},
        {},
        ConfigError,
        ("spotlight", "begin", "end", "different"),
    ),
    "an empty mark": ({"pasta": {"begin": ""}}, {}, ConfigError, ("pasta.begin",)),
    "no retrieval heads": ({"pasta": {"span": "question"}}, {}, CalibrationError, ("pasta", "retrieval_heads")),
    "alpha 0": ({"pasta": {"alpha": 0.0}}, {}, ConfigError, ("pasta.alpha",)),
    "pasta's empty head list": ({"pasta": {"head_list": []}}, {}, ConfigError, ("pasta.head_list",)),
    "a head too many": (
        {"pasta": {"span": "image", "head_list": [[0, 8]]}},
        {},
        CalibrationError,
        ("pasta.head_list", "0-8", "4 layers of 8 heads"),
    ),
    "zerotuning's empty head list": ({"zerotuning": {"head_list": []}}, {}, ConfigError, ("zerotuning.head_list",)),
    "a gain of 0": ({"zerotuning": {"gain": 0}}, {}, ConfigError, ("zerotuning.gain",)),
    "a layer too many": ({"zerotuning": {"layers": [4]}}, {}, CalibrationError, ("zerotuning.layers", "layer 4")),
    "a gain of 0 in the table": (
        {"zerotuning": {}},
        {"first_token": {"gains": [[0.0] * 8] * 4}},
        CalibrationError,
        ("first_token.gains", "greater than 0"),
    ),
    "a table of other heads": (
        {"zerotuning": {}},
        {"first_token": {"gains": [[1.0] * 7] * 4}},
        CalibrationError,
        ("first_token.gains", "4 lists of 8"),
    ),
    "no OCR heads": ({"ocr_sink": {}}, {}, CalibrationError, ("ocr_sink", "ocr_heads")),
    "ocr_sink's empty head list": ({"ocr_sink": {"head_list": []}}, {}, ConfigError, ("ocr_sink.head_list",)),
    "more than the whole sink": ({"ocr_sink": {"beta": 1.5}}, {}, ConfigError, ("ocr_sink.beta",)),
    "more OCR heads than there are": (
        {"ocr_sink": {"heads": 33}},
        {"ocr_heads": {"scores": [[1.0] * 8] * 4}},
        CalibrationError,
        ("ocr_sink.heads", "33", "32"),
    ),
    "locore's empty layers": ({"locore": {"layers": []}}, {}, ConfigError, ("locore.layers",)),
    "a negative window": ({"locore": {"window": -1}}, {}, ConfigError, ("locore.window",)),
    "no directions": ({"focus": {}}, {"focus_heads": None}, CalibrationError, ("focus", "focus_heads")),
    "directions of another size": (
        {"focus": {}},
        {"focus_heads": {"heads": [[0, 1]], "directions": directions(7, 1)}},
        CalibrationError,
        ("focus_heads", "8 numbers", "7 numbers"),
    ),
    "fewer directions than heads": (
        {"focus": {}},
        {"focus_heads": {"heads": [[0, 1], [0, 2]], "directions": directions(8, 1)}},
        CalibrationError,
        ("focus_heads", "2 heads", "there are 1"),
    ),
    "a focus head too many": (
        {"focus": {}},
        {"focus_heads": {"heads": [[4, 1]], "directions": directions(8, 1)}},
        CalibrationError,
        ("focus_heads", "4-1"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit(name: str) -> None:
    settings, known, kind, words = BAD[name]
    case = shared("llava")
    with pytest.raises(kind) as caught:
        sightline.attach(case.model, {"methods": [settings]}, calibration={**calibration(case), **known})
    assert_message(caught.value, *words)


@pytest.mark.parametrize("given", [[], [""], ["Say no.", 3]], ids=["none", "empty", "a number"])
def test_emphasis_that_names_no_passage(given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        sightline.attach(shared("llama").model, "spotlight", processor=tokenizer(), emphasis=given)
    assert_message(caught.value, "emphasis=", "no passage")
