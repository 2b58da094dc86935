"""The trace of an answer, against whole float64 passes of the plain model: every token of every answer, in every mode.

Also: it changes no bit, leaves nothing behind, and refuses what it could not follow.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
import transformers as tf
from PIL import Image
from sightline import CalibrationError, ConfigError, LayoutError, UnsupportedModelError, testbed
from sightline.cli import main as cli
from sightline.plugin.calibration.sections import Grounding
from sightline.plugin.explain import contact_sheet, heated, marked
from sightline.plugin.tracing.grid import Grid
from sightline.plugin.tracing.grounding import word_table
from sightline.plugin.tracing.record import spelled
from sightline.plugin.tracing.words import content_spans

from tests.helpers import naive, tiny
from tests.helpers.engine import NEW, Answer, Snapshot, assert_message, calibration, entry, generate, prompts, shared
from tests.helpers.modes import MODES

HEADS = [[3, 2], [0, 5], [1, 0], [1, 7], [2, 3]]
MASSES = ("image", "query", "prompt", "output")
TRACED = [name for name in tiny.FAMILIES if name != "mllama"]  # it has no image tokens
DEEP = ["llava_gqa", "qwen2_vl", "gemma3", "llava_next", "gemma3_text"]  # in every mode; the others in one
CASES = [(family, mode) for family in DEEP for mode in MODES]
CASES += [(family, "images") for family in TRACED if family not in DEEP]
CASES = [(f, m) for f, m in CASES if m != "images" or shared(f).has_images]
DECODERS = ["decore", "decore output prompt", "cad", "dola"]


def attach(family: str, config: Any = None, **more: Any) -> sightline.Plug:
    """A traced attachment on the shared model of a family."""
    case = shared(family)
    facts = calibration(case, **naive.SECTIONS)
    return sightline.attach(case.model, config or {}, **{"calibration": facts, "trace": {"heads": HEADS}, **more})


def tail(family: str, config: Any, kind: str, **more: Any) -> list[dict[str, Any]]:
    """The table of one call."""
    with attach(family, config, **more) as plug:
        generate(shared(family).model, prompts(shared(family), kind))
        return plug.trace


def in_mode(family: str, mode: str) -> tuple[tiny.Inputs, dict[str, Any]]:
    kind, how = MODES[mode]
    return prompts(shared(family), kind), how


def reference(
    family: str, prompt: tiny.Inputs, tokens: list[int], heads: Any, changes: Any = ()
) -> list[dict[str, Any]]:
    """The columns of one answer, from one whole pass over one row: masses by the prompt's tokens, entropy, probability."""
    model = naive.of(shared(family).model)
    if "token_type_ids" in prompt and family == "paligemma":  # what follows the prompt is no part of its prefix
        kept = prompt["token_type_ids"]
        grown = {**naive.append(prompt, tokens)}
        grown["token_type_ids"] = torch.cat([kept, torch.ones(1, len(tokens), dtype=torch.long)], dim=1)
        seen = model.run(grown, (), changes)
    else:
        seen = model.run(prompt, tokens, changes)
    length = prompt["input_ids"].shape[1]
    image = model.image(prompt)
    behind = int(image.nonzero().max()) + 1 if image.any() else 0
    query = torch.zeros(length, dtype=torch.bool)
    query[behind : length - 1] = True  # without a processor: every text token behind the last image
    rows = []
    for t, token in enumerate(tokens):
        at = length - 1 + t
        look = torch.stack([seen.weights[layer][head, at] for layer, head in heads]).mean(0)
        p = seen.logits[at].softmax(-1)
        rows.append(
            {
                "position": t,
                "token": token,
                "image": look[:length][image].sum(),
                "query": look[:length][query].sum(),
                "prompt": look[:length][~image & ~query].sum(),
                "output": look[length : at + 1].sum(),
                "entropy": -(p * p.log()).sum(),
                "probability": p[token],
                "map": look[:length][image],
            }
        )
    return rows


