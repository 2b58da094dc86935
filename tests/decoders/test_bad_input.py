"""Every mistake a user can make with a decoder ends in a typed error with the mend, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sightline
import torch
from sightline import CalibrationError, ConfigError, LayoutError, SightlineError, UnsupportedModelError

from tests.helpers import naive, tiny
from tests.helpers.engine import assert_message, calibration, generate, prompts, shared
from tests.helpers.naive import SETUPS
from tests.helpers.refusal import refused

SEEING = [name for name, setup in SETUPS.items() if setup.image]
ALL = tiny.LAYERS * tiny.HEADS


def facts_of(case: tiny.TinyCase, **changes: Any) -> dict[str, Any]:
    """A calibration with every section, those of `changes` replaced; None leaves one out."""
    data = {**calibration(case), **naive.SECTIONS, **changes}
    return {key: value for key, value in data.items() if value is not None}


def attach(case: tiny.TinyCase, config: Any, **options: Any) -> sightline.Plug:
    """A decoder on a case's model, with a calibration that fits."""
    return sightline.attach(case.model, {"decoder": config}, **{"calibration": facts_of(case), **options})


def attach_setup(case: tiny.TinyCase, name: str, **options: Any) -> sightline.Plug:
    """One of the decoders in working order."""
    return attach(case, SETUPS[name].config, **{**SETUPS[name].options, **options})


