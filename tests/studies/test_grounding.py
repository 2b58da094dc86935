"""The study of the grounding signal: cases, choices on calibration cases only, the report and the calibration section."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sightline import Calibration, testbed
from sightline.benchmarks.public.chair import chair
from sightline.benchmarks.public.scenes import scene_vocabulary
from sightline.plugin.tracing.grounding import score

from studies import grounding
from studies.grounding import BRANCHES, RUNS, Cases, marks, report, study, token_at, with_section, youden


def cases(seed: int, informative: dict[str, float], scenes: int = 40, each: int = 3) -> Cases:
    """Random signals; a named one is shifted by so much where the word is hallucinated."""
    rng = np.random.default_rng(seed)
    count = scenes * each
    wrong = rng.random(count) < 0.3
    names = ["place in the caption", "entropy", "probability"]
    names += [f"{name}, {heads}" for heads in RUNS for name in ("image", "query", "prompt", "output")]
    names += [f"{name}, {branch}" for branch in BRANCHES.values() for name in ("divergence", "contrast")]
    signals = {name: (rng.normal(size=count) + informative.get(name, 0) * wrong).tolist() for name in names}
    scene = np.repeat(np.arange(scenes), each).tolist()
    return Cases(scenes, wrong.tolist(), scene, list(range(each)) * scenes, signals)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    chosen = {"entropy": 1.5, "image, visual_heads": -1.5, "contrast, no picture": -1.5}
    # On the test cases other signals would win: nothing may be chosen by them.
    other = {"entropy": 1.5, "image, all": -3.0, "contrast, noised picture": -3.0, "probability": 2.0}
    found = study(cases(0, chosen), cases(1, other))
    return found | {"scenes": 30, "seed": 0, "command": "python -m x", "versions": {"torch": "1", "transformers": "2"}}


def test_choices_are_made_on_calibration_cases(result: dict[str, Any]) -> None:
    assert result["chosen"] == {"look": "image, visual_heads", "contrast": "contrast, no picture"}
    rows = {line["signal"]: line for line in result["rows"]}
    assert rows["image, visual_heads"]["sign"] == -1
    assert rows["entropy"]["sign"] == 1
    assert rows["entropy"]["minus_entropy"] == 0
    if rows["probability"]["sign"] == -1:  # a coin's toss there: kept, though it is wrong here
        assert rows["probability"]["test"] < 0.2
    assert rows["image, all"]["test"] > 0.9 or rows["image, all"]["sign"] == 1
    pair, three = (next(r for r in result["rows"] if r["signal"].count("+") == n) for n in (1, 2))
    assert pair["signal"] == "entropy + image, visual_heads"
    assert pair["calibration"] > rows["entropy"]["calibration"]
    assert three["calibration"] > pair["calibration"]
    for line in result["rows"]:
        assert line["interval"][0] <= line["test"] <= line["interval"][1]


def test_the_section_marks_what_the_study_marked(result: dict[str, Any]) -> None:
    """Its weights and threshold, on raw columns, are the standard scores and their threshold."""
    model, _ = testbed.load()
    known = Calibration.load("auto", model)
    section = with_section(known, model, result).grounding
    assert section is not None
    assert len(section.heads) == 8
    assert section.weights.keys() == {"entropy", "image"}
    held = cases(0, {"entropy": 1.5, "image, visual_heads": -1.5, "contrast, no picture": -1.5})
    table = [
        {"entropy": e, "image": i}
        for e, i in zip(held.signals["entropy"], held.signals["image, visual_heads"], strict=True)
    ]
    weak = np.array([score(token, section) < section.threshold for token in table])
    found = marks(weak, np.array(held.wrong))
    assert found == pytest.approx(result["marks"]["calibration"], abs=0.02)
    assert found["of_hallucinated"] > found["of_true"] + 0.4


def test_report(result: dict[str, Any]) -> None:
    text = report(result)
    assert "`python -m x` (torch 1, transformers 2)" in text
    assert "| entropy | + | " in text
    for line in result["rows"]:
        assert f"| {line['signal']} | " in text
        assert f"{line['test']:.3f} ({line['interval'][0]:.3f}–{line['interval'][1]:.3f})" in text
    assert f"below {result['threshold']:.3f}" in text


def test_youden_and_marks_by_hand() -> None:
    scores, positive = np.array([1.0, 2, 3, 4]), np.array([False, True, False, True])
    assert youden(scores, positive) == 1.5
    assert youden(np.array([0.0, 0, 1, 1]), np.array([False, False, True, True])) == 0.5
    found = marks(scores > 1.5, positive)
    assert found == {"of_hallucinated": 1.0, "of_true": 0.5, "precision": pytest.approx(2 / 3)}
    assert marks(scores > 9, positive)["precision"] == 0


def test_token_at() -> None:
    tokens = [{"text": "The"}, {"text": ""}, {"text": " cat"}]
    assert [token_at(tokens, place)["text"] for place in (0, 2, 3, 6)] == ["The", "The", " cat", " cat"]
    with pytest.raises(ValueError):
        token_at(tokens, 7)


def test_cases_are_the_mentions_of_plain_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words and flags are CHAIR's, whatever is recorded beside them; every run adds its columns."""
    monkeypatch.setattr(grounding, "BATCH", 2)
    monkeypatch.setattr(grounding, "CAPTION_TOKENS", 20)
    model, processor = testbed.load()
    shown = testbed.scenes("test", 3, seed=0)
    asked = testbed.prompt(processor, testbed.CAPTION_PROMPT)
    inputs = processor(images=[one.image for one in shown], text=[asked] * 3, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=grounding.CAPTION_TOKENS, do_sample=False)
    captions = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    truth = chair(captions, [one.names for one in shown], scene_vocabulary())
    calls: list[int] = []
    known = Calibration.load("auto", model)
    found = grounding.collect(model, processor, "test", 3, 0, known, lambda: calls.append(1))
    assert found.wrong == [flag for flags in truth.flags for flag in flags]
    assert [found.scene.count(number) for number in range(3)] == [len(flags) for flags in truth.flags]
    assert len(calls) == 2 * len(RUNS)
    assert all(len(values) == len(found.wrong) for values in found.signals.values())
    assert len(found.signals) == 3 + 4 * len(RUNS) + 2 * len(BRANCHES)
    assert min(found.signals["divergence, no picture"]) >= -1e-6
    assert max(found.signals["divergence, no picture"]) <= np.log(2) + 1e-6
