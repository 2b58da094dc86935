"""One test for each thing that is taken from transformers without its promise; a release that breaks one fails here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import sightline
import torch
import transformers
from sightline import LayoutError, UnsupportedModelError
from sightline.plugin.core import compat

from tests.helpers import tiny
from tests.helpers.engine import Snapshot, assert_message, decoder_layers, prompts, shared

KNOWN = ["llava_gqa", "qwen2_vl", "gemma3", "instructblip", "mllama", "llama"]


def test_the_supported_releases_are_those_that_are_tested() -> None:
    pins = {path: (Path(__file__).parents[3] / path).read_text().splitlines() for path in ("constraints.txt",)}
    oldest = (Path(__file__).parents[3] / "constraints-oldest.txt").read_text().splitlines()
    assert f"transformers=={compat.NEWEST}" in pins["constraints.txt"]
    assert f"transformers=={compat.OLDEST}" in oldest
    assert transformers.__version__ == compat.VERSION


# --- names and calls -------------------------------------------------------------------------------------------------


def test_a_cache_under_any_name_is_renamed() -> None:
    (other,) = set(compat.CACHES) - {compat.CACHE}
    assert compat.renamed({"input_ids": 1, other: 2}) == {"input_ids": 1, compat.CACHE: 2}
    assert compat.renamed({compat.CACHE: 3, other: 2}) == {compat.CACHE: 3}
    assert compat.renamed({"input_ids": 1}) == {"input_ids": 1}


@pytest.mark.parametrize("family", KNOWN)
def test_the_cache_has_this_name_in_calls_and_outputs(family: str) -> None:
    case = shared(family)
    output = case.model(**prompts(case, "one"), use_cache=True)
    output = output.get("language_model_outputs", output)  # of a Q-Former's model
    assert getattr(output, compat.CACHE).get_seq_length() > 0


@pytest.mark.parametrize("family", KNOWN)
def test_known_releases_call_as_expected(family: str) -> None:
    model = shared(family).model
    generator = getattr(model, "language_model", model) if hasattr(model, "query_tokens") else model
    compat.check_calls(generator, decoder_layers(model))


def _renames_its_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    def forward(self: Any, input_ids: Any, attention_mask: Any, inputs_embeds: Any, memory: Any = None) -> None: ...

    monkeypatch.setattr(type(model), "forward", forward)
    return compat.CACHE


def _renames_its_hidden_state(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    def forward(self: Any, states: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(type(decoder_layers(model)[0]), "forward", forward)
    return "hidden_states"


def _renames_what_attention_gets(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    def sdpa(module: Any, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(compat, "sdpa_attention_forward", sdpa)
    return "position_bias"


def _takes_the_reordering_away(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delattr(compat.Cache, "reorder_cache")
    return "reorder_cache"


@pytest.mark.parametrize(
    "change",
    [_renames_its_cache, _renames_its_hidden_state, _renames_what_attention_gets, _takes_the_reordering_away],
)
def test_an_unknown_release_is_refused_at_attach(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line that names the release, the call and the mend, and the model is left as it was."""
    case = tiny.fresh("llava_gqa")
    before = Snapshot(case.model)
    with monkeypatch.context() as patched:
        named = change(case.model, patched)
        with pytest.raises(UnsupportedModelError) as caught:
            sightline.attach(case.model, "vhr")
    assert_message(caught.value, compat.VERSION, named, "install", f"transformers>={compat.OLDEST}")
    before.assert_same(case.model)


# --- attention -------------------------------------------------------------------------------------------------------


def test_a_registered_function_is_called_with_a_mask() -> None:
    """Without the mask registered too, padding would be lost."""
    masks: list[Any] = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **how: Any) -> Any:
        masks.append(attention_mask)
        return compat.sdpa_attention_forward(module, query, key, value, attention_mask, **how)

    compat.register_attention("sightline_test", attend)
    case = tiny.fresh("llama")
    plain = case.model(**prompts(case, "padded")).logits
    compat.set_attention_name(case.model.config, "sightline_test")
    assert torch.equal(case.model(**prompts(case, "padded")).logits, plain)
    assert len(masks) == tiny.LAYERS
    assert all(mask is not None and not bool(mask.all()) for mask in masks)


def test_the_name_of_one_part_leaves_the_others() -> None:
    config = copy.deepcopy(shared("llava_gqa").model.config)
    text = config.get_text_config()
    compat.set_attention_name(text, "eager")
    assert compat.attention_name(text) == "eager"
    assert compat.attention_name(config) == compat.attention_name(config.vision_config) == "sdpa"


# --- how a model was loaded ------------------------------------------------------------------------------------------


def test_weights_that_are_brought() -> None:
    case = tiny.fresh("llama")
    assert not compat.brings_weights(case.model)
    assert compat.brings_weights(accelerate.cpu_offload(case.model))


def test_undivided_blocks() -> None:
    assert "LlamaDecoderLayer" in compat.undivided(shared("llama").model)


def test_a_model_in_one_process() -> None:  # for several see test_shards.py
    assert compat.processes(shared("llama").model) == 1
    assert compat.mesh(shared("llama").model) is None


def test_quantised_weights() -> None:
    model = tiny.fresh("llama").model
    assert compat.quantised(model) is None
    for method, named in (("gguf", None), ("bitsandbytes", "bitsandbytes")):
        model.quantization_method = method
        assert compat.quantised(model) == named


