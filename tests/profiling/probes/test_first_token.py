"""Factors on the first token equal a loop that attaches `zerotuning` to one head at a time; they continue, and are refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
from sightline import testbed
from sightline.common.errors import CalibrationError
from sightline.common.readers import Notes
from sightline.models.samples import TESTBED, Example
from sightline.plugin.core.host import Host
from sightline.profiling.data.examples import examples as examples_of
from sightline.profiling.data.tokenised import AnswerPair
from sightline.profiling.job import Job, Partial
from sightline.profiling.probes import first_token as probe
from sightline.profiling.probes import presence, single
from sightline.profiling.probes.direct import pictures_of
from sightline.profiling.profiles import PROFILES

from tests.helpers import tiny
from tests.helpers.engine import assert_message

FACTORS = (3.0, 0.25)
ANSWERS = ([41, 90], [17], [203, 8])


def work_on(model: Any, folder: Path, examples: list[Example] | None = None, **options: Any) -> Job:
    resume = options.pop("resume", False)
    kept = Partial(folder / "x.partial", {}, resume=resume)
    work = Job(model, None, examples or [], Host(model).facts(None), kept, **{"batch": 3, **options})
    work.profile = "first-token"
    return work


def questions(case: tiny.TinyCase) -> tuple[list[tiny.Inputs], list[AnswerPair]]:
    """Prompts of one row, and the same with answers."""
    inputs = case.inputs(len(ANSWERS), lengths=(9, 4, 7)[: len(ANSWERS)])
    alone = [case.row(inputs, i) for i in range(len(ANSWERS))]
    vision = Host(case.model).family.vision_inputs
    made = [
        AnswerPair(one["input_ids"][0].tolist(), right, [5], pictures_of(one, vision))
        for one, right in zip(alone, ANSWERS, strict=True)
    ]
    return alone, made


def probability(model: Any, inputs: tiny.Inputs, answer: list[int], config: Any = None) -> float:
    """Of an answer, by what is public."""
    with sightline.attach(model, config or {"methods": []}):
        return math.exp(sightline.score(model, inputs, [[answer]])[0][0].logprob)


def by_hand(case: tiny.TinyCase) -> torch.Tensor:
    """Mean change of P(right answer) by each head alone [layers, heads, factors]."""
    alone, _ = questions(case)
    found = torch.zeros(tiny.LAYERS, tiny.HEADS, len(FACTORS), dtype=torch.float64)
    for inputs, right in zip(alone, ANSWERS, strict=True):
        plain = probability(case.model, inputs, right)
        for layer, head, number in itertools.product(range(tiny.LAYERS), range(tiny.HEADS), range(len(FACTORS))):
            config = {"methods": [{"zerotuning": {"gain": FACTORS[number], "head_list": [[layer, head]]}}]}
            found[layer, head, number] += probability(case.model, inputs, right, config) - plain
    return found / len(ANSWERS)


@pytest.mark.parametrize("family", ["llama", "llava_gqa", pytest.param("qwen2_vl", marks=pytest.mark.matrix)])
def test_the_table_equals_one_head_at_a_time(family: str, tmp_path: Path) -> None:
    case = tiny.get(family)
    changes = by_hand(case)
    assert float(changes.abs().max()) > 1e-5
    _, examples = questions(case)
    work = work_on(case.model, tmp_path)
    found = single.effects(
        work, [probe.Continuation(e.prompt, e.right, e.pictures) for e in examples], FACTORS, probe._on_first
    )
    torch.testing.assert_close(found[0] / len(ANSWERS), changes, atol=1e-8, rtol=2e-2)
    (tmp_path / "other").mkdir()
    gains = torch.tensor(probe.first_token(work_on(case.model, tmp_path / "other"), examples, factors=FACTORS).gains)
    best = max(range(len(FACTORS)), key=lambda number: float(changes[..., number].sum()))
    ranked = sorted(itertools.product(range(tiny.LAYERS), range(tiny.HEADS)), key=lambda at: -float(changes[at][best]))
    kept = [at for at in ranked[: round(0.4 * len(ranked))] if changes[at][best] > 0]
    expected = torch.ones_like(gains)
    for at in kept:
        expected[at] = FACTORS[best]
    assert torch.equal(gains, expected)


def test_only_heads_that_profit_have_the_better_direction() -> None:
    changes = torch.full((2, 5, 2), -0.1)
    changes[0, 1], changes[1, 4] = torch.tensor([0.3, 0.9]), torch.tensor([0.2, -0.4])
    changes[..., 1] -= 0.1  # the second helps one head most, and all together less
    expected = torch.ones(2, 5)
    expected[0, 1] = expected[1, 4] = 3.0
    assert torch.equal(probe.chosen(changes, FACTORS), expected)  # of the four that may, two profit
    assert int((probe.chosen(torch.rand(4, 5, 2), FACTORS) != 1).sum()) == 8
    with pytest.raises(CalibrationError) as caught:
        probe.chosen(-torch.rand(2, 5, 2), FACTORS)
    assert_message(caught.value, "no head", "zerotuning")


class _Enough(Exception):
    pass


def test_it_is_continued(tmp_path: Path) -> None:
    case = tiny.get("llama")
    _, examples = questions(case)
    whole = probe.first_token(work_on(case.model, tmp_path), examples)

    def stop(name: str, done: int, total: int) -> None:
        assert (name, total) == ("first-token", len(ANSWERS) * tiny.LAYERS)
        if done >= 6:
            raise _Enough

    begun = work_on(case.model, tmp_path, advance=stop)
    with pytest.raises(_Enough):
        probe.first_token(begun, examples)
    begun.partial.save()
    seen: list[int] = []
    work = work_on(case.model, tmp_path, resume=True, advance=lambda name, done, total: seen.append(done))
    assert probe.first_token(work, examples) == whole
    assert seen[0] == 6


@pytest.mark.parametrize("pair", [AnswerPair([3, 4], [], [5]), AnswerPair([], [4], [5]), None])
def test_examples_without_an_answer_are_refused(pair: AnswerPair | None, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="a prompt and a right answer"):
        probe.first_token(work_on(tiny.get("llama").model, tmp_path), [pair] if pair else [])


def test_as_many_questions_as_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny.get("llava_gqa")
    _, examples = questions(case)
    monkeypatch.setattr(presence, "choices", lambda *_, seed: examples)
    work = work_on(case.model, tmp_path, [Example(str(i), "?", object()) for i in range(2)])  # type: ignore[arg-type]
    PROFILES["first-token"].measure(work)
    assert work.samples == 2


def test_pictures_that_lack_nothing_are_refused() -> None:
    """Every answer would be Yes, and the table that of saying it."""
    model, processor = testbed.load()
    (example,) = examples_of(TESTBED, 1, seed=0, sees=True, notes=Notes())
    with pytest.raises(CalibrationError) as caught:
        presence.choices(model, processor, [example, example])
    assert_message(caught.value, "different objects", "always Yes")
