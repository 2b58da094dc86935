"""The testbed: generated scenes with exact truth, and a small LLaVA that sees them and still hallucinates."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from sightline import testbed
from sightline.models.prompting import ask
from sightline.models.samples import Sample
from sightline.testbed import text
from sightline.testbed.scenes import SIZE, SPLITS, scene_key

from studies.testbed import evaluate as measure
from studies.testbed import packs
from studies.testbed.train import STAGES, Recipe, train

COCO = set(
    re.split(
        ", ",
        "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
        "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, "
        "backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
        "baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, "
        "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, "
        "bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
        "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
    )
)


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    return testbed.load()


def test_import_is_light():
    code = (
        "import sys, sightline; before = set(sys.modules); import sightline.testbed; "
        "sys.exit(any(name in sys.modules and name not in before for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_coco_names():
    assert len(testbed.CATEGORIES) >= 40
    assert set(testbed.CATEGORIES) <= COCO
    assert set(testbed.SYNONYMS.values()) == set(testbed.CATEGORIES)
    assert testbed.SYNONYMS["knives"] == "knife"
    assert testbed.SYNONYMS["people"] == "person"


def test_scenes_are_deterministic():
    one, two = testbed.scenes("test", 3, start=5), testbed.scenes("test", 4, start=4)[1:]
    for a, b in zip(one, two, strict=True):
        assert a.image.tobytes() == b.image.tobytes()
        assert a == b


def test_splits_and_seeds_never_share_a_generator():
    keys = [
        scene_key(split, index, seed) for split in SPLITS for index in (0, 1, 7, 2**40 - 1) for seed in (0, 1, 2, 9)
    ]
    assert len(set(keys)) == len(keys)
    for bad in (-1, 2**40):  # an index that would run into the next split is refused
        with pytest.raises(ValueError):
            scene_key("train", bad)
    pixels = [testbed.scene(split, 0, seed).image.tobytes() for split in SPLITS for seed in (0, 1)]
    assert len(set(pixels)) == len(pixels)


def test_ground_truth():
    pictures = testbed.scenes("calibration", 60)
    assert len({picture.kind for picture in pictures}) >= 8
    for picture in pictures:
        assert picture.image.size == (SIZE, SIZE)
        assert picture.image.mode == "RGB"
        assert picture.names
        assert [o.salience for o in picture.objects] == sorted((o.salience for o in picture.objects), reverse=True)
        for item in picture.objects:
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            assert 0.3 < item.visible <= 1


def test_prior_is_strong():
    often, together = testbed.frequency(), testbed.cooccurrence()
    assert set(often) == set(testbed.CATEGORIES)
    assert together["knife"]["spoon"] > 5 * often["spoon"]
    assert together["knife"]["knife"] == 1


def test_question_articles():
    assert testbed.QUESTION.format("dog") == "Is there a dog in the image?"
    assert testbed.QUESTION.format("umbrella") == "Is there an umbrella in the image?"


def test_captions_say_what_they_were_given():
    rng = np.random.default_rng(0)
    for picture in testbed.scenes("train", 40):
        said = text.caption(picture.kind, picture.counts, rng)
        assert text.mentions(said) == list(picture.counts)


def test_packs_equal_questions_asked_alone(loaded):
    """A branch of a pack gets the same logits as its own sequence: nothing leaks between branches."""
    model, _ = loaded
    picture = testbed.scene("train", 3)
    objects = [(o.name, o.salience) for o in picture.objects]
    whole = packs.image_pack(picture.kind, objects, np.random.default_rng(1))
    batch = packs.collate([whole])
    branch = np.array(whole.branch)
    last = [b for b in range(1, branch.max() + 1) if whole.parent[int(np.argmax(branch == b))] == 0][-1]
    rows = np.nonzero((branch == 0) | (branch == last))[0]
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.as_tensor(batch["ids"]))
        bias = torch.where(torch.as_tensor(batch["seen"]), 0.0, -1e4)
        states = model.model.language_model(
            inputs_embeds=embedded, attention_mask=bias, position_ids=torch.as_tensor(batch["positions"])
        ).last_hidden_state
        alone = model.model.language_model(inputs_embeds=embedded[:, rows]).last_hidden_state
    torch.testing.assert_close(states[:, rows], alone, atol=2e-3, rtol=2e-3)


def test_processor(loaded):
    model, processor = loaded
    pictures = [p.image for p in testbed.scenes("test", 2)]
    texts = [testbed.prompt(processor, q) for q in (testbed.CAPTION_PROMPT, testbed.QUESTION.format("dog"))]
    assert all(t.count("<image>") == 1 for t in texts)
    inputs = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
    image = model.config.image_token_id
    assert (inputs["input_ids"] == image).sum(1).tolist() == [64, 64]
    short = int(inputs["attention_mask"].sum(1).argmin())
    assert inputs["attention_mask"][short, 0] == 0  # padding on the left
    assert inputs["attention_mask"][:, -1].all()
    alone = processor(images=pictures[0], text=texts[0], return_tensors="pt")["input_ids"][0]
    assert alone[0] == processor.tokenizer.bos_token_id
    # Training packs and the processor write the same tokens.
    pack = packs.Pack.begin(packs.testbed(), image=True)
    pack.ask(testbed.CAPTION_PROMPT, "No.", packs.telling())
    assert pack.ids[: len(alone)] == alone.tolist()


def test_batched_generation_equals_single(loaded):
    model, processor = loaded
    pictures = [p.image for p in testbed.scenes("test", 3, start=50)]
    asked = [testbed.CAPTION_PROMPT, testbed.QUESTION.format("person"), "What is in the image?"]
    samples = [Sample(question, question, picture) for picture, question in zip(pictures, asked, strict=True)]
    together = ask(model, processor, samples, 60)
    alone = [ask(model, processor, [sample], 60)[0] for sample in samples]
    assert together == alone
    assert together[1] in ("Yes.", "No.")
    assert all(said.endswith(".") for said in together)  # it stops by itself


def test_weights_are_small_and_safe():
    files = [item for item in resources.files("sightline.testbed").joinpath("weights").iterdir() if item.is_file()]
    assert sum(len(item.read_bytes()) for item in files) <= 30 * 2**20
    kinds = {Path(item.name).suffix for item in files}
    assert kinds <= {".safetensors", ".json", ".jinja", ".md"}


def test_trainer_resumes(tmp_path):
    """Stopped after two steps of every stage and started again: the same weights as in one go."""
    recipe = replace(Recipe().tiny(steps=4), tempting=0.5)
    common = {"recipe": recipe, "workers": 0, "quiet": True}
    straight = train(tmp_path / "straight", **common)
    for stage in STAGES:
        train(tmp_path / "broken", stages=(stage,), stop_after=2, **common)
        train(tmp_path / "broken", stages=(stage,), **common)
    for stage, progress in straight.items():
        assert progress["step"] == 4
        assert all(np.isfinite(entry["loss"]) for entry in progress["losses"])
        assert (tmp_path / "broken" / f"{stage}.safetensors").exists()
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "broken"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, msg=name)


def test_it_sees_and_still_hallucinates(loaded):
    model, processor = loaded
    found = measure.evaluate(model, processor, n=24)
    assert found["chair"]["recall"] > 0.5
    assert 0.03 < found["chair"]["i"] < 0.5
    assert found["chair"]["expected_share"] > 0.5  # it says what the scene makes one expect
    assert found["pope"]["random"]["accuracy"] > 0.7
    shown = measure.report(found)
    assert f"CHAIR_I {found['chair']['i']:.3f}" in shown
    assert "adversarial  accuracy" in shown
