"""Causal Head Gating finds planted heads, its gradient is that of the formula, and it continues; Head Pursuit equals SOMP."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sightline
import torch
from sightline.common.errors import CalibrationError, UnsupportedModelError
from sightline.models.samples import Example, Region
from sightline.plugin.core.host import Host
from sightline.profiling.data.tokenised import AnswerPair
from sightline.profiling.job import Job, Partial
from sightline.profiling.probes import head_gates as gates
from sightline.profiling.probes import word_heads as words
from sightline.profiling.probes.direct import Direct
from transformers.utils.quantization_config import QuantizationMethod

from tests.helpers import tiny
from tests.helpers.engine import assert_message, generate, prompts
from tests.helpers.profiling_stub import Processor, job

HELPS, HARMS = (3, 1), (2, 6)  # of different key heads
TARGET = 123
EXAMPLES = [AnswerPair([11 + n, 40, 77 - n], [TARGET], [5]) for n in range(12)]


@torch.no_grad()
def planted() -> Any:
    """A model with one head that always writes the target's row of the readout, one that writes its opposite, and others

    that write next to nothing.
    """
    model = tiny.fresh("qwen2").model
    layers = tiny.decoder(model).layers
    for block in layers:
        block.self_attn.o_proj.weight *= 1e-4
    row = model.get_output_embeddings().weight[TARGET]
    for (layer, head), size in ((HELPS, 3.0), (HARMS, -3.0)):
        module = layers[layer].self_attn
        own, shared = module.head_dim, module.num_key_value_groups
        values = slice(head // shared * own, head // shared * own + own)
        module.v_proj.weight[values] = 0
        module.v_proj.bias[values] = 1
        module.o_proj.weight[:, head * own : head * own + own] = size * (row / row.norm())[:, None] / own
    return model


def work_on(model: Any, folder: Path, *, resume: bool = False, **options: Any) -> Job:
    kept = Partial(folder / "x.partial", {}, resume=resume)
    work = Job(model, Processor(tiny.get("llama")), [], Host(model).facts(None), kept, **options)
    work.profile = "head-gates"
    return work


def test_gating_finds_the_head_that_helps_and_the_one_that_harms(tmp_path: Path) -> None:
    section = gates.head_gates(work_on(planted(), tmp_path), EXAMPLES, steps=40)
    table = {name: np.array(getattr(section, name)) for name in ("facilitating", "irrelevant", "interfering")}
    assert np.unravel_index(table["facilitating"].argmax(), (tiny.LAYERS, tiny.HEADS)) == HELPS
    assert np.unravel_index(table["interfering"].argmax(), (tiny.LAYERS, tiny.HEADS)) == HARMS
    assert table["facilitating"][HELPS] > 0.9
    assert table["interfering"][HARMS] > 0.9
    idle = [at for at in np.ndindex(tiny.LAYERS, tiny.HEADS) if at not in (HELPS, HARMS)]
    assert min(table["irrelevant"][at] for at in idle) > 0.9
    assert np.allclose(table["irrelevant"], (1 - table["interfering"]) * (1 - table["facilitating"]), atol=1e-4)
    assert np.allclose(section.gates, 1 - table["interfering"])


def test_the_gates_make_right_answers_more_probable(tmp_path: Path) -> None:
    """Used as a head gain, they are what was fitted."""
    model = planted()
    section = gates.head_gates(work_on(model, tmp_path), EXAMPLES, steps=40)
    ids = torch.tensor([list(one.prompt) for one in EXAMPLES])
    with torch.no_grad():
        plain = model(input_ids=ids).logits[:, -1].log_softmax(-1)[:, TARGET].mean()
        with sightline.attach(model, {"methods": [{"head_gain": {"gains": section.gates}}]}):
            gated = model(input_ids=ids).logits[:, -1].log_softmax(-1)[:, TARGET].mean()
    assert gated > plain + 0.1


def test_one_step_follows_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient by finite differences of the objective, hooks on the output projections for gates."""
    model = tiny.fresh("llama").model.double()
    examples = [AnswerPair([11, 40, 77], [90, 31], [5]), AnswerPair([15, 60, 33, 21], [44], [5])]
    theta = torch.randn(tiny.LAYERS, tiny.HEADS, generator=torch.Generator().manual_seed(0)) * 2

    @torch.no_grad()
    def objective(logits: torch.Tensor) -> float:
        handles = []
        for layer, block in enumerate(tiny.decoder(model).layers):
            ends = torch.sigmoid(torch.tensor([-4.0, 4.0]).double())
            gate = (torch.sigmoid(logits[layer].double()) - ends[0]) / (ends[1] - ends[0])
            gate = gate.repeat_interleave(block.self_attn.head_dim)
            handles.append(block.self_attn.o_proj.register_forward_pre_hook(lambda _, x, gate=gate: (x[0] * gate,)))
        loss = 0.0
        for one in examples:
            log = model(input_ids=torch.tensor([[*one.prompt, *one.right]])).logits[0].double().log_softmax(-1)
            tokens = [float(log[len(one.prompt) - 1 + i, t]) for i, t in enumerate(one.right)]
            loss -= sum(tokens) / len(tokens)
        for handle in handles:
            handle.remove()
        return loss

    with Direct(model) as direct:
        found = gates._gradient(direct, theta.clone().requires_grad_(), examples)
    for layer, head in ((0, 0), (1, 5), (2, 3), (3, 7)):
        more, less = theta.clone(), theta.clone()
        more[layer, head] += 1e-2
        less[layer, head] -= 1e-2
        slope = (objective(more) - objective(less)) / 2e-2
        assert float(found[layer, head]) == pytest.approx(slope, rel=0.02, abs=1e-5)


