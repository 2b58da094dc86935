"""Every mistake a user can make ends in a typed error with the mend, and leaves the model exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
import transformers as tf
from sightline import CalibrationError, ConfigError, LayoutError, SightlineError, UnsupportedModelError

from tests.helpers import tiny
from tests.helpers.engine import (
    METHODS,
    Snapshot,
    assert_message,
    calibration,
    entry,
    fits,
    generate,
    prompts,
    shared,
)
from tests.helpers.refusal import refused

ALL_THREE = [entry("vhr"), entry("var"), entry("gift")]
VISION = tiny.names(images=True)


def attach(case: tiny.TinyCase, methods: Any = None, **options: Any) -> sightline.Plug:
    """`methods` (default: all three) on a case's model, with a calibration that fits."""
    config = {"methods": ALL_THREE if methods is None else methods}
    return sightline.attach(case.model, config, **{"calibration": calibration(case), **options})


# --- configuration ---------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "unknown method": ("vrh", ("unknown method or decoder 'vrh'", "did you mean", "registered", "vhr", "gift")),
    "unknown method in a list": ({"methods": ["vhr", "gfit"]}, ("methods[1]", "gfit", "did you mean 'gift'")),
    "unknown top key": ({"method": ["vhr"]}, ("unknown key 'method'", "did you mean 'methods'", "calibration")),
    "unknown setting": (
        {"methods": [{"vhr": {"alhpa": 2}}]},
        ("methods[0].vhr.alhpa", "did you mean 'alpha'", "allowed", "outlier_filter"),
    ),
    "wrong type": ({"methods": [{"vhr": {"alpha": "strong"}}]}, ("methods[0].vhr.alpha", "number", "strong")),
    "wrong type of a list": ({"methods": [{"vhr": {"layers": 3}}]}, ("methods[0].vhr.layers", "list", "3")),
    "wrong choice": ({"methods": [{"vhr": {"distance": "l1"}}]}, ("distance", "squared", "euclidean", "l1")),
    "negative strength, vhr": ({"methods": [{"vhr": {"alpha": -1}}]}, ("methods[0].vhr.alpha", "greater", "-1")),
    "negative strength, gift": ({"methods": [{"gift": {"alpha": -0.5}}]}, ("methods[0].gift.alpha", "-0.5")),
    "negative strength, var": ({"methods": [{"var": {"p": -0.1}}]}, ("methods[0].var.p", "-0.1")),
    "share above 1": ({"methods": [{"var": {"rho": 1.5}}]}, ("methods[0].var.rho", "1.5")),
    "not a number": ({"methods": [{"vhr": {"alpha": float("nan")}}]}, ("methods[0].vhr.alpha", "nan")),
    "infinite": ({"methods": [{"gift": {"alpha": float("inf")}}]}, ("methods[0].gift.alpha", "inf")),
    "settings that are no mapping": ({"methods": [{"vhr": 2.0}]}, ("methods[0].vhr", "mapping", "2.0", "alpha")),
    "two methods in one entry": ({"methods": [{"vhr": {}, "var": {}}]}, ("methods[0]", "one name")),
    "an entry that is no method": ({"methods": [7]}, ("methods[0]", "7")),
    "methods as a word": ({"methods": "vhr"}, ("'methods' must be a list", "str")),
    "methods as a mapping": ({"methods": {"vhr": {}}}, ("'methods' must be a list",)),
    "methods as an empty mapping": ({"methods": {}}, ("'methods' must be a list",)),
    "methods as a number": ({"methods": 0}, ("'methods' must be a list",)),
    "a method twice": ({"methods": ["vhr", {"vhr": {"alpha": 3}}]}, ("vhr", "more than once")),
    "calibration of a wrong type": ({"calibration": 3, "methods": []}, ("'calibration'", "path", "3")),
    "a config that is a number": (3, ("not int",)),
    "a config that is a list": (["vhr"], ("not list",)),
    "a config that is missing": (None, ("not NoneType",)),
    "a file that is missing": ("no/such/file.yaml", ("no/such/file.yaml", "does not exist")),
    "a path that is missing": (Path("nothing-here.yaml"), ("nothing-here.yaml", "does not exist")),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_configuration(name: str) -> None:
    config, words = MALFORMED[name]
    case = shared("llava")
    with refused(case, ConfigError, *words):
        sightline.attach(case.model, config, calibration=calibration(case))