def test_compiled_models() -> None:
    model = tiny.fresh("llama").model
    assert not compat.compiled(model)
    assert compat.compiled(torch.compile(model))
    model.compile()
    assert compat.compiled(model)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_are_encoded_as_generate_does() -> None:
    """What it encodes is what the pass would have made of the pixels; repeated, each prompt keeps its own pictures."""
    case = shared("qwen2_vl")
    inputs = case.inputs(2, lengths=(3, 3), images_per_row=(1, 2))
    encoded = compat.encoded_pictures(case.model, inputs)
    if encoded is None:
        assert compat.ENCODED not in case.model.forward.__code__.co_varnames
        return
    rest = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_grid_thw")}
    twice = {name: value.repeat_interleave(2, dim=0) for name, value in rest.items()}
    expected = case.model(**inputs).logits
    given = {"image_grid_thw": inputs["image_grid_thw"]}
    alone = case.model(**rest, **given, **{compat.ENCODED: encoded}).logits
    torch.testing.assert_close(alone, expected)
    assert compat.repeated_pictures(case.model, inputs["input_ids"], encoded, 1) is encoded
    repeated = compat.repeated_pictures(case.model, inputs["input_ids"], encoded, 2)
    given["image_grid_thw"] = inputs["image_grid_thw"][[0, 0, 1, 2, 1, 2]]
    torch.testing.assert_close(
        case.model(**twice, **given, **{compat.ENCODED: repeated}).logits, expected.repeat_interleave(2, dim=0)
    )


def test_a_pass_inside_leaves_the_offsets_of_positions() -> None:
    case = tiny.fresh("qwen2_vl")
    case.model(**prompts(case, "one"))
    noted = [m.__dict__[compat.ROPE_OFFSETS] for m in case.model.modules() if compat.ROPE_OFFSETS in m.__dict__]
    assert noted
    with compat.offsets_kept(case.model):
        case.model(**prompts(case, "other"))
    assert [m.__dict__[compat.ROPE_OFFSETS] for m in case.model.modules() if compat.ROPE_OFFSETS in m.__dict__] == noted


@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl", "internvl", "idefics3", "gemma3", "instructblip"])
def test_a_wrong_number_of_image_tokens_is_named(family: str) -> None:
    """The words of the error differ by family and by release."""
    case = shared(family)
    inputs = prompts(case, "one")
    place = int(inputs["input_ids"][0].eq(tiny.IMAGE).int().argmax())
    if family in ("instructblip", "idefics3"):  # which let features that are left over go unsaid (idefics3: in 5.17)
        inputs["input_ids"][0, -1] = tiny.IMAGE
    else:
        inputs["input_ids"][0, place] = 50
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs and case.token_types == name:
            inputs[name][0, place] = 0
    with pytest.raises(LayoutError) as caught, compat.image_count_named():
        case.model(**inputs)
    assert_message(caught.value, "placeholder", "processor")


def test_other_errors_keep_their_words() -> None:
    with pytest.raises(ValueError, match="too hot"), compat.image_count_named():
        raise ValueError("too hot")


# --- caches ----------------------------------------------------------------------------------------------------------


def test_what_a_cache_holds_and_what_passes_add() -> None:
    case = shared("gemma3_text")
    ids = prompts(case, "one")["input_ids"]
    cache = compat.new_cache(case.model.config)
    assert [compat.held(layer) for layer in cache.layers] == [None] * tiny.LAYERS
    case.model(input_ids=ids, **{compat.CACHE: cache}, use_cache=True)
    before = [compat.held(layer) for layer in cache.layers]
    with compat.cache_undone(cache):
        case.model(input_ids=torch.tensor([[50]]), **{compat.CACHE: cache}, use_cache=True)
        assert cache.get_seq_length() == ids.shape[1] + 1
    assert cache.get_seq_length() == ids.shape[1]
    for layer, pair in zip(cache.layers, before, strict=True):
        now = compat.held(layer)
        assert now is not None
        assert pair is not None
        assert now[0] is pair[0]
        assert now[1] is pair[1]


def test_a_cache_without_its_graph() -> None:
    case = tiny.fresh("llama")
    case.model.requires_grad_(True)
    cache = compat.new_cache(case.model.config)
    case.model(**prompts(case, "one"), **{compat.CACHE: cache}, use_cache=True)
    pairs = [compat.held(layer) for layer in cache.layers]
    assert all(pair is not None and pair[0].requires_grad for pair in pairs)
    compat.cut_graph(cache)
    compat.cut_graph(None)
    pairs = [compat.held(layer) for layer in cache.layers]
    assert not any(tensor.requires_grad for pair in pairs if pair is not None for tensor in pair)


def test_quantised_caches() -> None:
    assert not compat.quantised_cache(compat.new_cache(shared("llama").model.config))
    assert compat.quantised_cache(transformers.QuantizedCache.__new__(transformers.QuantizedCache))


def test_a_package_that_does_not_fit_is_not_taken_for_a_release_that_does_not() -> None:
    """As transformers says it, whose modules load when they are asked for."""
    gone = ImportError("cannot import name 'AttentionInterface' from 'transformers'")
    assert "no place for attention edits" in compat.why_not(gone)
    assert compat.MEND in compat.why_not(gone)
    broken = ModuleNotFoundError("Could not import module 'LlamaForCausalLM'")
    broken.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    told = compat.why_not(broken)
    assert "torchvision::nms" in told
    assert compat.MEND not in told