# --- configuration ---------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "unknown decoder": ({"dcore": {}}, ("'dcore'", "did you mean 'decore'", "registered", "hicd")),
    "a method for a decoder": ({"vhr": {}}, ("'vhr'", "methods: [vhr]")),
    "two decoders": ({"decore": {}, "cad": {}}, ("'decoder'", "one name")),
    "a list of decoders": (["decore"], ("'decoder'", "name")),
    "a number for a decoder": (7, ("'decoder'", "7")),
    "settings that are no mapping": ({"decore": 0.5}, ("decoder.decore", "mapping", "0.5", "alpha")),
    "unknown setting": ({"decore": {"alhpa": 1}}, ("decoder.decore.alhpa", "did you mean 'alpha'", "head_list")),
    "alpha of decore as another word": ({"decore": {"alpha": "strong"}}, ("decoder.decore.alpha", "entropy", "strong")),
    "alpha of decore as a list": ({"decore": {"alpha": [1.0]}}, ("decoder.decore.alpha", "entropy")),
    "alpha of decore as nothing": ({"decore": {"alpha": None}}, ("decoder.decore.alpha", "None")),
    "alpha of decore not a number": ({"decore": {"alpha": float("nan")}}, ("decoder.decore.alpha", "nan")),
    **{
        f"alpha of {name} as a word": ({name: {"alpha": "strong"}}, (f"decoder.{name}.alpha", "number", "strong"))
        for name in ("hicd", "cad", "icd", "vcd", "avisc", "sid")
    },
    **{
        f"alpha of {name} infinite": ({name: {"alpha": float("inf")}}, (f"decoder.{name}.alpha", "inf"))
        for name in ("decore", "hicd", "cad", "icd", "vcd", "avisc", "sid")
    },
    "gamma as a word": ({"pai_guidance": {"gamma": "high"}}, ("decoder.pai_guidance.gamma", "number", "high")),
    "strength of juice as a word": ({"juice": {"alpha_enhance": "x"}}, ("decoder.juice.alpha_enhance", "number")),
    "negative count of heads": ({"decore": {"heads": -1}}, ("decoder.decore.heads", "-1")),
    "count of heads as a word": ({"hicd": {"heads": "all"}}, ("decoder.hicd.heads", "integer", "all")),
    "no heads in a list": ({"decore": {"head_list": []}}, ("decoder.decore.head_list",)),
    "a head without a layer": ({"decore": {"head_list": [3]}}, ("decoder.decore.head_list",)),
    "a head of three numbers": ({"hicd": {"head_list": [[1, 2, 3]]}}, ("decoder.hicd.head_list",)),
    "cap of zero": ({"decore": {"cap": 0}}, ("decoder.decore.cap", "greater", "0")),
    "unknown mask": ({"decore": {"mask": "key"}}, ("decoder.decore.mask", "query", "output", "key")),
    "unknown span of decore": ({"decore": {"span": "all"}}, ("decoder.decore.span", "auto", "last", "prompt")),
    "unknown span of hicd": ({"hicd": {"span": "last"}}, ("decoder.hicd.span", "all", "prompt")),
    **{
        f"beta of {name} above 1": ({name: {"beta": 1.5}}, (f"decoder.{name}.beta", "1.5"))
        for name in ("hicd", "icd", "vcd", "avisc", "sid", "pai_guidance", "dola")
    },
    "negative beta": ({"dola": {"beta": -0.1}}, ("decoder.dola.beta", "-0.1")),
    "unknown half": ({"dola": {"layers": "middle"}}, ("decoder.dola.layers", "low", "high", "middle")),
    "a noise step beyond the schedule": ({"vcd": {"noise_step": 1000}}, ("decoder.vcd.noise_step", "1000")),
    "unknown fill": ({"avisc": {"fill": "mean"}}, ("decoder.avisc.fill", "zeros", "ones", "noise")),
    "a share above 1": ({"avisc": {"gamma": 1.2}}, ("decoder.avisc.gamma", "1.2")),
    "no image token for sid": ({"sid": {"share": 0.0}}, ("decoder.sid.share", "greater", "0")),
    "all image tokens for sid": ({"sid": {"share": 1.0}}, ("decoder.sid.share", "less", "1")),
    "no layer in front of the first": ({"sid": {"layer": 0}}, ("decoder.sid.layer", "greater", "1")),
    "an empty instruction": ({"icd": {"instruction_ids": []}}, ("decoder.icd.instruction_ids",)),
    "unknown place": ({"icd": {"place": "end"}}, ("decoder.icd.place", "question", "start")),
    "an instruction without a tokenizer": ({"icd": {"instruction": "Be vague."}}, ("icd", "processor=")),
    "no context": ({"cad": {}}, ("cad", "context", "attach(context=", "begin", "end")),
    "marks without a tokenizer": ({"cad": {"begin": "<", "end": ">"}}, ("cad", "processor=")),
    "the way back of opera": ({"opera": {"threshold": 15}}, ("decoder.opera", "retrospection", "threshold")),
    "one mark only": ({"cad": {"begin": "<"}}, ("cad", "end")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_configuration(name: str) -> None:
    config, words = MALFORMED[name]
    case = shared("llava")
    with refused(case, ConfigError, *words):
        attach(case, config)


def test_a_decoder_among_the_methods() -> None:
    case = shared("llava")
    with refused(case, ConfigError, "methods[0]", "'decore' is a decoder", "decoder: decore"):
        sightline.attach(case.model, {"methods": ["decore"]}, calibration=facts_of(case))


# --- heads, layers and calibration -----------------------------------------------------------------------------------

UNFIT: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "more heads than there are, decore": ({"decore": {"heads": ALL + 1}}, {}, ("decore.heads", "33", "32", "fewer")),
    "more heads than there are, hicd": ({"hicd": {"heads": 99}}, {}, ("hicd.heads", "99", "32", "fewer")),
    "more random heads than are left": (
        {"decore": {"heads": ALL - 5, "random": 1}},
        {},
        ("decore", "27", "5", "fewer"),
    ),
    "a head beyond the last": ({"decore": {"head_list": [[1, 0], [1, 8]]}}, {}, ("decore.head_list", "1-8", "4", "8")),
    "a layer beyond the last": ({"hicd": {"head_list": [[4, 0]]}}, {}, ("hicd.head_list", "4-0", "4 layers")),
    "a negative head": ({"decore": {"head_list": [[1, -1]]}}, {}, ("decore.head_list", "1--1")),
    "a head to enlarge that is not there": ({"juice": {"enhance": [[0, 9]]}}, {}, ("juice.enhance", "0-9")),
    "a head to suppress that is not there": ({"juice": {"suppress": [[9, 0]]}}, {}, ("juice.suppress", "9-0")),
    "an early layer that is not there": ({"dola": {"layers": [1, 4]}}, {}, ("dola.layers", "4", "0..3")),
    "a layer of sid that is not there": ({"sid": {"layer": 4}}, {}, ("sid.layer", "4", "0..3")),
    "a negative early layer": ({"dola": {"layers": [-1]}}, {}, ("dola.layers", "-1")),
    **{
        f"no section, {name}": ({name: {}}, {section: None}, (f"decoder '{name}'", f"'{section}'", "calibration=PATH"))
        for name, section in (
            ("decore", "retrieval_heads"),
            ("hicd", "inducing_heads"),
            ("juice", "conflict_heads"),
        )
    },
    "another architecture": ({"decore": {}}, {"architecture": "llama"}, ("architecture llama", "llava", "file made")),
    "another layer count": (
        {"decore": {"heads": 2}},
        {"layers": 5, "visual_heads": None, "inducing_heads": None, "retrieval_heads": {"scores": [[0.0] * 8] * 5}},
        ("layer count 5", "4 in the"),
    ),
    "another head count": (
        {"decore": {"heads": 2}},
        {"heads": 9, "visual_heads": None, "inducing_heads": None, "retrieval_heads": {"scores": [[0.0] * 9] * 4}},
        ("head count 9", "8 in the"),
    ),
    "scores of another shape": (
        {"decore": {"heads": 2}},
        {"retrieval_heads": {"scores": [[0.0] * 8] * 3}},
        ("retrieval_heads.scores", "4 lists of 8"),
    ),
    "conflict heads that are not there": (
        {"juice": {}},
        {"conflict_heads": {"enhance": [[4, 0]]}},
        ("conflict_heads", "4-0"),
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_heads_and_calibration(name: str) -> None:
    config, changes, words = UNFIT[name]
    case = shared("llava")
    with refused(case, CalibrationError, *words):
        attach(case, config, calibration=facts_of(case, **changes))


def test_no_calibration_at_all() -> None:
    case = shared("llava")
    for name in ("decore", "hicd", "juice"):
        with refused(case, CalibrationError, f"decoder '{name}'", "no calibration", "calibration=PATH"):
            sightline.attach(case.model, name)


# --- a branch that equals the model ----------------------------------------------------------------------------------

EQUAL: dict[str, Any] = {
    "no masked head": {"decore": {"heads": 0}},
    "no dispersed head": {"hicd": {"heads": 0}},
    "no enlarged or suppressed head": {"juice": {"enhance": [], "suppress": []}},
    "heads enlarged by nothing": {"juice": {"enhance": [[1, 2]], "alpha_enhance": 0.0}},
    "a head enlarged and suppressed alike": {"juice": {"enhance": [[1, 2]], "suppress": [[1, 2]]}},
    "no early layer": {"dola": {"layers": []}},
}


@pytest.mark.parametrize("name", EQUAL)
def test_a_branch_that_equals_the_model(name: str) -> None:
    case = shared("llava")
    ((decoder, settings),) = EQUAL[name].items()
    with refused(case, SightlineError, decoder):
        attach(case, {decoder: settings})


def test_a_section_without_heads() -> None:
    case = shared("llava")
    with refused(case, SightlineError, "juice", "head"):
        attach(case, {"juice": {}}, calibration=facts_of(case, conflict_heads={"enhance": [], "suppress": []}))


# --- contexts and questions ------------------------------------------------------------------------------------------


def _one_row_empty(ids: torch.Tensor) -> torch.Tensor:
    mask = naive.context(ids)
    mask[1] = False
    return mask


CONTEXTS: dict[str, tuple[Callable[[torch.Tensor], Any], tuple[str, ...]]] = {
    "empty": (lambda ids: torch.zeros_like(ids), ("context", "row 0", "empty", "check")),
    "empty in one row": (_one_row_empty, ("context", "row 1", "empty")),
    "on padding only": (lambda ids: ids == tiny.PAD, ("context", "row 0", "empty")),
    "the whole prompt": (lambda ids: (ids >= tiny.TEXT[0]) & (ids < tiny.IMAGE), ("context", "end", "row 0")),
    "the image": (lambda ids: ids == tiny.IMAGE, ("context", "image", "pai_guidance")),
    "too short": (lambda ids: ids[:, 1:] > 0, ("context", "shape")),
    "one row": (lambda ids: ids[0] > 0, ("context",)),
    "a list": (lambda ids: [[True] * ids.shape[1]] * len(ids), ("context", "list")),
    "nothing": (lambda ids: None, ("context", "NoneType")),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts(name: str) -> None:
    context, words = CONTEXTS[name]
    case = shared("llava")
    inputs = prompts(case, "padded")
    with refused(case, LayoutError, *words), attach(case, {"cad": {}}, context=context):
        generate(case.model, inputs)


def test_no_question_to_stand_before() -> None:
    case = shared("llava")
    inputs = prompts(case, "padded")
    with (
        refused(case, LayoutError, "icd", "row 0", "question", "place: start"),
        attach(case, SETUPS["icd"].config, query=torch.zeros_like),
    ):
        generate(case.model, inputs)


@pytest.mark.parametrize("token", [-1, tiny.VOCAB])
def test_instruction_ids_that_are_no_tokens(token: int) -> None:
    case = shared("llava")
    with (
        refused(case, SightlineError, "icd", "instruction_ids", str(token)),
        attach(case, {"icd": {"instruction_ids": [20, token]}}),
    ):
        generate(case.model, prompts(case, "one"))


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", SEEING)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3", "llama"])
def test_no_image_in_the_prompt(family: str, decoder: str) -> None:
    case = shared(family)
    inputs = case.inputs(2, images_per_row=0)
    with refused(case, LayoutError, f"decoder '{decoder}'", "image", "processor"), attach_setup(case, decoder):
        generate(case.model, inputs)


@pytest.mark.parametrize("decoder", SEEING)
def test_a_row_without_an_image_among_others(decoder: str) -> None:
    """Its branch is the model itself or a refusal; either way its neighbours' scores are what they are alone."""
    case = shared("llava")
    batch = prompts(case, "mixed")
    with attach_setup(case, decoder):
        together = generate(case.model, batch)
        for i in (0, 2):
            alone = generate(case.model, case.row(batch, i))
            assert alone.tokens[0].tolist() == together.tokens[i].tolist()
            torch.testing.assert_close(alone.scores[0], together.scores[i], atol=1e-3, rtol=1e-3)
    assert not together.scores.isnan().any()
    bare = generate(case.model, case.row(batch, 1))
    assert bare.tokens[0].tolist() == together.tokens[1].tolist(), "nothing to contrast: the plain answer"


@pytest.mark.parametrize("decoder", SETUPS)
def test_labels(decoder: str) -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    with refused(case, UnsupportedModelError, "labels", "sightline.score"), attach_setup(case, decoder):
        case.model(**inputs, labels=inputs["input_ids"])


@pytest.mark.parametrize("decoder", SETUPS)
@pytest.mark.parametrize("call", ["generate", "forward"])
def test_right_padding(decoder: str, call: str) -> None:
    case = shared("llava")
    inputs = prompts(case, "padded")
    for key in ("input_ids", "attention_mask"):
        rows = zip(inputs[key], inputs["attention_mask"].sum(1), strict=True)
        inputs[key] = torch.stack([row.roll(int(count)) for row, count in rows])
    with refused(case, LayoutError, "padded on the right", "left"), attach_setup(case, decoder):
        case.model(**inputs) if call == "forward" else generate(case.model, inputs)


def test_some_logits_by_index() -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    with refused(case, UnsupportedModelError, "logits_to_keep", "number"), attach_setup(case, "decore"):
        case.model(**inputs, logits_to_keep=torch.tensor([3, 5]))


@pytest.mark.parametrize("decoder", SETUPS)
def test_embeddings_in_place_of_tokens(decoder: str) -> None:
    case = shared("llava")
    ids = prompts(case, "one")["input_ids"].clamp(max=tiny.TEXT[1])
    embeds = case.model.get_input_embeddings()(ids)
    with refused(case, LayoutError, "inputs_embeds", "input_ids"), attach_setup(case, decoder):
        case.model(inputs_embeds=embeds)


def test_noise_needs_pixels() -> None:
    """Features that were encoded beforehand cannot be noised."""
    case = shared("llava")
    inputs = prompts(case, "one")
    pixels = inputs.pop("pixel_values")
    features = case.model.get_image_features(pixel_values=pixels).pooler_output
    with refused(case, LayoutError, "vcd", "pixel_values"), attach_setup(case, "vcd"):
        case.model(**inputs, mm_encoder_outputs={"image_features": features})


# --- ways to generate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", SETUPS)
@pytest.mark.parametrize(
    "how",
    [{"prompt_lookup_num_tokens": 2}, {"use_cache": False}, {"guidance_scale": 1.5}, {"assistant_early_exit": 1}],
    ids=lambda how: next(iter(how)),
)
def test_ways_to_generate_that_cannot_be_followed(decoder: str, how: dict[str, Any]) -> None:
    case = shared("llava")
    with refused(case, UnsupportedModelError, f"generate({next(iter(how))}"), attach_setup(case, decoder):
        case.model.generate(**prompts(case, "one"), max_new_tokens=3, **how)


def test_an_assistant_model() -> None:
    case = shared("llava")
    with refused(case, UnsupportedModelError, "assistant_model", "without"), attach_setup(case, "decore"):
        case.model.generate(**prompts(case, "one"), max_new_tokens=3, assistant_model=shared("llama").model)


def test_a_cache_that_this_attachment_has_not_filled() -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    for decoder in ("decore", "dola", "cad"):
        foreign = case.model(**inputs, use_cache=True).past_key_values
        with refused(case, LayoutError, "cache", "not read that prompt"), attach_setup(case, decoder):
            case.model(input_ids=torch.tensor([[50]]), attention_mask=mask, past_key_values=foreign)


# --- scores ----------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "too few": ([[[1]], [[2]]], ("2 prompts", "3")),
    "too many": ([[[1]]] * 4, ("4 prompts", "3")),
    "none for one prompt": ([[[1]], [], [[2]]], ("prompt 1", "no answer")),
    "an empty answer": ([[[1]], [[2], []], [[3]]], ("prompt 1", "empty answer")),
    "a token that is not there": ([[[1]], [[2, tiny.VOCAB]], [[3]]], ("prompt 1", str(tiny.VOCAB))),
    "a negative token": ([[[1]], [[2]], [[-5]]], ("prompt 2", "-5")),
}