@pytest.mark.parametrize("name", list(MALFORMED))
def test_configuration_of_a_wrap(name: str) -> None:
    """`wrap` checks the same, and leaves neither itself nor an attachment behind."""
    config, words = MALFORMED[name]
    case = shared("llava")
    with refused(case, ConfigError, *words):
        sightline.wrap(case.model, config, calibration=calibration(case))


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_refuses_unknown_keys_and_names_its_own(method: str) -> None:
    case = shared("llava")
    known = next(iter(sightline.methods()[method].config.model_fields))
    with refused(case, ConfigError, f"methods[0].{method}.{known}x", f"did you mean '{known}'", "allowed"):
        attach(case, [{method: {f"{known}x": 1}}])


def test_content_words_without_tagger() -> None:
    case = shared("llava")
    with refused(case, ConfigError, "words: content", "tagger", "processor"):
        attach(case, [entry("gift", words="content")])


# --- calibration -----------------------------------------------------------------------------------------------------


def _without(*names: str) -> Callable[[tiny.TinyCase], dict[str, Any]]:
    return lambda case: {key: value for key, value in calibration(case).items() if key not in names}


def _with(**changes: Any) -> Callable[[tiny.TinyCase], dict[str, Any]]:
    return lambda case: {**_without("visual_heads")(case), **changes}


UNFIT: dict[str, tuple[Callable[[tiny.TinyCase], Any], tuple[str, ...]]] = {
    "another architecture": (_with(architecture="qwen2_vl"), ("architecture", "qwen2_vl", "llava", "file made for it")),
    "another layer count": (_with(layers=32), ("layer count 32", "4 in the")),
    "another head count": (_with(heads=32), ("head count 32", "8 in the")),
    "a sink dimension beyond the hidden size": (_with(sink={"dims": [3, 64], "tau": 2}), ("sink", "64", "hidden size")),
    "a negative sink dimension": (_with(sink={"dims": [-5, 3], "tau": 2}), ("sink", "-5")),
    "a negative threshold": (_with(sink={"dims": [3], "tau": -2}), ("sink.tau", "-2")),
    "no sink dimensions": (_with(sink={"dims": [], "tau": 2}), ("sink.dims",)),
    "a gaze layer that is not there": (
        _with(gaze={"saliency_layers": [4], "enhanced_layers": [2], "alpha": 1}),
        ("gaze.saliency_layers", "layer 4", "0..3"),
    ),
    "scores of another shape": (
        _with(visual_heads={"scores": [[1.0] * 8] * 3}),
        ("visual_heads.scores", "4 lists of 8"),
    ),
    "an unknown section": (_with(sinks={}), ("unknown key 'sinks'", "did you mean 'sink'")),
    "an unknown key in a section": (_with(sink={"dims": [3], "tua": 2}), ("sink.tua", "did you mean 'tau'")),
    "a later schema": (_with(schema=3), ("schema 3", "upgrade")),
    "no head count": (_without("heads", "visual_heads"), ("heads", "required")),
    "no sink section": (_without("sink"), ("'var' needs", "'sink'", "calibration=PATH")),
    "no gaze section": (_without("gaze"), ("'gift' needs", "'gaze'", "calibration=PATH")),
    "nothing": (lambda case: None, ("'var' needs", "'sink'", "no calibration", "calibration=PATH")),
    "a missing file": (lambda case: "no/such/calibration.yaml", ("no/such/calibration.yaml", "No such file")),
    "auto without a shipped file": (lambda case: "auto", ("no calibration file is shipped", "calibration=PATH")),
    "a number": (lambda case: 3, ("calibration", "int")),
    "a list": (lambda case: [1, 2], ("calibration", "list")),
}


