"""BLIP-2 and InstructBLIP: methods and modes that meet the Q-Former, or the model that hands its prompt to another inside.

The conformance tests run on both families as on any other; here is what they do not reach.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import sightline
import torch
import transformers as tf
from sightline import ConfigError, LayoutError, UnsupportedModelError
from sightline.plugin.tracing.grid import grid
from sightline.profiling.probes.direct import Direct

from tests.helpers import cases as engine
from tests.helpers import naive, tiny
from tests.helpers import reference as ref
from tests.helpers.engine import Snapshot, assert_message, calibration, entry, generate, prompts, shared
from tests.helpers.naive import SETUPS
from tests.helpers.refusal import refused

BOTH = ["instructblip", "blip_2"]
every_family = pytest.mark.parametrize("family", BOTH)


# --- the float64 reference -------------------------------------------------------------------------------------------


@functools.cache
def case() -> engine.Case:
    """InstructBLIP with its reference decoder, which is a Llama's: three rows with one, one and two pictures."""
    small = shared("instructblip")
    batch = small.inputs(3, lengths=(9, 5, 7), images_per_row=(1, 1, 2), seed=4)
    rows = [small.row(batch, i) for i in range(3)]
    decoder = ref.Decoder(small.model)
    told = [decoder.prompt(row) for row in rows]
    return engine.Case("instructblip", small.model, decoder, batch, rows, told, *engine._sinks(decoder, told))


def test_vhr() -> None:
    """Of four layers the last two: 18 of 32 in proportion."""
    used, _ = engine._compare(case(), [{"vhr": {"filter_min_std": 0}}], [engine._vhr(case(), filter_min_std=0.0)])
    assert {tuple(method.chosen) for (method,) in used} == {(2, 3)}  # type: ignore[attr-defined]


def test_var() -> None:
    engine._compare(case(), [{"var": {"min_visual": 0.01}}], [engine._var(case(), min_visual=0.01)])


@pytest.mark.parametrize("kind", ["early", "late"])
def test_gift(kind: str) -> None:
    gaze = engine._gaze(kind, tiny.LAYERS)
    engine._compare(case(), [{"gift": {}}], [engine._gift(**gaze)], calibration=case().calibration(**gaze))


# --- how a prompt can be handed over ---------------------------------------------------------------------------------


def attach(family: str, **config: Any) -> sightline.Plug:
    facts = calibration(shared(family), **naive.SECTIONS)
    return sightline.attach(shared(family).model, config or {"methods": [entry("vhr")]}, calibration=facts)


def pictures(inputs: tiny.Inputs) -> tiny.Inputs:
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


def encoded(model: Any, inputs: tiny.Inputs) -> Any:
    return model.get_image_features(**pictures(inputs))


@every_family
def test_arguments_by_position(family: str) -> None:
    """The first is the picture, not the prompt."""
    model, inputs = shared(family).model, prompts(shared(family), "one")
    order = ["pixel_values", "qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask"]
    given = [inputs[name] for name in order if name in inputs]
    with attach(family):
        usual = model.generate(**inputs, max_new_tokens=3)
        assert torch.equal(model.generate(*given, max_new_tokens=3), usual)
        logits = model(**inputs).logits
        assert torch.equal(model(*given).logits, logits)
    assert not torch.allclose(model(**inputs).logits, logits, atol=1e-3)


@every_family
def test_a_caption_of_a_picture_alone(family: str) -> None:
    """Without a prompt the model makes one of placeholders and its start token."""
    model, inputs = shared(family).model, prompts(shared(family), "padded")
    alone = pictures(inputs)
    ids = torch.tensor([[tiny.IMAGE] * tiny.QUERIES + [tiny.BOS]] * 3)
    bare = model.generate(**alone, max_new_tokens=3)
    with attach(family):
        ours = model.generate(**alone, max_new_tokens=3)
        assert torch.equal(ours, model.generate(**alone, input_ids=ids, max_new_tokens=3))
    assert not torch.equal(ours, bare)


