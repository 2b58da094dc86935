"""False-premise heads: path patching against a loop over single heads with hooks, planted heads, and what is kept."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sightline.common.errors import CalibrationError
from sightline.plugin.core.families import find_family
from sightline.profiling.data.premises import premises
from sightline.profiling.job import Job
from sightline.profiling.probes import premise_heads as module
from sightline.profiling.probes.direct import Direct, pictures_of
from sightline.profiling.probes.premise_heads import Pair, counted, influences, masked, ranked, spelling, text_pairs

from tests.helpers import tiny
from tests.helpers.engine import assert_message
from tests.helpers.profiling_stub import Processor, job

ROWS = [2, 3]
CLEAN = [11, 40, 77, 90, 31, 66]
MASKED = [11, 40, 150, 151, 31, 66]


def projections(model: Any) -> list[Any]:
    return [layer.self_attn.o_proj for layer in tiny.decoder(model).layers]


def kept_pair(model: Any, size: int, **more: Any) -> Pair:
    """A pair whose true answer is what the model says to the masked prompt, and not what it says to the clean one."""
    for offset in range(60):
        hidden = [*CLEAN[:2], 120 + offset, 121 + offset, *CLEAN[4:]]
        said: list[list[int]] = []
        for prompt in (CLEAN, hidden):
            ids = list(prompt)
            for _ in range(size):
                ids.append(int(model(input_ids=torch.tensor([ids]), **more).logits[0, -1].argmax()))
            said.append(ids[len(prompt) :])
        if said[0] != said[1]:
            return Pair(CLEAN, hidden, ROWS, said[1], more)
    raise AssertionError("no mask changes the answer")


def one_probability(model: Any, pair: Pair) -> float:
    """P(true answer) behind the clean prompt."""
    log = model(input_ids=torch.tensor([[*pair.clean, *pair.true[:-1]]])).logits[0].double().log_softmax(-1)
    return math.exp(sum(float(log[len(pair.clean) - 1 + i, token]) for i, token in enumerate(pair.true)))


def one_at_a_time(model: Any, pair: Pair) -> torch.Tensor:
    """Three runs as the release makes them: clean, masked, and for each head a clean one in which, in the patched rows,

    every layer's head outputs are overwritten by the clean run's, those of the one head by the masked run's.
    """
    heads, layers = tiny.HEADS, len(projections(model))

    def run(prompt: Any, hooks: list[Any]) -> float:
        handles = [p.register_forward_pre_hook(hook) for p, hook in zip(projections(model), hooks, strict=True)]
        log = (
            model(input_ids=torch.tensor([[*prompt, *pair.true[:-1]]]), **pair.pictures)
            .logits[0]
            .double()
            .log_softmax(-1)
        )
        for handle in handles:
            handle.remove()
        return math.exp(sum(float(log[len(prompt) - 1 + i, token]) for i, token in enumerate(pair.true)))

    def keeper(store: dict[int, torch.Tensor], layer: int) -> Any:
        return lambda _, args: store.__setitem__(layer, args[0].clone())

    clean: dict[int, torch.Tensor] = {}
    other: dict[int, torch.Tensor] = {}
    before = run(pair.clean, [keeper(clean, n) for n in range(layers)])
    run(pair.masked, [keeper(other, n) for n in range(layers)])

    def patcher(number: int, layer: int, head: int) -> Any:
        def patch(_: Any, args: Any) -> Any:
            value = args[0].clone()
            own = value.shape[-1] // heads
            value[:, list(pair.rows)] = clean[number][:, list(pair.rows)]
            if number == layer:
                part = slice(head * own, head * own + own)
                value[:, list(pair.rows), part] = other[number][:, list(pair.rows), part]
            return (value,)

        return patch

    found = torch.zeros(layers, heads)
    for layer, head in itertools.product(range(layers), range(heads)):
        found[layer, head] = run(pair.clean, [patcher(n, layer, head) for n in range(layers)]) - before
    return found


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_sliding", "gemma3_text"])
@pytest.mark.parametrize("size", [1, 2])
def test_path_patching_equals_one_head_at_a_time(family: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS", 3 * (len(CLEAN) - ROWS[0] + size))  # three heads at a time
    model = tiny.fresh(family).model
    pair = kept_pair(model, size)
    wanted = one_at_a_time(model, pair)
    with Direct(model) as direct:
        found = influences(direct, pair)
    assert found is not None
    assert float(wanted.abs().max()) > 1e-3 * one_probability(model, pair)
    torch.testing.assert_close(found, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava_gqa", "gemma3", "instructblip"])
def test_a_prompt_with_pictures_is_patched_alike(family: str) -> None:
    case = tiny.fresh(family)
    inputs = case.inputs(1, lengths=(9,))
    ids = inputs["input_ids"][0].tolist()
    rows = [len(ids) - 4, len(ids) - 3]
    pictures = pictures_of(inputs, find_family(case.model).vision_inputs)
    for offset in range(60):
        hidden = [token if n not in rows else 120 + offset + n % 2 for n, token in enumerate(ids)]
        said = [int(case.model(input_ids=torch.tensor([p]), **pictures).logits[0, -1].argmax()) for p in (ids, hidden)]
        if said[0] != said[1]:
            break
    pair = Pair(ids, hidden, rows, said[1:], pictures)
    with Direct(case.model) as direct:
        found = influences(direct, pair)
    assert found is not None
    torch.testing.assert_close(found, one_at_a_time(case.model, pair), atol=1e-6, rtol=2e-3)


@torch.no_grad()
def test_only_questions_that_fool_the_model_are_kept() -> None:
    model = tiny.fresh("llama").model
    pair = kept_pair(model, 1)
    wrong = Pair(pair.clean, pair.masked, ROWS, [next(t for t in range(20, 99) if t not in pair.true)])
    unmoved = Pair(pair.masked, pair.masked, ROWS, pair.true)
    with Direct(model) as direct:
        assert influences(direct, pair) is not None
        assert influences(direct, wrong) is None  # wrong with the premise masked, too
        assert influences(direct, unmoved) is None  # right as it is


def work_on(model: Any, folder: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of the profile over these pairs."""
    processor = Processor(tiny.get("llama"))
    work = job(processor, folder)
    work.model, work.profile = model, "premise-heads"
    monkeypatch.setattr(module, "text_pairs", lambda tokenizer: pairs)
    return work