@pytest.mark.parametrize("name", list(UNFIT))
def test_calibration(name: str) -> None:
    make, words = UNFIT[name]
    case = shared("llava")
    with refused(case, CalibrationError, *words):
        attach(case, calibration=make(case))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vhr": {"layers": [1, 9]}}, ("vhr.layers", "layer 9", "0..3")),
        ({"vhr": {"layers": [-1]}}, ("vhr.layers", "layer -1")),
        ({"gift": {"enhanced_layers": [4]}}, ("gift.enhanced_layers", "layer 4")),
        ({"gift": {"saliency_layers": [-2]}}, ("gift.saliency_layers", "layer -2")),
        ({"var": {"sink_dims": [64], "tau": 2.0}}, ("sink", "64", "hidden")),
        ({"var": {"sink_dims": [-1], "tau": 2.0}}, ("sink", "-1")),
    ],
    ids=["layer too large", "negative layer", "enhanced layer", "saliency layer", "dimension", "negative dimension"],
)
def test_settings_that_do_not_fit_the_model(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    """Values that a setting gives in place of the calibration are checked like those of the calibration."""
    case = shared("llava")
    with refused(case, SightlineError, *words):
        attach(case, [settings])


@pytest.mark.parametrize("method", ["vhr", "gift"])
@pytest.mark.parametrize("key", ["layers", "saliency_layers", "enhanced_layers"])
def test_an_empty_list_of_layers(method: str, key: str) -> None:
    """A method that edits no layer would look as if it ran."""
    if key not in sightline.methods()[method].config.model_fields:
        pytest.skip(f"{method} has no setting '{key}'")
    case = shared("llava")
    with refused(case, ConfigError, f"methods[0].{method}.{key}"):
        attach(case, [{method: {key: []}}])


def test_sections_that_no_method_needs_may_be_missing() -> None:
    case = shared("llava")
    with attach(case, [entry("vhr")], calibration=None):
        generate(case.model, prompts(case, "one"))
    with attach(case, [{"gift": {"alpha": 1.0, "saliency_layers": [1], "enhanced_layers": [2]}}], calibration=None):
        generate(case.model, prompts(case, "one"))
    with attach(case, [{"var": {"sink_dims": [1], "tau": 1.0}}], calibration=None):
        generate(case.model, prompts(case, "one"))


# --- the prompt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method"),
    [(f, name) for f in VISION for name, method in METHODS.items() if method.needs_image and fits(name, f)],
)
def test_no_image_in_the_prompt(family: str, method: str) -> None:
    case = shared(family)
    inputs = case.inputs(1, images_per_row=0)
    with refused(case, LayoutError, f"method '{method}'", "image", "processor"), attach(case, [entry(method)]):
        generate(case.model, inputs)


def _without_pictures(inputs: tiny.Inputs) -> tiny.Inputs:
    kept = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    return {key: value for key, value in inputs.items() if key in kept}


@pytest.mark.parametrize("family", VISION)
def test_image_tokens_without_pictures(family: str) -> None:
    case = shared(family)
    inputs = _without_pictures(prompts(case, "one"))
    methods = [entry(name) for name in ("vhr", "var", "gift") if fits(name, family)]
    with refused(case, LayoutError, "image tokens", "picture", "processor"), attach(case, methods):
        generate(case.model, inputs)
    with refused(case, LayoutError, "image tokens", "picture", "processor"), attach(case, methods):
        tiny.speaker(case.model, inputs)(**inputs)


def _one_fewer(inputs: tiny.Inputs) -> tiny.Inputs:
    """The same prompt with one placeholder cut out."""
    at = int(inputs["input_ids"][0].eq(tiny.IMAGE).nonzero()[-1])
    keep = torch.arange(inputs["input_ids"].shape[1]) != at
    per_token = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    return {key: value[:, keep] if key in per_token else value for key, value in inputs.items()}


COUNTING = [family for family in VISION if family not in ("instructblip", "blip_2", "mllama")]  # plain takes too few


@pytest.mark.parametrize("methods", [ALL_THREE, []], ids=["three methods", "empty"])
@pytest.mark.parametrize("family", COUNTING)
def test_a_count_of_image_tokens_that_does_not_match(family: str, methods: list[Any]) -> None:
    case = shared(family)
    inputs = _one_fewer(prompts(case, "one"))
    with refused(case, LayoutError, "picture", "do not match", "processor"), attach(case, methods):
        generate(case.model, inputs)


