"""Profiling sees what the plain model computes, and finds what is planted."""

from __future__ import annotations

import pytest
import tiny
import torch
from sightline.plugin.layout import Layout
from sightline.profiling.measure import measure_gaze, measure_sinks, measure_visual_heads
from sightline.profiling.observe import Observation, look
from torch import Tensor


def test_observation_equals_the_eager_model(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny.fresh("llava_gqa")
    inputs = case.inputs(2, lengths=[4, 7], seed=3)
    heads: list[Tensor] = []
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: heads.append(args[0].double()))
        for layer in case.model.get_decoder().layers
    ]
    case.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        out = case.model(**inputs, output_attentions=True, output_hidden_states=True)
        image = inputs["input_ids"] == case.image_token_id
        with_image, without = list(heads), []
        for row in range(2):
            heads.clear()
            keep = inputs["attention_mask"][row].bool() & ~image[row]
            case.model(input_ids=inputs["input_ids"][row, keep][None])
            without.append([h[0, -1] for h in heads])
    for hook in hooks:
        hook.remove()
    case.model.set_attn_implementation({"text_config": "sdpa"})

    (seen,) = look(case.model, None, [inputs])
    valid = inputs["attention_mask"].bool()
    for layer, attention in enumerate(out.attentions):
        state = out.hidden_states[layer].double()
        expected = (state / state.square().mean(-1, keepdim=True).add(1e-6).sqrt()).abs()
        torch.testing.assert_close(seen.hidden[layer][valid], expected[valid].float(), atol=1e-4, rtol=1e-4)
        for row in range(2):
            rows = valid[row].nonzero().flatten().tolist()
            asked = [i for i in rows if seen.layout.query[row, i]]
            for key in rows:
                behind = [i for i in rows if i >= key]
                mean = sum(float(attention[row, :, i, key].double().mean()) for i in behind) / len(behind)
                assert float(seen.received[layer][row, key]) == pytest.approx(mean, abs=1e-5)
            for head in range(attention.shape[1]):
                rise = sum(
                    float(
                        (attention[row, head, i] - attention[row, head, i - 1]).double().clamp(min=0)[image[row]].sum()
                    )
                    for i in asked
                )
                assert float(seen.rise[layer][row, head]) == pytest.approx(rise, abs=1e-4)
            change = (with_image[layer][row, -1] - without[row][layer]).view(attention.shape[1], -1)
            torch.testing.assert_close(
                seen.divergence[layer][row].double(), change.square().sum(-1), atol=1e-3, rtol=1e-3
            )


def _planted(dims: list[int], strength: float) -> list[Observation]:
    """Prompts of 40 tokens, 5 layers; token 0 and one image token are attended and massive in `dims`."""
    generator = torch.Generator().manual_seed(7)
    seen = []
    for prompt in range(6):
        ids = torch.arange(40)[None]
        image = (ids > 3) & (ids < 30)
        observation = Observation(Layout(ids, torch.ones_like(image), image, ids > 34))
        for layer in range(5):
            hidden = torch.rand(1, 40, 64, generator=generator) * 3
            received = torch.rand(1, 40, generator=generator)
            for token in (0, 5 + prompt):
                hidden[0, token, dims] = strength + torch.rand(len(dims), generator=generator)
                received[0, token] = 5.0
            observation.hidden.append(hidden)
            observation.received.append(received)
            observation.rise.append(torch.rand(1, 8, generator=generator) + 2 * (layer == 2))
            observation.divergence.append(torch.full((1, 8), float(layer)) + torch.arange(8))
        seen.append(observation)
    return seen


def test_planted_sinks_are_found_and_told_apart() -> None:
    seen = _planted([11, 42], strength=9.0)
    sink = measure_sinks(seen)
    assert sink.dims == [11, 42]
    assert 3.0 < sink.tau < 9.0
    for observation in seen:
        found = observation.hidden[3][0][:, sink.dims].amax(-1) > sink.tau
        assert int(found.sum()) == 2


def test_gaze_takes_the_layer_with_most_change_and_those_behind_it() -> None:
    gaze = measure_gaze(_planted([1, 2], 9.0), alpha=4.0)
    assert gaze.saliency_layers == [2]
    assert gaze.enhanced_layers == [3]
    assert gaze.alpha == 4.0


def test_visual_head_scores_are_means() -> None:
    heads = measure_visual_heads(_planted([1, 2], 9.0), layers=[1, 3])
    assert heads.scores is not None
    assert heads.scores[3] == pytest.approx([3.0 + head for head in range(8)])