def assert_equals(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-5) -> None:
    for key in ("position", "token"):
        assert ours[key] == theirs[key]
    for key in (*MASSES, "entropy", "probability"):
        assert ours[key] == pytest.approx(float(theirs[key]), abs=tolerance, rel=1e-4), key


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_the_table_is_that_of_whole_passes(family: str, mode: str) -> None:
    """Every token of every returned sequence: beams are followed back, padding and static caches weigh nothing."""
    case = shared(family)
    naive.of(case.model)
    inputs, how = in_mode(family, mode)
    with attach(family, trace={"heads": HEADS, "maps": True}) as plug:
        answer = generate(case.model, inputs, **how)
    table, maps = plug.trace, plug.image_maps
    rows = answer.tokens.shape[0]
    copies = rows // len(inputs["input_ids"])
    assert [(one["row"], one["position"]) for one in table] == [(r, t) for r in range(rows) for t in range(NEW)]
    assert len(maps) == rows
    for r in range(rows):
        expected = reference(family, case.row(inputs, r // copies), answer.tokens[r].tolist(), HEADS)
        for ours, theirs in zip(table[r * NEW : (r + 1) * NEW], expected, strict=True):
            assert_equals(ours, theirs)
            assert sum(ours[key] for key in MASSES) == pytest.approx(1, abs=1e-5)
            assert ours["divergence"] is ours["contrast"] is ours["text"] is None
        torch.testing.assert_close(
            maps[r].double(), torch.stack([one["map"] for one in expected]), atol=1e-5, rtol=1e-4
        )


def test_beams_are_followed_and_not_merely_kept() -> None:
    """The case above would not notice a wrong row if beams never crossed: here they do."""
    case = shared("llava_gqa")
    inputs, how = in_mode("llava_gqa", "several beams")
    out = case.model.generate(**inputs, **how, max_new_tokens=NEW, return_dict_in_generate=True)
    assert any(len(set(row)) > 1 for row in out.beam_indices.tolist())


def test_sampled_beams_and_end_tokens() -> None:
    """Answers of unequal length: each ends with its end token, and nothing stands behind it."""
    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    usual = generate(case.model, inputs).tokens
    ends = [int(usual[0, 1]), int(usual[2, 2])]
    for how in (
        {},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 2},
    ):
        with attach("llava_gqa") as plug:
            torch.manual_seed(3)
            out = case.model.generate(**inputs, max_new_tokens=6, eos_token_id=ends, **{"do_sample": False, **how})
        answers = out[:, inputs["input_ids"].shape[1] :].tolist()
        copies = len(answers) // 3
        for r, tokens in enumerate(answers):
            stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
            table = [one for one in plug.trace if one["row"] == r]
            expected = reference("llava_gqa", case.row(inputs, r // copies), tokens[:stop], HEADS)
            assert len(table) == stop
            for ours, theirs in zip(table, expected, strict=True):
                assert_equals(ours, theirs)
    assert min(len([one for one in plug.trace if one["row"] == r]) for r in range(6)) < 6


def test_padding_behind_an_answer_that_something_else_ended() -> None:
    """A row that its own stopping criterion ended is filled up with padding, which is no answer."""

    class First(tf.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            return torch.tensor([i == 0 and input_ids.shape[1] >= length + 2 for i in range(len(input_ids))])

    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    length = inputs["input_ids"].shape[1]
    with attach("llava_gqa") as plug:
        case.model.generate(
            **inputs,
            max_new_tokens=NEW,
            do_sample=False,
            stopping_criteria=tf.StoppingCriteriaList([First()]),
            eos_token_id=tiny.EOS,
        )
    assert [sum(one["row"] == r for one in plug.trace) for r in range(3)] == [2, NEW, NEW]


@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl"])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}])
def test_contrast_with_a_branch(family: str, name: str, how: dict[str, Any]) -> None:
    """divergence and contrast from two whole passes; the other columns are the model's own, not the contrasted ones."""
    case, setup = shared(family), {**naive.SETUPS, **naive.VARIANTS}[name]
    model = naive.of(case.model)
    inputs = prompts(case, "pair")
    with attach(family, {"decoder": setup.config}, **setup.options) as plug:
        answer = generate(case.model, inputs, **how)
    for r in range(2):
        prompt, tokens = case.row(inputs, r), answer.tokens[r].tolist()
        length = prompt["input_ids"].shape[1]
        table = [one for one in plug.trace if one["row"] == r]
        for ours, theirs in zip(table, reference(family, prompt, tokens, HEADS), strict=True):
            assert_equals(ours, theirs)
        if name == "dola":
            assert all(one["divergence"] is one["contrast"] is None for one in table)
            continue
        base = model.run(prompt, tokens).logits[length - 1 :].log_softmax(-1)
        if name == "cad":
            short = naive._without_context(prompt)
            weak = model.run(short, tokens).logits[short["input_ids"].shape[1] - 1 :].log_softmax(-1)
        else:
            first = 0 if setup.reference.span == "prompt" else length - 1  # type: ignore[attr-defined]
            mask = naive.uniform if setup.reference.mask == "query" else naive.silent  # type: ignore[attr-defined]
            change = mask(setup.reference.heads, slice(first, None))  # type: ignore[attr-defined]
            weak = model.run(prompt, tokens, [change]).logits[length - 1 :].log_softmax(-1)
        for t, (one, token) in enumerate(zip(table, tokens, strict=True)):
            apart = float(naive.js_divergence(base[t].exp(), weak[t].exp()))
            assert one["divergence"] == pytest.approx(apart, abs=1e-5, rel=1e-3)
            assert one["contrast"] == pytest.approx(float(base[t, token] - weak[t, token]), abs=1e-4, rel=1e-3)
            assert apart > 1e-4


def test_masses_are_those_after_the_edits() -> None:
    """Spotlight brings the question of every head and row to its target."""
    target = 0.97
    for one in tail("llava_gqa", {"methods": [entry("spotlight", target=target)]}, "padded"):
        assert one["query"] >= target - 1e-4
    assert max(one["query"] for one in tail("llava_gqa", None, "padded")) < target - 0.05


# --- nothing else changes ----------------------------------------------------------------------------------------------

SETUPS: dict[str, Any] = {
    "nothing": {},
    "vhr+var": {"methods": [entry("vhr"), entry("var")]},
    "held gift": {"methods": [entry("gift", saliency_layers=[2], enhanced_layers=[1, 2, 3])]},
    "pai": {"methods": [entry("pai")]},
    "decore": {"decoder": naive.SETUPS["decore"].config},
    "sgrs": {"decoder": "sgrs"},
    "vhr+vcd": {"methods": [entry("vhr")], "decoder": naive.SETUPS["vcd"].config},
}


@functools.cache
def untraced(family: str, setup: str, mode: str) -> Answer:
    inputs, how = in_mode(family, mode)
    with attach(family, SETUPS[setup], trace=False):
        return generate(shared(family).model, inputs, **how)


@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_trace_changes_no_bit(family: str, setup: str) -> None:
    for mode in MODES:
        inputs, how = in_mode(family, mode)
        with attach(family, SETUPS[setup], trace={"heads": "all", "maps": True}) as plug:
            ours = generate(shared(family).model, inputs, **how)
        assert ours.same_bits(untraced(family, setup, mode)), mode
        assert len(plug.trace) == ours.tokens.numel()
        assert all(math.isfinite(one["entropy"]) and 0 <= one["probability"] <= 1 + 1e-6 for one in plug.trace)
    inputs, how = in_mode(family, "one")
    plain = generate(shared(family).model, inputs)
    if setup == "nothing":
        assert untraced(family, setup, "one").same_bits(plain)


@pytest.mark.parametrize("family", TRACED)
def test_traced_and_empty_has_the_plain_bits(family: str) -> None:
    """All layers probed: the plain model's bits, and after it the plain model, exactly."""
    case = shared(family)
    for mode in ("images" if case.has_images else "padded", "static", "beams"):
        inputs, how = in_mode(family, mode)
        plain = generate(case.model, inputs, **how)
        snapshot = Snapshot(case.model) if mode == "beams" else None
        with attach(family, trace={"heads": "all"}):
            traced = generate(case.model, inputs, **how)
        assert traced.same_bits(plain), mode
        if snapshot is not None:
            snapshot.assert_same(case.model)


def test_what_generate_returns_keeps_its_kind() -> None:
    case = shared("llava_gqa")
    inputs = prompts(case, "pair")
    for how in ({}, {"num_beams": 3}):
        bare = case.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **how)
        with attach("llava_gqa"):
            traced = case.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **how)
            rich = case.model.generate(
                **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, **how
            )
            config = tf.GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=tiny.PAD, **how)
            placed = case.model.generate(inputs["input_ids"], config, **_without_ids(inputs))
        assert isinstance(traced, torch.Tensor)
        assert torch.equal(traced, bare)
        assert torch.equal(rich.sequences, bare)
        assert torch.equal(placed, bare)


def _without_ids(inputs: tiny.Inputs) -> tiny.Inputs:
    return {key: value for key, value in inputs.items() if key != "input_ids"}


def test_streaming_and_the_callers_criteria() -> None:
    class Tokens:
        def __init__(self) -> None:
            self.said: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.said += value.flatten().tolist()

        def end(self) -> None:
            self.said.append(-1)

    asked: list[int] = []

    class Asked(tf.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            asked.append(input_ids.shape[1])
            return torch.zeros(len(input_ids), dtype=torch.bool)

    case, streamer = shared("llava_gqa"), Tokens()
    inputs = prompts(case, "one")
    with attach("llava_gqa") as plug:
        case.model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, streamer=streamer, stopping_criteria=[Asked()]
        )
    assert streamer.said[-NEW - 1 : -1] == [one["token"] for one in plug.trace]
    assert len(asked) == NEW


# --- one call and the next ---------------------------------------------------------------------------------------------


def test_each_call_has_its_own_table() -> None:
    case = shared("llava_gqa")
    fresh = tail("llava_gqa", SETUPS["decore"], "padded")
    with attach("llava_gqa", SETUPS["decore"]) as plug:
        assert plug.trace == []
        generate(case.model, prompts(case, "other"))
        other = plug.trace
        with pytest.raises(ZeroDivisionError):
            case.model.generate(**prompts(case, "one"), max_new_tokens=NEW, stopping_criteria=[lambda *_, **__: 1 // 0])
        assert plug.trace == []
        generate(case.model, prompts(case, "padded"))
        assert plug.trace == fresh
        case.model(**prompts(case, "one"))  # a pass outside generate is no answer
        assert plug.trace == fresh
    assert plug.trace == fresh
    assert other == tail("llava_gqa", SETUPS["decore"], "other")


def test_what_follows_on_the_cache_is_not_recorded() -> None:
    case = shared("llava_gqa")
    inputs = prompts(case, "one")
    for config in ({}, SETUPS["pai"]):
        with attach("llava_gqa", config) as plug:
            out = case.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
            table = plug.trace
            case.model(input_ids=out.sequences[:, -1:], past_key_values=out.past_key_values)
            assert plug.trace == table
            assert plug._runner.tracer.record._seen == {}


def test_an_inner_attachment_is_traced_by_itself() -> None:
    case = shared("llava_gqa")
    with attach("llava_gqa") as outer:
        with attach("llava_gqa", SETUPS["pai"]) as inner:
            generate(case.model, prompts(case, "one"))
        assert outer.trace == []
        assert len(inner.trace) == NEW


# --- which heads -------------------------------------------------------------------------------------------------------


def heads_of(facts: dict[str, Any] | None, trace: Any = True) -> list[tuple[int, int]]:
    case = shared("llava_gqa")
    bare = {key: value for key, value in calibration(case).items() if key not in ("visual_heads",)}
    with sightline.attach(case.model, {}, calibration={**bare, **(facts or {})}, trace=trace) as plug:
        return list(plug._runner.tracer.heads)


def test_heads_come_from_the_calibration() -> None:
    every = [(layer, head) for layer in range(tiny.LAYERS) for head in range(tiny.HEADS)]

    def scores(best: list[tuple[int, int]]) -> dict[str, Any]:
        rank = {head: len(best) - i for i, head in enumerate(best)}
        return {"scores": [[float(rank.get((n, h), 0)) for h in range(tiny.HEADS)] for n in range(tiny.LAYERS)]}

    visual, concept = [(1, 2), (3, 3), (0, 7)], [(2, 2), (2, 5), (0, 0)]
    assert heads_of(None) == [head for head in every if head[0] in (1, 3)]
    assert heads_of(None, {"layers": 1}) == [head for head in every if head[0] == 2]
    assert heads_of(None, {"layers": 99}) == every
    assert heads_of({"visual_heads": {"layers": [1]}}) == heads_of(None)  # layers are no heads
    assert heads_of({"visual_heads": scores(visual)}, {"count": 3, "layers": 3}) == visual
    assert heads_of({"visual_heads": scores(visual)}, {"count": 2, "layers": 1}) == [(1, 2), (1, 0)]
    spread = {"scores": [[5.0] + [0.0] * 7, [3.0, 3, 0, 0, 0, 0, 0, 0], [4.0, 1, 1, 1, 0, 0, 0, 0], [0.0] * 8]}
    assert heads_of({"visual_heads": spread}, {"count": 4, "layers": 2}) == [(0, 0), (1, 0), (1, 1), (0, 1)]
    both = {"visual_heads": scores(visual), "concept_heads": scores(concept)}
    assert heads_of(both, {"count": 2}) == visual[:2]
    assert heads_of(both, {"heads": "concept_heads", "count": 2}) == concept[:2]
    image = {"scores": scores(concept)["scores"]}
    assert heads_of({**both, "image_heads": image}, {"count": 2}) == concept[:2]
    assert heads_of(both, {"heads": "all"}) == every
    assert sorted(heads_of(both, {"count": 10**6, "layers": 10**6})) == every
    assert heads_of(both, {"heads": [[1, 1], [0, 3], [1, 1]]}) == [(1, 1), (0, 3)]
    grounding = {"heads": [[3, 1], [2, 6]], "weights": {"image": 1.0}, "threshold": 0.1}
    assert heads_of({**both, "grounding": grounding}) == [(3, 1), (2, 6)]
    with pytest.raises(CalibrationError) as caught:
        heads_of({"grounding": {**grounding, "heads": [[0, 99]]}})
    assert_message(caught.value, "grounding", "0-99")
    with pytest.raises(CalibrationError) as caught:
        heads_of({"grounding": {**grounding, "weights": {"divergence": 1.0}}})
    assert_message(caught.value, "grounding", "divergence")


# --- words -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return testbed.load()


@pytest.fixture(scope="module")
def scenes() -> list[Any]:
    return testbed.scenes("calibration", 2)


def asked(processor: Any, scenes: list[Any]) -> Any:
    """Two captions to be written, the second prompt padded."""
    prompts = [testbed.prompt(processor, text) for text in (testbed.CAPTION_PROMPT, "Describe this image.")]
    images = [scene.image for scene in scenes]
    return processor(images=images, text=prompts, return_tensors="pt", padding=True)


def test_texts_and_words_of_the_embedded_model(embedded: tuple[Any, Any], scenes: list[Any]) -> None:
    """Texts join to what decoding gives; a word has the trace of its first token, and the calibrated score."""
    model, processor = embedded
    inputs = asked(processor, scenes)
    grounding = {"heads": [[2, 1], [3, 0]], "weights": {"image": 2.0, "entropy": -0.5}, "threshold": 0.9}
    facts = {"model": "m", "architecture": "llava", "layers": 8, "heads": 8, "grounding": grounding}
    with sightline.attach(model, {}, calibration=facts, processor=processor, trace=True) as plug:
        ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    said = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in plug.texts] == [text.strip() for text in said]
    assert len(plug.texts[0].split()) > 5
    table = {(one["row"], one["position"]): one for one in plug.trace}
    words = plug.words
    assert {word["row"] for word in words} == {0, 1}
    for word in words:
        assert plug.texts[word["row"]][word["start"] : word["end"]] == word["word"]
        first = table[word["row"], word["position"]]
        assert word["word"].startswith(first["text"].strip())
        assert all(word[key] == first[key] for key in (*MASSES, "entropy", "probability"))
        assert word["score"] == pytest.approx(2 * first["image"] - 0.5 * first["entropy"])
        assert word["weak"] == (word["score"] < 0.9)
    with sightline.attach(model, {}, calibration=facts, processor=processor, trace={"heads": "all"}) as plug:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert plug.grounding is None  # measured with other heads
        assert all(word["score"] is None for word in plug.words)
    with sightline.attach(model, {}, trace=True) as plug, pytest.raises(ConfigError) as caught:
        plug.words  # noqa: B018
    assert_message(caught.value, "processor")


def test_a_character_of_several_tokens_is_told_once() -> None:
    class Bytes:
        def decode(self, tokens: list[int]) -> str:
            return bytes(tokens).decode("utf-8", errors="replace")

    assert spelled(Bytes(), list("aé€b".encode())) == ["a", "é", "", "€", "", "", "b"]


def row(text: str, image: float, entropy: float, number: int = 0) -> dict[str, Any]:
    return {
        "row": number,
        "position": 0,
        "token": 5,
        "text": text,
        "image": image,
        "entropy": entropy,
        "probability": 0.5,
    }


def test_words_by_hand() -> None:
    tokens = [row("The", 0.1, 9), row(" snow", 0.5, 0.2), row("man", 0.0, 9), row(" eats", 0.1, 0.8), row(".", 0, 9)]
    tokens += [row(" ice-cream", 0.3, 0.6)]
    table = [{**token, "position": i} for i, token in enumerate(tokens)] + [row("cats", 0.2, 5.0, 1)]
    words = word_table(table, None)
    assert [(w["row"], w["word"], w["start"], w["end"], w["position"], w["last"]) for w in words] == [
        (0, "snowman", 4, 11, 1, 2),
        (0, "eats", 12, 16, 3, 3),
        (0, "ice-cream", 18, 27, 5, 5),
        (1, "cats", 0, 4, 0, 0),
    ]
    # Means 0.3 and 0.2: eats is unsure and looks less; ice-cream is sure enough; cats looks no less than the mean.
    assert [w["weak"] for w in words] == [False, True, False, False]
    known = Grounding(heads=[(0, 0)], weights={"image": 1.0, "entropy": -1.0}, threshold=-0.25)
    scored = word_table(table, known)
    assert [round(w["score"], 6) for w in scored] == [0.3, -0.7, -0.3, -4.8]
    assert [w["weak"] for w in scored] == [False, True, True, True]
    assert marked("The snowman eats. ice-cream", scored[:3]) == "The snowman [eats]. [ice-cream]"
    assert word_table([], None) == []


def test_content_words_without_a_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.plugin.tracing.words.spacy_tagger", lambda: None)
    text = "There is also a hot dog, and it's on the man's table."
    assert [text[a:b] for a, b in content_spans(text)] == ["hot", "dog", "it's", "man's", "table"]


# --- sightline generate --explain --------------------------------------------------------------------------------------


def test_heat_lies_where_the_tokens_look() -> None:
    """Red in the cell of the hot token, the picture in grey where nothing is looked at or cut off."""
    picture = Image.new("RGB", (60, 40), (0, 0, 0))
    heat = torch.zeros(4)
    heat[1] = 0.02  # upper right cell of two by two, in the middle square
    shown = heated(picture, heat.numpy(), Grid(2, 2, (10.0, 0.0, 50.0, 40.0)))
    assert shown.size == picture.size
    red = [shown.getpixel(place)[0] for place in ((44, 5), (15, 35), (5, 5), (58, 5))]  # type: ignore[index]
    assert red[0] > 150
    assert red[1:] == [0, 0, 0]
    sheet = contact_sheet([("picture", picture), ("spoon", shown)])
    assert sheet.width > 2 * 288
    assert sheet.height > 288 * 40 / 60


@pytest.fixture
def scene_file(tmp_path: Path) -> str:
    testbed.scenes("calibration", 1)[0].image.save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


def explain(scene: str, *more: str) -> list[str]:
    return ["generate", "embedded", "--prompt", testbed.CAPTION_PROMPT, "--image", scene, "--explain", *more]


def facts_file(folder: Path, threshold: float) -> str:
    text = "model: m\narchitecture: llava\nlayers: 8\nheads: 8\n"
    text += f"grounding: {{heads: [[1, 1]], weights: {{image: 1.0}}, threshold: {threshold}}}\n"
    (folder / "facts.yaml").write_text(text)
    return str(folder / "facts.yaml")


def test_explain(scene_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heat, result = tmp_path / "heat.png", tmp_path / "r.json"
    facts = facts_file(tmp_path, 2.0)  # no mass reaches it: every word is weak
    where = ["--calibration", facts, "--heat", str(heat), "--json", str(result)]
    assert cli.main(explain(scene_file, *where)) == 0
    shown = capsys.readouterr().out
    said = json.loads(result.read_text())
    words = said["words"]
    assert words
    assert shown.splitlines()[0] == said["marked"]
    assert said["marked"].replace("[", "").replace("]", "") == said["reply"]
    assert said["marked"].count("[") == len(words)
    assert "calibrated" in shown
    assert str(heat) in shown
    with Image.open(heat) as picture:
        assert picture.format == "PNG"
        columns, rows = 4, -(-(len(words) + 1) // 4)
        assert picture.width == columns * 296 + 8
        assert picture.height == rows * (288 + 30) + 8
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000  # type: ignore[arg-type]


def test_explain_with_nothing_to_mark(scene_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heat = tmp_path / "heat.png"
    where = ["--calibration", facts_file(tmp_path, -1.0), "--heat", str(heat), "--config", "vhr"]
    config = tmp_path / "c.yaml"
    config.write_text("methods: [{pai: {}}]")
    where[-1] = str(config)
    assert cli.main(explain(scene_file, *where)) == 0
    shown = capsys.readouterr().out
    assert "[word]" in shown
    assert "no word is weakly grounded" in shown
    assert not heat.exists()


def test_explain_says_where_a_grid_is_unknown(
    scene_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = testbed.load

    def padding(*arguments: Any) -> tuple[Any, Any]:
        model, processor = load(*arguments)
        processor.image_processor.do_pad = True  # as Idefics, whose pictures stand in a larger square
        return model, processor

    monkeypatch.setattr(testbed, "load", padding)
    heat = tmp_path / "heat.png"
    assert cli.main(explain(scene_file, "--calibration", facts_file(tmp_path, 2.0), "--heat", str(heat))) == 0
    shown = capsys.readouterr().out
    assert "no picture was written: how the 64 image tokens" in shown
    assert "[" in shown.splitlines()[0]
    assert not heat.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--image": None}, ["--explain", "--image"]),
        ({"--heat": "/dev/null/x.png"}, ["/dev/null/x.png", "another place"]),
        ({"--heat": "."}, ["folder"]),
        ({"--image": "missing.png"}, ["missing.png"]),
        ({"model": "missing/folder/model"}, ["no model in missing/folder/model"]),
    ],
)
def test_explain_refuses(
    change: dict[str, str | None], words: list[str], scene_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, str | None] = {"model": "embedded", "--prompt": "x", "--image": scene_file}
    given |= {"--heat": str(tmp_path / "h.png"), **change}
    options = [part for key, value in given.items() if key != "model" and value for part in (key, value)]
    assert cli.main(["generate", str(given["model"]), "--explain", *options]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert [word for word in words if word not in line] == []
    assert not (tmp_path / "h.png").exists()


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trace", "error", "words"),
    [
        ({"head": "all"}, ConfigError, ["head", "heads", "count", "maps"]),
        ({"heads": "best"}, ConfigError, ["trace", "heads", "best"]),
        ({"count": 0}, ConfigError, ["trace", "count"]),
        ({"heads": []}, ConfigError, ["trace.heads", "empty"]),
        ({"heads": [[0, 99]]}, CalibrationError, ["0-99"]),
        ({"heads": "image_heads"}, CalibrationError, ["image_heads", "trace"]),
        ("yes", ConfigError, ["trace", "str"]),
    ],
)
def test_bad_settings(trace: Any, error: type[Exception], words: list[str]) -> None:
    case = shared("llava_gqa")
    snapshot = Snapshot(case.model)
    with pytest.raises(error) as caught:
        sightline.attach(case.model, {}, calibration=calibration(case), trace=trace)
    assert_message(caught.value, *words)
    snapshot.assert_same(case.model)


def _right_padded(inputs: tiny.Inputs) -> tiny.Inputs:
    return {**inputs, "input_ids": inputs["input_ids"].flip(1), "attention_mask": inputs["attention_mask"].flip(1)}


def _custom(model: Any, **kwargs: Any) -> Any:
    raise AssertionError("must not run")


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"use_cache": False}, UnsupportedModelError, ["use_cache"]),
        ({"prompt_lookup_num_tokens": 2}, UnsupportedModelError, ["prompt_lookup"]),
        ({"custom_generate": _custom}, UnsupportedModelError, ["custom_generate", "trace"]),
    ],
)
def test_modes_that_cannot_be_followed(how: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    case = shared("llava_gqa")
    with attach("llava_gqa") as plug:
        with pytest.raises(error) as caught:
            case.model.generate(**prompts(case, "one"), max_new_tokens=NEW, **how)
        assert plug.trace == []
        assert len(generate(case.model, prompts(case, "one")).tokens[0]) == len(plug.trace)
    assert_message(caught.value, *words)


def test_right_padding_is_refused() -> None:
    case = shared("llama")
    with attach("llama"), pytest.raises(LayoutError) as caught:
        generate(case.model, _right_padded(prompts(case, "padded")))
    assert_message(caught.value, "left")


def test_a_filled_cache_is_refused() -> None:
    case = shared("llama")
    inputs = prompts(case, "one")
    with attach("llama", SETUPS["decore"]) as plug:
        first = case.model.generate(**inputs, max_new_tokens=NEW, return_dict_in_generate=True)
        longer = {"input_ids": first.sequences, "attention_mask": torch.ones_like(first.sequences)}
        with pytest.raises(LayoutError) as caught:
            case.model.generate(**longer, max_new_tokens=NEW, past_key_values=first.past_key_values)
        assert plug.trace == []
    assert_message(caught.value, "cache", "trace")


def test_a_table_that_was_not_asked_for() -> None:
    case = shared("llava_gqa")
    with sightline.attach(case.model, {}) as plug:
        for name in ("trace", "image_maps"):
            with pytest.raises(ConfigError) as caught:
                getattr(plug, name)
            assert_message(caught.value, "trace=True")
    with attach("llava_gqa") as plug, pytest.raises(ConfigError) as caught:
        plug.image_maps  # noqa: B018
    assert_message(caught.value, "maps")


def test_a_model_without_image_tokens_is_refused() -> None:
    case = shared("mllama")
    before = Snapshot(case.model)
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(case.model, {}, calibration=calibration(case), trace=True)
    assert_message(caught.value, "trace", "cross-attention", "leave trace out")
    before.assert_same(case.model)