@pytest.mark.parametrize("decoder", ["decore", "cad", None])
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_to_score(name: str, decoder: str | None) -> None:
    answers, words = ANSWERS[name]
    case = shared("llava")
    inputs = prompts(case, "padded")
    with refused(case, LayoutError, *words):
        if decoder is None:
            sightline.score(case.model, inputs, answers)
        else:
            with attach_setup(case, decoder):
                sightline.score(case.model, inputs, answers)


def test_scores_of_prompts_padded_on_the_right() -> None:
    case = shared("llava")
    inputs = prompts(case, "padded")
    for key in ("input_ids", "attention_mask"):
        rows = zip(inputs[key], inputs["attention_mask"].sum(1), strict=True)
        inputs[key] = torch.stack([row.roll(int(count)) for row, count in rows])
    with refused(case, LayoutError, "padded on the right", "left"):
        sightline.score(case.model, inputs, [[[1]], [[2]], [[3]]])


# --- models ----------------------------------------------------------------------------------------------------------


def test_image_features_between_the_layers() -> None:
    case = shared("qwen3_vl")
    with refused(case, UnsupportedModelError, "avisc", "qwen3_vl", "vcd"):
        attach_setup(case, "avisc")


@pytest.mark.parametrize("family", tiny.REFUSED)
@pytest.mark.parametrize("decoder", SETUPS)
def test_refused_families(decoder: str, family: str) -> None:
    model = tiny.refused(family)
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, {"decoder": SETUPS[decoder].config}, **SETUPS[decoder].options)
    assert_message(caught.value, f"'{model.config.model_type}'")