@every_family
def test_pictures_that_come_encoded(family: str) -> None:
    """A branch with another prompt takes the features of the base's; one that redraws pictures cannot."""
    model, inputs = shared(family).model, dict(prompts(shared(family), "padded"))
    given = {"pixel_values": None, "mm_encoder_outputs": {"image": encoded(model, inputs)}}
    given |= {name: value for name, value in inputs.items() if name != "pixel_values"}
    for config in ({"methods": [entry("vhr")]}, {"decoder": SETUPS["avisc"].config}):
        with attach(family, **config):
            assert torch.equal(model(**given).logits, model(**inputs).logits)
    with (
        refused(shared(family), LayoutError, "vcd", "encoded", "pixel_values"),
        attach(family, decoder=SETUPS["vcd"].config),
    ):
        model(**given)


@every_family
@pytest.mark.parametrize(
    "config", [{"methods": []}, {"methods": [entry("zerotuning")]}, {"decoder": SETUPS["decore"].config}], ids=str
)
def test_a_second_turn_in_the_same_cache(family: str, config: dict[str, Any]) -> None:
    """It says what reading both turns at once does."""
    model, inputs = shared(family).model, prompts(shared(family), "one")
    with attach(family, **config):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[33, 44]])], dim=1)
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        whole = generate(model, longer)
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        second = generate(model, longer, past_key_values=first.past_key_values)
    assert torch.equal(second.tokens, whole.tokens)
    torch.testing.assert_close(second.scores, whole.scores, atol=1e-4, rtol=1e-4)


@every_family
def test_a_second_turn_of_a_branch_with_its_own_prompt_is_refused(family: str) -> None:
    model, inputs = shared(family).model, prompts(shared(family), "one")
    with attach(family, decoder=SETUPS["vcd"].config):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[33, 44]])], dim=1)
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with pytest.raises(LayoutError, match="without past_key_values"):
            generate(model, longer, past_key_values=first.past_key_values)


@every_family
@pytest.mark.parametrize("config", [{"methods": []}, {"methods": [entry("vhr")]}, {"decoder": SETUPS["decore"].config}])
def test_a_loop_over_the_language_model(family: str, config: dict[str, Any]) -> None:
    """Written by hand it goes on with the answer, in passes of one token or of more."""
    model, inputs = shared(family).model, prompts(shared(family), "one")
    with attach(family, **config):
        said = generate(model, inputs)
        cache = tf.DynamicCache(config=model.config.text_config)
        model(**inputs, past_key_values=cache)
        for tokens in (said.tokens[:, :2], said.tokens[:, 2:3]):
            logits = model.language_model(input_ids=tokens, past_key_values=cache).logits
        torch.testing.assert_close(logits[:, -1].float(), said.scores[:, 3], atol=1e-4, rtol=1e-4)


@every_family
def test_the_language_model_alone(family: str) -> None:
    """Called without the outer model it reads text, which methods without need of a picture edit."""
    inside = shared(family).model.language_model
    ids = torch.randint(*tiny.TEXT, (2, 9), generator=torch.Generator().manual_seed(0))
    bare = inside(input_ids=ids).logits
    with attach(family, methods=[entry("zerotuning")]):
        assert not torch.allclose(inside(input_ids=ids).logits, bare, atol=1e-3)
    with attach(family), pytest.raises(LayoutError, match="vhr"):
        inside.generate(input_ids=ids, max_new_tokens=2)


@every_family
def test_profiles_of_text_run_on_the_language_model(family: str) -> None:
    model = shared(family).model
    ids = torch.randint(*tiny.TEXT, (2, 9), generator=torch.Generator().manual_seed(0))
    with Direct(model) as direct, torch.no_grad():
        assert torch.equal(direct({}, ids), model.language_model(input_ids=ids).logits)