@pytest.mark.parametrize("stopped_at", [3, 7, 11])
def test_an_interrupted_fit_continues_to_the_same_gates(
    stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.fresh("llama").model
    whole = gates.head_gates(work_on(model, tmp_path / "a"), EXAMPLES, steps=4)
    work = work_on(model, tmp_path / "b")
    real, calls = gates._gradient, []

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > stopped_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(gates, "_gradient", stop)
    with pytest.raises(KeyboardInterrupt):
        gates.head_gates(work, EXAMPLES, steps=4)
    work.partial.save()
    monkeypatch.setattr(gates, "_gradient", real)
    told: list[tuple[int, int]] = []
    again = work_on(model, tmp_path / "b", resume=True, advance=lambda name, done, total: told.append((done, total)))
    assert gates.head_gates(again, EXAMPLES, steps=4) == whole
    assert told[-1] == (12, 12)
    assert len(told) < 15
    other = gates.head_gates(work_on(model, tmp_path / "c", seed=1), EXAMPLES, steps=4)
    assert other != whole
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gates_refuse(tmp_path: Path) -> None:
    model = tiny.get("llama").model
    for examples in ([], [AnswerPair([], [1], [2])], [AnswerPair([1], [], [2])]):
        with pytest.raises(CalibrationError, match="need examples"):
            gates.head_gates(work_on(model, tmp_path), examples)
    model = tiny.fresh("llama").model
    model.quantization_method = QuantizationMethod.GPTQ
    with pytest.raises(UnsupportedModelError) as caught:
        gates.head_gates(work_on(model, tmp_path), EXAMPLES)
    assert_message(caught.value, "head gates", "gradients", "quantised", "gptq", "load")


def test_a_gguf_file_is_read_into_plain_weights(tmp_path: Path) -> None:
    model = tiny.fresh("llama").model
    plain = gates.head_gates(work_on(model, tmp_path), EXAMPLES, steps=2)
    model.quantization_method, model.is_quantized = QuantizationMethod.GGUF, True  # as transformers leaves it
    assert gates.head_gates(work_on(model, tmp_path), EXAMPLES, steps=2) == plain


# --- Head Pursuit, arXiv 2510.21518 ----------------------------------------------------------------------------------


def somp(x: np.ndarray, dictionary: np.ndarray, atoms: int) -> tuple[list[int], list[float]]:
    """Simultaneous orthogonal matching pursuit, by least squares anew in every step: the words, and 1 - |R|^2 / |X|^2."""
    x = x - x.mean(0)
    unit = np.stack([row / np.sqrt((row**2).sum()) for row in dictionary])
    rest, taken, shares = x.copy(), [], []
    for _ in range(atoms):
        scores = [-1.0 if k in taken else sum(abs(float(r @ word)) for r in rest) for k, word in enumerate(unit)]
        taken.append(int(np.argmax(scores)))
        chosen = dictionary[taken].T  # [D, k], not normalised: the span is the same
        rest = x - (chosen @ np.linalg.lstsq(chosen, x.T, rcond=None)[0]).T
        shares.append(1 - (rest**2).sum() / (x**2).sum())
    return taken, shares


def test_pursuit_equals_naive_somp() -> None:
    rng = np.random.default_rng(0)
    x, dictionary = rng.normal(size=(5, 20, 12)), rng.normal(size=(9, 12)) * rng.uniform(0.2, 5, size=(9, 1))
    found = words.explained(torch.tensor(x), torch.tensor(dictionary), 6)
    for head in range(5):
        assert np.allclose(found[head].numpy(), somp(x[head], dictionary, 6)[1], atol=1e-9)
    assert bool((found.diff(dim=-1) >= -1e-12).all())


def test_pursuit_of_what_words_explain_and_of_what_they_do_not() -> None:
    rng = np.random.default_rng(1)
    dictionary = rng.normal(size=(6, 30))
    written = rng.normal(size=(15, 3)) @ dictionary[[4, 1, 2]]
    outside = rng.normal(size=(15, 30))
    outside -= (np.linalg.pinv(dictionary) @ dictionary @ outside.T).T
    constant = np.ones((15, 30))
    heads = torch.tensor(np.stack([written, outside, constant]))
    shares = words.explained(heads, torch.tensor(dictionary), 6)
    assert float(shares[0, 2]) > 0.5
    assert float(shares[0, -1]) == pytest.approx(1, abs=1e-9)
    assert float(shares[1, -1]) == pytest.approx(0, abs=1e-9)
    assert shares[2].tolist() == [0.0] * 6
    twice = torch.tensor(np.vstack([dictionary, 2 * dictionary]))  # words spelled alike add nothing
    assert torch.allclose(words.explained(heads, twice, 12)[:, -1], shares[:, -1], atol=1e-6)


def named(text: str) -> list[int]:
    return [20 + sum(map(ord, text.strip())) % 150]


class Naming(Processor):
    """The stub with a tokenizer of one token per word."""

    def __call__(self, text: Any, **how: Any) -> Any:
        return {"input_ids": named(text)} if isinstance(text, str) else super().__call__(text, **how)


@torch.no_grad()
def test_scores_are_those_of_each_prompt_alone(tmp_path: Path) -> None:
    """Head outputs of the rows that choose the answer, by hooks on a plain run over prompt and answer."""
    case = tiny.get("llava_gqa")
    processor = Naming(case)
    labels = [f"thing {n}" for n in range(12)]
    work = job(processor, tmp_path)
    work.examples = [
        Example(one.id, one.text, one.image, objects=tuple(Region(name, (0, 0, 1, 1)) for name in labels))
        for one in work.examples
    ]
    work.profile = "word-heads"
    section = words.measure_word_heads(work)
    rows = []
    layers = tiny.decoder(case.model).layers
    for n in range(3):
        inputs = case.row(processor.rows, n)
        ids = case.model.generate(**inputs, max_new_tokens=words.NEW_TOKENS, do_sample=False)
        length = inputs["input_ids"].shape[1]
        kept: list[torch.Tensor] = []

        def keep(_: Any, args: Any, kept: list[torch.Tensor] = kept) -> None:
            kept.append(args[0][0])

        handles = [block.self_attn.o_proj.register_forward_pre_hook(keep) for block in layers]
        longer = {**inputs, "input_ids": ids[:, :-1], "attention_mask": torch.ones_like(ids[:, :-1])}
        case.model(**longer)
        for handle in handles:
            handle.remove()
        rows.append([one[length - 1 :].double().mean(0) for one in kept])
    dictionary = case.model.get_output_embeddings().weight[list({named(name)[0] for name in labels})].double().numpy()
    for layer, head in itertools.product(range(tiny.LAYERS), range(tiny.HEADS)):
        own = layers[layer].self_attn.head_dim
        part = slice(head * own, head * own + own)
        weight = layers[layer].self_attn.o_proj.weight[:, part].double()
        x = np.stack([(weight @ row[layer][part]).numpy() for row in rows])
        assert section.scores[layer][head] == pytest.approx(somp(x, dictionary, words.ATOMS)[1][-1], abs=2e-3)
    assert section.words is not None
    assert set(section.words) <= set(labels)


def test_word_heads_need_words(tmp_path: Path) -> None:
    work = job(Naming(tiny.get("llava_gqa")), tmp_path)
    work.profile = "word-heads"
    with pytest.raises(CalibrationError) as caught:
        words.measure_word_heads(work)
    assert_message(caught.value, "word-heads", "0 words", "3 examples")


def test_a_projection_with_a_bias_adds_it_to_no_head() -> None:
    projection = torch.nn.Linear(6, 5).double()
    outputs = torch.randn(4, 3, 2, dtype=torch.float64)
    found = words.contributed(projection, outputs)
    assert found.shape == (3, 4, 5)
    assert torch.allclose(found.sum(0) + projection.bias, projection(outputs.flatten(1)))


def test_a_head_gain_from_the_pursuit_runs(tmp_path: Path) -> None:
    case = tiny.get("llama")
    scores = torch.rand(tiny.LAYERS, tiny.HEADS).tolist()
    known = {
        "model": "tiny",
        "architecture": "llama",
        "layers": tiny.LAYERS,
        "heads": tiny.HEADS,
        "word_heads": {"scores": scores},
    }
    with sightline.attach(case.model, {"methods": [{"head_gain": {"section": "word_heads"}}]}, calibration=known):
        assert torch.isfinite(generate(case.model, prompts(case, "padded")).logits).all()