@pytest.mark.parametrize("call", ["generate", "generate, positional", "forward"])
def test_an_empty_batch(call: str) -> None:
    case = shared("llava")
    inputs = {key: value[:0] for key, value in prompts(case, "one").items()}
    with refused(case, LayoutError, "empty", "at least one"), attach(case):
        if call == "forward":
            case.model(**inputs)
        elif call == "generate":
            case.model.generate(**inputs, max_new_tokens=2)
        else:
            ids = inputs.pop("input_ids")
            case.model.generate(ids, **inputs, max_new_tokens=2)


def test_a_prompt_without_tokens() -> None:
    case = shared("llava")
    ids = torch.zeros(1, 0, dtype=torch.long)
    with refused(case, LayoutError, "empty", "token"), attach(case):
        case.model(input_ids=ids, attention_mask=ids)


def test_embeddings_in_place_of_tokens() -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    embeds = case.model.get_input_embeddings()(inputs["input_ids"].clamp(max=tiny.TEXT[1]))
    for call in (case.model.generate, case.model):
        with refused(case, LayoutError, "inputs_embeds", "input_ids"), attach(case):
            wrapped = case.model.generate if call == case.model.generate else case.model
            wrapped(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])


def test_an_attention_mask_of_another_shape() -> None:
    case = shared("llava")
    inputs = prompts(case, "padded")
    inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    with refused(case, LayoutError, "attention_mask", "input_ids", "27", "28"), attach(case):
        case.model(**inputs)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda ids: ids[:, 1:] > 0, ("query", "shape")),
        (lambda ids: ids[0] > 0, ("query", "shape")),
        (lambda ids: [[True] * ids.shape[1]] * ids.shape[0], ("query", "list")),
        (lambda ids: None, ("query", "NoneType")),
    ],
    ids=["too short", "one row", "a list", "nothing"],
)
def test_a_query_function_with_a_bad_answer(answer: Callable[[torch.Tensor], Any], words: tuple[str, ...]) -> None:
    case = shared("llava")
    with refused(case, LayoutError, *words), attach(case, query=answer):
        generate(case.model, prompts(case, "padded"))


# --- caches from elsewhere -------------------------------------------------------------------------------------------


