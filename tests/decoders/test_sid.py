"""SID's own: which image tokens are the least attended, and a prompt whose last row is read apart."""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline.common.errors import NoEffectWarning, UnsupportedModelError
from sightline.decoders.sid import SIDSettings, least_attended
from sightline.plugin.core.attention import LayerPlan, Stage, edited_attention
from sightline.plugin.core.edits import HIDDEN, Bias

from tests.helpers import naive
from tests.helpers.engine import Answer, entry, generate, prompts, shared

SID = naive.SETUPS["sid"]


def answer(methods: list[Any], kind: str = "padded") -> Answer:
    case = shared("llava_gqa")
    with sightline.attach(case.model, {"methods": methods, "decoder": SID.config}):
        return generate(case.model, prompts(case, kind))


def test_the_share_is_100_of_576() -> None:
    attention = torch.rand(2, 600, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(2, 600, dtype=torch.bool)
    image[0, 5:581] = True
    image[1, 590:593] = True
    seen = least_attended(attention, image, SIDSettings().share)
    assert seen.sum(-1).tolist() == [100, 1]
    assert not (seen & ~image).any()
    bound = attention[0][image[0]].sort().values[99]
    assert torch.equal(seen[0], image[0] & (attention[0] <= bound))
    equals = least_attended(torch.zeros(1, 6), torch.tensor([[0, 1, 1, 1, 1, 0]]) == 1, 0.5)
    assert equals.tolist() == [[False, True, True, False, False, False]]


def test_a_prompt_whose_last_row_is_read_apart() -> None:
    """The rows before it see what the last one decides: the prompt is rehearsed for that."""
    idle = entry("gift", alpha=0.0, saliency_layers=[3], enhanced_layers=[2, 3])
    usual, parted = answer([]), answer([idle])
    torch.testing.assert_close(parted.logits, usual.logits, atol=1e-4, rtol=1e-4)


def test_a_row_without_an_image_keeps_the_models_scores() -> None:
    case = shared("llava_gqa")
    inputs = dict(prompts(case, "pair"))
    bare = inputs["input_ids"][1].eq(case.model.config.image_token_id)
    inputs["input_ids"][1][bare] = 7
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with sightline.attach(case.model, {"decoder": SID.config}) as plug:
        ours = generate(case.model, inputs)
        visible = plug.report()["sid"]["visible"]
    plain = generate(case.model, inputs)
    torch.testing.assert_close(ours.scores[1], plain.scores[1], atol=1e-4, rtol=1e-4)
    assert [any(row) for row in visible] == [True, False]


def test_a_share_that_is_all_image_tokens_is_told() -> None:
    case = shared("llava_gqa")
    config = {"decoder": {"sid": {"share": 0.99, "beta": 0}}}
    with sightline.attach(case.model, config) as plug:
        with pytest.warns(NoEffectWarning, match="row 0.*all image tokens"):
            generate(case.model, prompts(case, "pair"))
        told = plug.report()["sid"]
    assert not told["acted"]
    assert list(told["idle"]) == [0, 1]


def test_what_several_tokens_in_a_pass_cannot_give_is_refused() -> None:
    """There is no gate, so the refusal must not blame one alone."""
    case = shared("llava_gqa")
    inputs = prompts(case, "one")
    with sightline.attach(case.model, {"decoder": SID.config}):
        cache = case.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(UnsupportedModelError, match="a copy that each token changes"):
            case.model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache, output_hidden_states=True)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_hidden_keys_leave_no_trace_in_a_long_prompt(dtype: torch.dtype) -> None:
    """Nearly all of a row's attention lies on what is hidden: what is left is not a difference of large numbers."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, 4, 700, 8, generator=generator) for _ in range(3))
    query[..., 0], key[:, :, 20:600, 0] = 3, 6  # as good as all of the attention
    hidden = torch.zeros(1, 700, dtype=torch.bool)
    hidden[:, 20:600] = True
    module = torch.nn.Module()
    module.layer_idx, module.is_causal = 0, True  # type: ignore[assignment]
    plan = LayerPlan.of([Bias(torch.where(hidden, HIDDEN, 0.0)[:, None])])
    given = [one.to(dtype) for one in (query, key, value)]
    ours = edited_attention(plan, Stage(start=0, prompt=700), module, *given, None, scaling=1.0)
    mask = torch.ones(700, 700, dtype=torch.bool).tril() & ~hidden
    expected = torch.nn.functional.scaled_dot_product_attention(*(one.double() for one in given), mask, scale=1.0)
    error = 1e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(ours.double(), expected.transpose(1, 2), atol=error, rtol=error)
