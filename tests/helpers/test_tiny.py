"""The tiny models do what other tests take for granted: plain transformers is exact on them, in every mode we test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.helpers import tiny

ALL = list(tiny.FAMILIES)
VISION = tiny.names(images=True)
NEW = 4
LENGTHS = (9, 3, 6)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny.one_thread():
        yield


def _tokens(case: tiny.TinyCase, inputs: tiny.Inputs, **how: object) -> torch.Tensor:
    """The generated part only."""
    out = case.model.generate(**inputs, max_new_tokens=NEW, **{"do_sample": False, **how})
    return out[:, inputs["input_ids"].shape[1] :]


def _rows_agree(case: tiny.TinyCase, inputs: tiny.Inputs) -> None:
    """Greedy tokens and logits of each row of a batch against the same row alone."""
    how = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    together = case.model.generate(**inputs, **how)
    for i in range(len(inputs["input_ids"])):
        row = case.row(inputs, i)
        alone = tiny.speaker(case.model, row).generate(**row, **how)
        for ours, reference in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(ours[i], reference[0], atol=1e-4, rtol=1e-4)
        assert together.sequences[i, -NEW:].tolist() == alone.sequences[0, -NEW:].tolist()


@pytest.mark.parametrize("name", ALL)
def test_forward_is_finite_and_sharp(name: str) -> None:
    case = tiny.get(name)
    logits = case.model(**case.inputs(1)).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.5  # degenerate logits would let any edit pass unnoticed


@pytest.mark.parametrize("name", ALL)
def test_generate_one_row_runs_to_the_end(name: str) -> None:
    case = tiny.get(name)
    out = _tokens(case, case.inputs(1))
    assert out.shape == (1, NEW)
    assert not torch.isin(out, torch.tensor([tiny.PAD, tiny.EOS, tiny.IMAGE])).any()


@pytest.mark.parametrize("name", ALL)
def test_padded_batch_equals_rows_alone(name: str) -> None:
    case = tiny.get(name)
    inputs = case.inputs(3, lengths=LENGTHS)
    assert (inputs["attention_mask"] == 0).any()
    assert (inputs["attention_mask"][:, -1] == 1).all()
    if not case.padding_exact:
        pytest.skip(case.padding_reason)
    _rows_agree(case, inputs)


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("images", [(2, 1, 3), (1, 0, 2)], ids=str)
def test_rows_with_different_numbers_of_images(name: str, images: tuple[int, ...]) -> None:
    case = tiny.get(name)
    if not case.uneven:
        pytest.skip(case.uneven_reason)
    _rows_agree(case, case.inputs(3, lengths=LENGTHS, images_per_row=images, seed=1))


def test_rows_with_several_images_each() -> None:
    """Where rows must have equally many."""
    case = tiny.get("mllama")
    _rows_agree(case, case.inputs(3, lengths=LENGTHS, images_per_row=2, seed=1))


@pytest.mark.parametrize("name", ALL)
def test_static_cache(name: str) -> None:
    case = tiny.get(name)
    if not case.static_cache:
        pytest.skip(case.static_reason)
    inputs = case.inputs(2, lengths=LENGTHS[:2])
    assert torch.equal(_tokens(case, inputs, cache_implementation="static"), _tokens(case, inputs))


@pytest.mark.parametrize("name", ALL)
def test_beams(name: str) -> None:
    case = tiny.get(name)
    if not case.beams:
        pytest.skip(case.beams_reason)
    inputs = case.inputs(2, lengths=LENGTHS[:2])
    together = _tokens(case, inputs, num_beams=3)
    for i in range(2):
        assert torch.equal(together[i], _tokens(case, case.row(inputs, i), num_beams=3)[0])


@pytest.mark.parametrize("name", VISION)
def test_the_image_matters(name: str) -> None:
    case = tiny.get(name)
    inputs = case.inputs(1)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    assert (case.model(**inputs).logits[0, -1] - case.model(**other).logits[0, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", VISION)
def test_images_differ_within_a_batch(name: str) -> None:
    """Families with variable image sizes get them: two rows of a batch hold different numbers of placeholders."""
    case = tiny.get(name)
    per_row = case.inputs(3)["input_ids"].eq(tiny.IMAGE).sum(1)
    assert case.image_token_id == tiny.IMAGE
    assert (per_row > 0).all()
    variable = name in {"llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
    assert (len(set(per_row.tolist())) > 1) == variable


@pytest.mark.parametrize("name", ALL)
def test_text_stands_on_both_sides_of_the_image(name: str) -> None:
    case = tiny.get(name)
    ids = case.row(case.inputs(2, lengths=(4, 2)), 1)["input_ids"][0].tolist()
    assert case.has_images == (tiny.IMAGE in ids)
    assert len(ids) - 1 - max((i for i, t in enumerate(ids) if t >= tiny.IMAGE), default=0) >= 2
    if case.has_images and case.pictures is not None and not case.pictures.leads:
        assert ids.index(tiny.IMAGE) >= 3


def test_inputs_are_seeded() -> None:
    case = tiny.get("qwen2_vl")
    first, same, other = case.inputs(2), case.inputs(2), case.inputs(2, seed=5)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_models_are_shared_and_copies_are_not() -> None:
    case, again, copy = tiny.get("llava"), tiny.get("llava"), tiny.fresh("llava")
    assert case.model is again.model
    assert copy.model is not case.model
    assert copy.model.config is not case.model.config
    assert copy.model.config.text_config is not case.model.config.text_config
    copy.model.lm_head.weight.add_(1.0)
    assert not torch.equal(copy.model.lm_head.weight, case.model.lm_head.weight)
    copy.model.config.text_config._attn_implementation = "eager"
    inner = copy.model.get_decoder()
    assert inner.config is copy.model.config.text_config, "a copy must keep its config shared between its own modules"
    assert case.model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", list(tiny.REFUSED))
def test_refused_models_build_and_run(name: str) -> None:
    model = tiny.refused(name)
    ids = torch.randint(*tiny.TEXT, (1, 5), generator=torch.Generator().manual_seed(0))
    if name == "t5":
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
    elif name == "instructblip":
        prompt = torch.cat([torch.full((1, 4), tiny.IMAGE), ids], 1)
        picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        more = {"qformer_input_ids": ids, "input_ids": prompt, "decoder_input_ids": ids}
        logits = model(pixel_values=picture, **more).logits
    else:
        logits = model(input_ids=ids).logits
    assert torch.isfinite(logits).all()