def _plain_cache(case: tiny.TinyCase, inputs: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """A cache of all but the last token, filled by the plain model, and what continues from it."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    pictures = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    out = case.model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True, **pictures)
    return out.past_key_values, {"input_ids": ids[:, -1:], "attention_mask": mask}


def test_a_cache_that_this_attachment_has_not_filled() -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    cache, rest = _plain_cache(case, inputs)
    with refused(case, LayoutError, "cache", "not read that prompt", "empty cache"), attach(case):
        case.model(**rest, past_key_values=cache)
    cache, rest = _plain_cache(case, inputs)
    with refused(case, LayoutError, "cache", "empty cache"), attach(case):
        case.model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], past_key_values=cache)


@pytest.mark.parametrize("earlier", ["other", "padded"])
def test_a_cache_from_elsewhere_after_another_prompt(earlier: str) -> None:
    """With the state of an earlier prompt of the same number of rows at hand, a foreign cache must still be refused."""
    case = shared("llava")
    cache, rest = _plain_cache(case, prompts(case, "one"))
    with refused(case, LayoutError, "cache", "empty cache"), attach(case):
        generate(case.model, prompts(case, earlier))
        case.model(**rest, past_key_values=cache)


def test_another_cache_in_the_middle_of_an_answer() -> None:
    """Two prompts in turn on one attachment: each continues with its own state, or the second is refused."""
    case = shared("llava")
    first, second = prompts(case, "one"), prompts(case, "other")
    with attach(case):
        token = torch.tensor([[50]])
        alone = []
        for inputs in (first, second):
            cache = case.model(**inputs, use_cache=True).past_key_values
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
            alone.append(case.model(input_ids=token, attention_mask=mask, past_key_values=cache).logits)
        caches = [case.model(**inputs, use_cache=True).past_key_values for inputs in (first, second)]
        for inputs, cache, expected in zip((second, first), caches[::-1], alone[::-1], strict=True):
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
            try:
                logits = case.model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
            except LayoutError as error:
                assert_message(error, "cache")
                continue
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


# --- ways to generate ------------------------------------------------------------------------------------------------

MODES: dict[str, dict[str, Any]] = {
    "use_cache": {"use_cache": False},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "guidance_scale": {"guidance_scale": 1.5},
}


@pytest.mark.parametrize("given", ["argument", "generation_config", "the model's generation_config"])
@pytest.mark.parametrize("name", list(MODES))
def test_ways_to_generate_that_cannot_be_followed(name: str, given: str) -> None:
    case = tiny.fresh("llava")
    inputs = prompts(case, "one")
    with refused(case, UnsupportedModelError, f"generate({name}", "attention edits"), attach(case):
        if given == "argument":
            case.model.generate(**inputs, max_new_tokens=3, **MODES[name])
        elif given == "generation_config":
            config = tf.GenerationConfig(max_new_tokens=3, pad_token_id=tiny.PAD, **MODES[name])
            case.model.generate(**inputs, generation_config=config)
        else:
            usual = case.model.generation_config
            case.model.generation_config = tf.GenerationConfig(pad_token_id=tiny.PAD, **MODES[name])
            try:
                case.model.generate(**inputs, max_new_tokens=3)
            finally:
                case.model.generation_config = usual


def test_an_assistant_model() -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    with refused(case, UnsupportedModelError, "assistant_model", "without"), attach(case):
        case.model.generate(**inputs, max_new_tokens=3, assistant_model=shared("llama").model)


@pytest.mark.parametrize("name", list(MODES))
def test_an_empty_plan_takes_every_way_to_generate(name: str) -> None:
    """With nothing to edit, nothing is refused and the bits are the plain ones."""
    case = shared("llama")
    inputs = prompts(case, "one")
    how = {**inputs, **MODES[name], "max_new_tokens": 3, "do_sample": False}
    bare = case.model.generate(**how)
    with sightline.attach(case.model, {"methods": []}):
        assert torch.equal(case.model.generate(**how), bare)


# --- models ----------------------------------------------------------------------------------------------------------

REASONS = {
    "t5": "encoder-decoder",
    "instructblip": "'t5', which is an encoder-decoder",
}


@pytest.mark.parametrize("name", list(tiny.REFUSED))
@pytest.mark.parametrize("config", ["vhr", {"methods": []}], ids=["vhr", "empty"])
def test_refused_families(name: str, config: Any) -> None:
    model = tiny.refused(name)
    snapshot = Snapshot(model)
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, config)
    assert_message(caught.value, f"'{name}'", REASONS[name])
    snapshot.assert_same(model)


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = tf.LlavaForConditionalGeneration(shared("llava").model.config)
    keys = {name: list(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, "vhr")
    assert_message(caught.value, "meta device", "from_pretrained")
    assert {name: list(module.__dict__) for name, module in model.named_modules()} == keys


@pytest.mark.parametrize("implementation", ["paged|sdpa", "paged|flash_attention_2", "of_their_own"])
def test_another_attention_implementation(implementation: str) -> None:
    """The kernels are not installed here: the config says what the model would run."""
    case = tiny.fresh("llava")
    case.model.config.text_config._attn_implementation_internal = implementation
    keys = {name: list(module.__dict__) for name, module in case.model.named_modules()}
    with pytest.raises(UnsupportedModelError) as caught:
        attach(case)
    assert_message(caught.value, implementation, "attn_implementation='sdpa'")
    assert {name: list(module.__dict__) for name, module in case.model.named_modules()} == keys
    assert case.model.config.text_config._attn_implementation == implementation


@pytest.mark.parametrize("model", ["llava", None, torch.nn.Linear(2, 2)], ids=["name", "none", "module"])
def test_something_that_is_no_model(model: Any) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, "vhr")
    assert_message(caught.value, type(model).__name__)