@torch.no_grad()
def test_a_planted_head_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in which one head alone writes much: nothing else can carry what the masked tokens change."""
    model, planted = tiny.fresh("llama").model, (1, 5)
    for layer, projection in enumerate(projections(model)):
        own = projection.in_features // tiny.HEADS
        for head in range(tiny.HEADS):
            projection.weight[:, head * own : head * own + own] *= 30 if (layer, head) == planted else 0.2
    model.lm_head.weight *= 8  # sure of what it says
    pairs = []
    for seed in range(200):
        draw = torch.Generator().manual_seed(seed)
        clean = torch.randint(20, 200, (7,), generator=draw).tolist()
        hidden = [*clean[:-1], int(torch.randint(20, 200, (1,), generator=draw))]
        said = [int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in (clean, hidden)]
        # The premise stands at the last token, whose embedding answers too: keep those that the head decides.
        pairs.append(Pair(clean, hidden, [6], said[1:]))
    section = module.measure_premise_heads(work_on(model, tmp_path, pairs, monkeypatch))
    assert section.heads[0] == planted
    assert section.shares is not None
    assert section.influence is not None
    best = max(max(row) for row in section.influence)
    assert section.influence[planted[0]][planted[1]] == best > 3 * sorted(itertools.chain(*section.influence))[-2]


def test_the_section_counts_heads_over_the_kept_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [torch.zeros(tiny.LAYERS, tiny.HEADS) for _ in range(3)]
    tables[0][1, 2], tables[0][3, 3], tables[0][0, 0] = 0.5, 0.2, 0.09
    tables[1][1, 2], tables[1][2, 7], tables[1][3, 0] = 0.2, 0.9, 0.03
    tables[2][2, 7], tables[2][0, 0] = 0.3, -0.8
    found = iter([tables[0], None, tables[1], None, None, tables[2]])
    monkeypatch.setattr(module, "influences", lambda direct, pair: next(found))
    pairs = [Pair(CLEAN, MASKED, ROWS, [5])] * 6
    work = work_on(tiny.get("llama").model, tmp_path, pairs, monkeypatch)
    section = module.measure_premise_heads(work)
    assert work.samples == 3
    assert section.heads == [(2, 7), (1, 2), (3, 3), (3, 0)]  # 2 of 3, 2 of 3 with less influence, 1 of 3, none
    assert section.shares is not None
    assert section.shares[2][7] == section.shares[1][2] == pytest.approx(2 / 3, abs=1e-4)
    assert section.influence is not None
    assert section.influence[0][0] == pytest.approx((0.09 - 0.8) / 3, abs=1e-4)


def test_at_most_twenty_heads_count_for_a_question() -> None:
    table = torch.linspace(0.05, 1, 32).view(4, 8)
    assert counted(table).sum() == 20
    assert counted(table).flatten().nonzero().min() == 12
    assert counted(table, least=0.9).sum() == sum(float(v) > 0.9 for v in table.flatten())
    assert ranked(counted(table, most=3) / 1, table - 1) == [(3, 7), (3, 6), (3, 5)]
    assert ranked(torch.zeros(4, 8), table - 0.9) == [(3, 7), (3, 6), (3, 5), (3, 4)]


@pytest.mark.parametrize(
    ("found", "words"), [([None] * 2, "fools the model"), ([torch.full((4, 8), -0.1)] * 2, "more probable")]
)
def test_nothing_to_choose_from(found: list[Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = iter(found)
    monkeypatch.setattr(module, "influences", lambda direct, pair: next(each))
    work = work_on(tiny.get("llama").model, tmp_path, [Pair(CLEAN, MASKED, ROWS, [5])] * 2, monkeypatch)
    with pytest.raises(CalibrationError) as caught:
        module.measure_premise_heads(work)
    assert_message(caught.value, "premise-heads", "2 ", words)


def test_text_pairs_mask_the_false_object_and_patch_the_token_before_the_mark() -> None:
    from tests.helpers.tokenizers import _pieces

    tokenizer = _pieces()
    pairs, known = text_pairs(tokenizer), premises("calibration")
    assert len(pairs) == len(known) > 100
    for pair, premise in zip(pairs, known, strict=True):
        assert len(pair.clean) == len(pair.masked)
        changed = [n for n, (a, b) in enumerate(zip(pair.clean, pair.masked, strict=True)) if a != b]
        assert premise.span in tokenizer.decode([pair.clean[n] for n in range(changed[0], changed[-1] + 1)])
        assert "?" in tokenizer.decode([pair.clean[pair.rows[0] + 1]])
        assert len(pair.rows) == 1
        assert tokenizer.decode(pair.true).strip() == premise.true[0]
        assert tokenizer.decode(pair.clean).endswith(premise.cloze.opening)
        assert "X" in tokenizer.decode(pair.masked)


def test_a_span_that_the_tokenizer_does_not_spell() -> None:
    from tests.helpers.tokenizers import _pieces

    tokenizer = _pieces()
    prompt = tokenizer("Is Rome in Rome? Rome is")["input_ids"]
    rows = spelling(tokenizer, prompt, "Rome")
    assert tokenizer.decode([prompt[n] for n in rows]).strip() == "Rome"
    assert "?" in tokenizer.decode([prompt[rows[-1] + 1]])
    assert masked(tokenizer, prompt, rows)[: rows[0]] == prompt[: rows[0]]
    with pytest.raises(CalibrationError) as caught:
        spelling(tokenizer, prompt, "Paris")
    assert_message(caught.value, "'Paris'")
