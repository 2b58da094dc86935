"""Thresholds of gates: the signals are those of the eager model, and the border is the best there is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sightline import CalibrationError
from sightline.benchmarks.public.chair import Mention
from sightline.models.samples import Example, Region
from sightline.plugin.calibration.sections import Threshold
from sightline.profiling.job import Job
from sightline.profiling.probes import gate_thresholds
from sightline.profiling.probes.gate_thresholds import BINS, SIGNALS, WHEN, measure_gate_thresholds, threshold

from tests.helpers import tiny
from tests.helpers.profiling_stub import LENGTHS, Processor, eager, job

SAID = 6
NAMED = {0: "thing", 2: "ghost", 3: "thing", 5: "ghost"}  # by letter of the answer; ghosts are in no picture


class Names:
    """Every answer names these."""

    names = frozenset({"thing", "ghost"})

    def __init__(self, named: dict[int, str]):
        self.named = named

    def category(self, name: str) -> str | None:
        return name

    def mentions(self, text: str) -> list[Mention]:
        assert len(text) == SAID
        return [Mention(name, place, place + 1) for place, name in self.named.items()]


def work(folder: Path, monkeypatch: pytest.MonkeyPatch, named: dict[int, str] = NAMED, **options: Any) -> Job:
    found = job(Processor(tiny.get("llava_gqa"), seed=6), folder, **options)
    region = Region("thing", (0.0, 0.0, 20.0, 20.0))
    found.examples = [Example(e.id, e.text, e.image, objects=(region,)) for e in found.examples]
    monkeypatch.setattr(gate_thresholds, "NEW_TOKENS", SAID)
    monkeypatch.setattr(gate_thresholds, "vocabulary", lambda shown: Names(named))
    return found


def naive(processor: Processor) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """The signals at true and at hallucinated words, from the eager model reading prompt and answer as far as they go."""
    case = processor.case
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {
        (when, name): ([], []) for when in WHEN for name in SIGNALS
    }
    for index in range(len(LENGTHS)):
        alone = case.row(processor.rows, index)
        with torch.no_grad():
            answer = case.model.generate(**alone, max_new_tokens=SAID, do_sample=False)[0]
        size = case.model.config.get_text_config().vocab_size
        signals = [(math.log(size), 1 / size, 0.0)]  # before the first token
        for step in range(SAID):
            read = answer[: len(alone["input_ids"][0]) + step][None]
            row = eager(case, {**alone, "input_ids": read, "attention_mask": torch.ones_like(read)})
            chances = row.logits[-1].softmax(-1)
            looked = torch.stack([weights[:, -1, row.image].sum(-1) for weights in row.weights]).mean()
            signals.append((float(-(chances * chances.log()).sum()), float(chances.max()), float(looked)))
        for place, name in NAMED.items():
            for when, at in zip(WHEN, (place + 1, place), strict=True):
                for signal, value in zip(SIGNALS, signals[at], strict=True):
                    found[when, signal][int(name == "ghost")].append(value)
    return found


def test_thresholds_part_the_signals_of_the_eager_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = work(tmp_path, monkeypatch)
    section = measure_gate_thresholds(todo)
    assert (section.words, section.wrong) == (12, 6)
    tops = dict(zip(SIGNALS, gate_thresholds.ceilings(todo.facts), strict=True))
    for (when, name), (true, wrong) in naive(todo.processor).items():
        ours: Threshold = getattr(getattr(section, when), name)
        more = sum((w > t) + (w == t) / 2 for w in wrong for t in true) / (len(true) * len(wrong))
        assert ours.auroc == pytest.approx(max(more, 1 - more), abs=2 / 36), (when, name)  # two that share a bin
        if abs(more - 0.5) > 0.03:
            assert ours.side == ("above" if more > 0.5 else "below")

        def beyond(values: list[float], cut: float, side: str = ours.side) -> float:
            return sum(value > cut if side == "above" else value < cut for value in values) / len(values)

        best = max(beyond(wrong, cut) - beyond(true, cut) for cut in [-1.0, *true, *wrong, 99.0])
        assert ours.of_hallucinated - ours.of_true == pytest.approx(best, abs=1e-3), (when, name)
        slack = tops[name] / BINS
        near = [beyond(wrong, cut) - beyond(true, cut) for cut in (ours.value - slack, ours.value, ours.value + slack)]
        assert max(near) == pytest.approx(best, abs=1e-3), (when, name)


@pytest.mark.parametrize("batch", [1, 3])
def test_it_does_not_depend_on_the_batch(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (
        measure_gate_thresholds(work(tmp_path / str(size), monkeypatch, batch=size)).model_dump() for size in (2, batch)
    )
    assert one == other


def test_a_threshold_by_hand() -> None:
    counts = torch.tensor([[1.0, 2, 0, 0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 1, 0, 1, 0]])
    found = threshold(counts, 20.0)  # bins of 2
    assert found.side == "above"
    assert found.value == pytest.approx(8.0)  # between the ends of bins 1 and 5, at 4 and at 12
    assert (found.of_hallucinated, found.of_true) == (pytest.approx(2 / 3, abs=1e-4), 0.25)
    assert found.auroc == pytest.approx((2 + 3 + 4) / 12, abs=1e-4)  # of 12 pairs, one tie
    turned = threshold(counts.flip(-1), 20.0)
    assert (turned.side, turned.value) == ("below", pytest.approx(12.0))
    assert (turned.auroc, turned.of_hallucinated, turned.of_true) == (found.auroc, found.of_hallucinated, found.of_true)


def test_what_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = work(tmp_path, monkeypatch, named={0: "thing"})
    with pytest.raises(CalibrationError, match="3 objects that are there and 0 that are not"):
        measure_gate_thresholds(todo)
    todo.examples = [Example(e.id, e.text, e.image) for e in todo.examples]
    with pytest.raises(CalibrationError, match="boxes of all their objects"):
        measure_gate_thresholds(todo)