def test_query_tokens_are_no_places_in_the_picture() -> None:
    """Not even where they happen to be a square number."""
    processor = SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=False))
    inputs = {"input_ids": torch.zeros(1, 9), "pixel_values": torch.zeros(1, 3, 16, 16)}
    assert grid(processor, inputs, 0, 4, (16, 16)).rows == 2
    processor.num_query_tokens = 4
    with pytest.raises(UnsupportedModelError, match="image tokens"):
        grid(processor, inputs, 0, 4, (16, 16))


@every_family
def test_labels(family: str) -> None:
    """A loss under methods is of their logits; contrasted scores have none."""
    model, inputs = shared(family).model, prompts(shared(family), "one")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE, -100)
    with attach(family):
        out = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(out.loss, expected)
    with (
        refused(shared(family), UnsupportedModelError, "labels", "sightline.score"),
        attach(family, decoder=SETUPS["decore"].config),
    ):
        model(**inputs, labels=labels)


@every_family
def test_a_placeholder_too_many(family: str) -> None:
    inputs = dict(prompts(shared(family), "one"))
    inputs["input_ids"] = torch.cat([torch.tensor([[tiny.IMAGE]]), inputs["input_ids"]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with refused(shared(family), LayoutError, "picture", "do not match", "processor"), attach(family):
        generate(shared(family).model, inputs)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["icd", "cad", "pai_guidance"])
def test_learned_positions_keep_a_prompt_where_it_is(name: str) -> None:
    """OPT's: a copy whose prompt has another length cannot follow the same tokens; the next call is none the worse."""
    small, setup = shared("blip_2"), SETUPS[name]
    inputs = prompts(small, "one")
    bare = generate(small.model, inputs)
    with (
        refused(small, UnsupportedModelError, "OPTDecoder", "learned positions", "decore", "vcd"),
        sightline.attach(small.model, {"decoder": setup.config}, calibration=calibration(small), **setup.options),
    ):
        generate(small.model, inputs)
    assert generate(small.model, inputs).same_bits(bare)


def test_icd_needs_the_qformers_words() -> None:
    small = shared("instructblip")
    with refused(small, ConfigError, "icd", "Q-Former", "processor=", "qformer_ids"):
        attach("instructblip", decoder={"icd": {"instruction_ids": [5]}})
    with refused(shared("blip_2"), ConfigError, "icd", "place: qformer", "'question'"):
        attach("blip_2", decoder={"icd": {"instruction_ids": [5], "place": "qformer"}})
    inputs = dict(prompts(small, "one"))
    given = {"mm_encoder_outputs": {"image": encoded(small.model, inputs)}, "input_ids": inputs["input_ids"]}
    with (
        refused(small, LayoutError, "icd", "encoded", "pixel_values"),
        attach("instructblip", decoder=naive.MISLED.config),
    ):
        small.model(pixel_values=None, qformer_input_ids=None, **given)


class Processor:
    """What `attach` asks of InstructBLIP's processor: two tokenizers, which here differ by one in every id."""

    def tokenizer(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [20 + len(word) for word in text.split()]}

    def qformer_tokenizer(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [token + 1 for token in self.tokenizer(text)["input_ids"]]}


def test_icd_takes_its_words_from_the_processor() -> None:
    small = shared("instructblip")
    inputs, setting = prompts(small, "padded"), {"instruction": "Be as vague as can be.", "place": "start"}
    words = Processor().tokenizer(setting["instruction"])["input_ids"]
    told = {"instruction_ids": words, "qformer_ids": [token + 1 for token in words], "place": "start"}
    with sightline.attach(small.model, {"decoder": {"icd": setting}}, processor=Processor()):
        ours = generate(small.model, inputs)
    with sightline.attach(small.model, {"decoder": {"icd": told}}):
        assert generate(small.model, inputs).same_bits(ours)


def test_video() -> None:
    model = tiny.fresh("instructblip").model
    model.config.__class__ = type("Video", (type(model.config),), {"model_type": "instructblipvideo"})
    snapshot = Snapshot(model)
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, "vhr")
    assert_message(caught.value, "'instructblipvideo'", "frames")
    snapshot.assert_same(model)
