"""Settings keep their types and their size, and scores that are no numbers never become an answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import sightline
import torch
from sightline import ConfigError, LayoutError, ScoresError
from sightline.plugin.branches.decoder import DECODERS
from sightline.plugin.core.method import LARGEST, LARGEST_INT, Settings
from sightline.plugin.core.registry import METHODS as REGISTRY

from tests.helpers import naive, tiny
from tests.helpers.engine import METHODS, SETTINGS, assert_message, calibration, entry, generate, prompts, shared
from tests.helpers.naive import SETUPS

FAMILY = "llava_gqa"
KINDS: dict[str, type[Settings]] = {
    **{name: REGISTRY.find(name).config for name in METHODS},
    **{name: DECODERS.find(name).config for name in SETUPS},
}


def fields(kind: type) -> Iterator[tuple[str, str]]:
    """(method or decoder, setting) of every setting that takes a number of this type."""
    for name, settings in KINDS.items():
        for field, info in settings.model_fields.items():
            if kind in {info.annotation, *get_args(info.annotation)}:
                yield name, field


def config(name: str, **settings: Any) -> dict[str, Any]:
    if name in METHODS:
        return {"methods": [{name: {**SETTINGS.get(name, {}), **settings}}]}
    return {"decoder": {name: {**SETUPS[name].settings, **settings}}}


def attach(name: str, **settings: Any) -> sightline.Plug:
    case = shared(FAMILY)
    options = SETUPS[name].options if name in SETUPS else {}
    facts = calibration(case, **naive.sections(case))
    return sightline.attach(case.model, config(name, **settings), calibration=facts, **options)


# --- types and sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [True, "2", "0.5"])
@pytest.mark.parametrize(("name", "field"), [*fields(float), *fields(int)])
def test_a_number_is_a_number(name: str, field: str, wrong: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        attach(name, **{field: wrong})
    assert_message(caught.value, name, field)


def test_other_types_are_kept_too() -> None:
    for name, field, wrong in (
        ("vhr", "outlier_filter", 1),
        ("vhr", "outlier_filter", "yes"),
        ("focus", "heads", 2.0),
        ("head_gain", "head_list", [[0, True]]),
        ("decore", "head_list", [[0, "1"]]),
    ):
        with pytest.raises(ConfigError) as caught:
            attach(name, **{field: wrong})
        assert_message(caught.value, name, field)
    with attach("decore", head_list=[[0, 1], (1, 2)]) as plug:
        assert plug.decoder is not None
    with attach("vhr", alpha=2):
        pass


HUGE = [1e38, -1e38, 1e308, 2.0**21]


@pytest.mark.parametrize(("name", "field"), [*fields(float)])
def test_a_size_without_a_finite_effect_is_refused(name: str, field: str) -> None:
    for number in HUGE:
        with pytest.raises(ConfigError) as caught:
            attach(name, **{field: number})
        assert_message(caught.value, name, field)


@pytest.mark.parametrize(("name", "field"), [*fields(int)])
def test_a_count_without_end_is_refused(name: str, field: str) -> None:
    for number in (10**30, -(10**30), 2**31):
        with pytest.raises(ConfigError) as caught:
            attach(name, **{field: number})
        assert_message(caught.value, name, field)


def edges(name: str, field: str) -> Iterator[float]:
    """The largest and the smallest that a setting takes."""
    for number in (float(LARGEST), -float(LARGEST), 50.0, 1.0, 1 - 2**-53, 0.9999, 1e-6, 0.0, 1e-300, 5e-324):
        try:
            KINDS[name](**{field: number})
        except ValueError:
            continue
        yield number


@pytest.mark.parametrize(("name", "field"), [*fields(float)])
@pytest.mark.filterwarnings("ignore::sightline.NoEffectWarning")
def test_every_size_that_is_taken_has_a_finite_effect(name: str, field: str) -> None:
    """Or is refused, typed, where it is not; never a caption of nothing."""
    case = shared(FAMILY)
    inputs = prompts(case, "one")
    tried = 0
    for number in edges(name, field):
        with attach(name, **{field: number}):
            answer = generate(case.model, inputs, max_new_tokens=2)
        assert not answer.scores.isnan().any(), number
        assert answer.scores.amax(-1).isfinite().all(), number
        tried += 1
    assert tried > 1


def test_seeds_and_counts_at_their_end() -> None:
    case = shared(FAMILY)
    for name, settings in (
        ("vcd", {"seed": LARGEST_INT}),
        ("locore", {"window": LARGEST_INT}),
        ("sgrs", {"window": 10_000}),
    ):
        with attach(name, **settings):
            assert generate(case.model, prompts(case, "one"), max_new_tokens=2).scores.amax(-1).isfinite().all()


def test_the_strength_at_which_gift_lost_its_words() -> None:
    """e^89 is no float32: every logit was NaN and the caption empty, without a word."""
    with pytest.raises(ConfigError) as caught:
        attach("gift", alpha=89)
    assert_message(caught.value, "gift", "alpha", "50")


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vhr", "decore"])
def test_scores_that_are_no_numbers_end_the_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what was attached, and the next call on the model is as it was."""
    case = shared(FAMILY)
    inputs = prompts(case, "padded")
    bare = generate(case.model, inputs)
    head = case.model.get_output_embeddings()

    def broken(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[1] = math.nan
        return output

    handle = head.register_forward_hook(broken)
    try:
        with attach(name), pytest.raises(ScoresError) as caught:
            generate(case.model, inputs)
    finally:
        handle.remove()
    assert_message(caught.value, "row 1", name, "strength", "float32")
    assert generate(case.model, inputs).same_bits(bare)


def test_half_precision_that_overflows() -> None:
    case = tiny.fresh(FAMILY)
    model = case.model.half()
    inputs = {k: v.half() if v.is_floating_point() else v for k, v in prompts(case, "one").items()}
    loud = {"methods": [{"head_gain": {"head_list": [[0, 1], [1, 2]], "gain": float(LARGEST)}}]}
    with sightline.attach(model, loud), pytest.raises(ScoresError) as caught:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert_message(caught.value, "head_gain", "float16")


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_pai_without_the_prompts_boost() -> None:
    """As released: the first token is the plain model's, the later ones are boosted."""
    case = shared(FAMILY)
    inputs = prompts(case, "padded")
    plain = generate(case.model, inputs)
    with sightline.attach(case.model, {"methods": [entry("pai", prompt=False)]}):
        late = generate(case.model, inputs)
    with sightline.attach(case.model, {"methods": [entry("pai")]}):
        early = generate(case.model, inputs)
    assert torch.equal(late.logits[:, 0], plain.logits[:, 0])
    assert not torch.equal(early.logits[:, 0], plain.logits[:, 0])
    assert float((late.logits[:, 1] - plain.logits[:, 1]).abs().max()) > 1e-3


def test_a_prompt_of_nothing_but_its_image() -> None:
    case = shared(FAMILY)
    whole = prompts(case, "one")
    image = whole["input_ids"][0].eq(tiny.IMAGE)
    inputs = {**whole, "input_ids": whole["input_ids"][:, image], "attention_mask": whole["attention_mask"][:, image]}
    with attach("pai_guidance"), pytest.raises(LayoutError) as caught:
        generate(case.model, inputs)
    assert_message(caught.value, "row 0", "image tokens", "question")


@pytest.mark.parametrize("name", [name for name, setup in SETUPS.items() if setup.image])
@pytest.mark.filterwarnings("ignore::sightline.NoEffectWarning")
def test_a_row_without_an_image_keeps_the_models_scores(name: str) -> None:
    """No contrast and no cutoff, as under the methods; its neighbours are contrasted."""
    case = shared("llava")
    batch = prompts(case, "mixed")
    plain = generate(case.model, batch)
    setup = SETUPS[name]
    with sightline.attach(case.model, {"decoder": setup.config}, **setup.options):
        answer = generate(case.model, batch)
        beams = generate(case.model, batch, num_beams=2)
    torch.testing.assert_close(answer.scores[1], plain.scores[1], atol=1e-4, rtol=1e-4)
    assert answer.scores[1].isfinite().all()
    assert beams.tokens.shape == answer.tokens.shape
    assert answer.scores[0].isneginf().any()
