"""Profiles against naive references, made of what transformers' own eager attention computes for each prompt alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sightline
import torch
from sightline import CalibrationError, UnsupportedModelError
from sightline.benchmarks.public.chair import Vocabulary
from sightline.models.samples import Example, Region
from sightline.plugin.calibration.sections import Sink, VisualHeads
from sightline.plugin.methods.vhr import VHR, static_heads
from sightline.plugin.tracing.grid import Grid, grid
from sightline.profiling.probes import box_heads, gaze, image_heads, naming, visual_heads

from tests.helpers import tiny
from tests.helpers.profiling_stub import LENGTHS, Processor, Row, eager, job, normalised, rows


@pytest.fixture(params=["llava", "llava_gqa"])
def processor(request: pytest.FixtureRequest) -> Processor:
    return Processor(tiny.get(request.param), seed=3)


def behind_image(row: Row) -> range:
    return range(int(row.image.nonzero().max()) + 1, row.length)


# --- gaze ------------------------------------------------------------------------------------------------------------


def test_gaze_sums_equal_the_definition(processor: Processor, tmp_path: Path) -> None:
    work = job(processor, tmp_path)
    section = gaze.measure_gaze(work)
    seen = work.total("rows", lambda _: {})
    kept = tiny.HEADS // 2
    rise, mass = np.zeros(tiny.LAYERS), np.zeros(tiny.LAYERS)
    for row in rows(processor):
        for layer, weights in enumerate(row.weights):
            asked = behind_image(row)[:-1]  # the last token begins to answer
            changes = [
                sum(float((weights[h, i] - weights[h, i - 1])[row.image].clamp(min=0).sum()) for i in asked)
                for h in range(tiny.HEADS)
            ]
            rise[layer] += sum(sorted(changes)[-kept:])
            mass[layer] += np.mean(sorted(float(weights[h, -1, row.image].sum()) for h in range(tiny.HEADS))[-kept:])
    np.testing.assert_allclose(seen["rise"], rise, rtol=1e-3)
    np.testing.assert_allclose(seen["mass"], mass, rtol=1e-3)
    assert section.saliency_layers == [int(rise[:-1].argmax())]
    assert section.enhanced_layers[0] == section.saliency_layers[0] + 1
    assert section.enhanced_layers == list(range(section.enhanced_layers[0], section.enhanced_layers[-1] + 1))


@pytest.mark.parametrize(
    ("rise", "mass", "saliency", "enhanced"),
    [
        ([1, 5, 2, 9, 8, 99], [1, 1, 1, 0, 9, 8], 3, [4, 5]),  # the last layer has none behind it
        ([9, 5, 2, 1, 1, 1], [1, 9, 1, 9, 1, 0], 0, [1, 2, 3, 4]),
        ([1, 1, 1, 1, 9, 1], [5, 5, 5, 5, 5, 0], 4, [5]),  # at least one
    ],
)
def test_gaze_layers(rise: list[int], mass: list[int], saliency: int, enhanced: list[int], tmp_path: Path) -> None:
    work = job(Processor(tiny.get("llava")), tmp_path)
    work.partial.put("/rows", {"rise": torch.tensor(rise).double(), "mass": torch.tensor(mass).double()}, 3)
    section = gaze.measure_gaze(work)
    assert (section.saliency_layers, section.enhanced_layers) == ([saliency], enhanced)


# --- visual heads ----------------------------------------------------------------------------------------------------


def without_image(processor: Processor, index: int) -> Row:
    alone = processor.case.row(processor.rows, index)
    text = alone["input_ids"][0] != processor.case.image_token_id
    return eager(processor.case, {"input_ids": alone["input_ids"][:, text]})


def test_divergence_and_choice_equal_the_definition(processor: Processor, tmp_path: Path) -> None:
    section = visual_heads.measure_visual_heads(job(processor, tmp_path))
    layers = [1, *range(tiny.LAYERS - round(tiny.LAYERS * 14 / 32), tiny.LAYERS)]
    assert section.layers == layers
    scores, chosen = np.zeros((tiny.LAYERS, tiny.HEADS)), np.zeros((tiny.LAYERS, tiny.HEADS))
    for index, row in enumerate(rows(processor)):
        text = without_image(processor, index)
        scores += [
            [float(((a[-1] - b[-1]) ** 2)[h].sum()) for h in range(tiny.HEADS)]
            for a, b in zip(row.heads, text.heads, strict=True)
        ]
        gains: dict[int, torch.Tensor] = {}
        for layer in layers:  # earlier layers are reinforced already
            now = eager(processor.case, processor.case.row(processor.rows, index), gains=gains).heads[layer][-1]
            plain = text.heads[layer][-1]
            vhd = ((now - plain) ** 2).sum(-1).numpy()
            alone = (plain**2).sum(-1).numpy()
            high = [value > value.mean() + value.std(ddof=1) for value in (vhd, alone)]
            if vhd.std(ddof=1) > 1:
                vhd = np.where(high[0] & high[1], 0.0, vhd)
            taken = vhd > sorted(vhd)[(tiny.HEADS - 1) // 2]
            chosen[layer] += taken
            gains[layer] = torch.tensor(1.0 + taken, dtype=torch.float32)
    np.testing.assert_allclose(section.scores, scores / len(LENGTHS), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(section.chosen, chosen / len(LENGTHS), atol=1e-4)


def test_static_vhr_takes_the_heads_of_the_file(processor: Processor, tmp_path: Path) -> None:
    """No text-only pass, and in every prompt the heads that the file says are doubled."""
    case = processor.case
    section = visual_heads.measure_visual_heads(job(processor, tmp_path))
    file = {
        "model": "m",
        "architecture": case.model.config.model_type,
        "layers": tiny.LAYERS,
        "heads": tiny.HEADS,
        "visual_heads": section.model_dump(),
    }
    assert section.chosen is not None
    expected = [[share > sorted(row)[(tiny.HEADS - 1) // 2] for share in row] for row in section.chosen]
    gains = {layer: 1.0 + torch.tensor(expected[layer]).float() for layer in section.layers or ()}
    alone = [case.row(processor.rows, index) for index in range(len(LENGTHS))]
    references = [eager(case, row, gains=gains).logits for row in alone]
    plain = [eager(case, row).logits for row in alone]
    passes: list[int] = []
    hook = case.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    with sightline.attach(case.model, {"methods": [{"vhr": {"static": True}}]}, calibration=file) as plug:
        for row, reference, unedited in zip(alone, references, plain, strict=True):
            with torch.no_grad():
                logits = case.model(**row).logits[0].double()
            assert plug.report()["vhr"]["head_map"] == [[float(one) for one in heads] for heads in expected]
            torch.testing.assert_close(logits, reference, atol=1e-3, rtol=1e-3)
            assert not torch.allclose(logits, unedited, atol=1e-2)
    hook.remove()
    assert len(passes) == len(LENGTHS)


def test_static_vhr_needs_the_file_and_its_layers() -> None:
    heads = VisualHeads(chosen=[[0.0, 0.0, 0.0], [0.2, 0.9, 0.4]])
    assert static_heads(heads, [1])[1].tolist() == [False, True, False]
    assert static_heads(VisualHeads(scores=[[3.0, 1.0, 2.0]]), [0])[0].tolist() == [True, False, False]
    for known, layers in ((heads, [0, 1]), (VisualHeads(layers=[1]), [1])):
        with pytest.raises(CalibrationError, match=r"visual_heads\.chosen"):
            static_heads(known, layers)
    case = tiny.get("llava")
    with pytest.raises(CalibrationError, match="visual_heads"):
        sightline.attach(case.model, {"methods": [{"vhr": {"static": True}}]})
    assert VHR.config().static is False


# --- image heads -----------------------------------------------------------------------------------------------------


def test_image_heads_equal_the_definition(processor: Processor, tmp_path: Path) -> None:
    dims, tau = [5, 44], 2.0
    section = image_heads.measure_image_heads(job(processor, tmp_path, known={"sink": Sink(dims=dims, tau=tau)}))
    looks, ratios, centric = (np.zeros((tiny.LAYERS, tiny.HEADS)) for _ in range(3))
    count = 0
    split: list[float] = []
    for row in rows(processor):
        places = row.image.nonzero()[:, 0].tolist()
        for layer, weights in enumerate(row.weights):
            sinks = [j for j in places if layer >= 2 and float(normalised(row.hidden[layer][j])[dims].max()) > tau]
            for head in range(tiny.HEADS):
                for i in behind_image(row):
                    visual = float(weights[head, i, places].sum())
                    idle = float(weights[head, i, sinks].sum())
                    ratio = 1 - idle / (visual + 1e-6 * len(places))
                    looks[layer, head] += visual - idle
                    ratios[layer, head] += ratio * (visual >= 0.2)
                    centric[layer, head] += visual >= 0.2
                    split += [ratio] if visual >= 0.2 and idle > 0 else []
        count += len(behind_image(row))
    np.testing.assert_allclose(section.scores, looks / count, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(section.ratio, ratios / np.maximum(centric, 1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(section.centric, centric / count, atol=1e-4)
    assert section.rho is not None
    assert min(split) < section.rho < max(split)


def test_image_heads_without_visual_sinks_have_no_rho(tmp_path: Path) -> None:
    work = job(Processor(tiny.get("llava")), tmp_path, known={"sink": Sink(dims=[1], tau=1000.0)})
    section = image_heads.measure_image_heads(work)
    assert section.rho is None
    assert section.ratio == [[float(share > 0) for share in row] for row in section.centric or ()]


def test_image_heads_need_sinks(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="sink"):
        image_heads.measure_image_heads(job(Processor(tiny.get("llava")), tmp_path))


def test_otsu_splits_like_trying_every_edge() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0.25, 0.08, 700), generator.normal(0.8, 0.05, 300)]).clip(0, 0.999)
    counts = np.bincount((values * 100).astype(int), minlength=100)
    centres = (np.arange(100) + 0.5) / 100
    data = np.repeat(centres, counts)

    def within(edge: int) -> float:
        low, high = data[data < edge / 100], data[data >= edge / 100]
        return len(low) * low.var() + len(high) * high.var() if len(low) and len(high) else np.inf

    best = min(within(edge) for edge in range(1, 100))
    edge = image_heads.otsu(torch.tensor(counts))
    assert edge is not None
    assert within(round(edge * 100)) == pytest.approx(best)
    assert image_heads.otsu(torch.tensor([0, 5, 0])) is None
    assert image_heads.otsu(torch.zeros(10)) is None


# --- boxes -----------------------------------------------------------------------------------------------------------


def images(processor: Any, **fields: Any) -> Any:
    return SimpleNamespace(image_processor=SimpleNamespace(**fields), **vars(processor) if processor else {})


@pytest.mark.parametrize("crop", [False, True])
def test_cells_of_a_box_are_those_whose_pixels_it_holds(crop: bool) -> None:
    """Against painting the box into a picture and cutting that the way CLIP does, at a size without rounding."""
    generator = np.random.default_rng(1)
    size = (96, 48)
    settings = {"do_center_crop": True, "size": {"shortest_edge": 48}, "crop_size": {"width": 48, "height": 48}}
    inputs = {"input_ids": torch.zeros(1, 20), "pixel_values": torch.zeros(1, 3, 48, 48)}
    found = grid(images(None, **(settings if crop else {"do_center_crop": False})), inputs, 0, 16, size)
    for _ in range(50):
        left, top = generator.integers(0, 90), generator.integers(0, 44)
        box = (left, top, min(96, left + generator.integers(1, 40)), min(48, top + generator.integers(1, 30)))
        painted = np.zeros((48, 96), bool)
        painted[box[1] : box[3], box[0] : box[2]] = True
        seen = painted[:, 24:72] if crop else painted
        wide = seen.shape[1] // 4
        cells = {
            r * 4 + c
            for r in range(4)
            for c in range(4)
            if seen[12 * r : 12 * r + 12, wide * c : wide * c + wide].any()
        }
        assert found.cells(tuple(float(edge) for edge in box)) == cells  # type: ignore[arg-type]


def test_grids_of_families() -> None:
    qwen = {"input_ids": torch.zeros(2, 9), "image_grid_thw": torch.tensor([[1, 4, 6], [1, 8, 2]])}
    processor = images(None, merge_size=2)
    assert grid(processor, qwen, 1, 4, (10, 20)) == Grid(4, 1, (0, 0, 10, 20))
    for tokens, pixels, more in (
        (15, (1, 3, 8, 8), {}),
        (16, (1, 4, 3, 8, 8), {}),
        (16, (1, 3, 8, 8), {"image_sizes": 1}),
    ):
        inputs = {"input_ids": torch.zeros(1, 20), "pixel_values": torch.zeros(*pixels), **more}
        with pytest.raises(UnsupportedModelError, match="places"):
            grid(images(None), inputs, 0, tokens, (8, 8))


def test_named_things() -> None:
    words = Vocabulary(["cat", "hot dog", "dog"], {"kitten": "cat"})
    text = "A kitten, two hot dogs and a cat."
    spans = [(i, i + 1) for i in range(len(text))]
    found = naming.named_objects(text, spans, {"cat", "hot dog"}, words)
    assert [(n.label, text[n.tokens.start : n.tokens.stop]) for n in found] == [
        ("cat", "kitten"),
        ("hot dog", "hot dogs"),
    ]
    said = "It says ab12yD and nothing else"
    spans = [(0, 8), (8, 10), (10, 14), (14, 31)]
    (word,) = naming.named_words(said, spans, {"AB12X", "QQQ99", "elf99"})
    assert (word.label, word.tokens, word.share) == ("AB12X", range(1, 3), pytest.approx(4 / 5))


def test_box_scores_equal_following_the_answer(tmp_path: Path) -> None:
    """Heads' hardest looks, step by step, from the eager model reading prompt and answer as far as they go."""
    case = tiny.get("llava_gqa")
    processor = Processor(case, seed=6)
    region, steps = Region("thing", (0.0, 0.0, 20.0, 20.0)), range(1, 4)
    work = job(processor, tmp_path)
    work.examples = [Example(e.id, e.text, e.image, objects=(region,)) for e in work.examples]

    def name(example: Example, text: str, spans: Any) -> list[naming.Naming]:
        assert len(spans) == box_heads.NEW_TOKENS == len(text)
        return [naming.Naming("thing", steps, 0.75)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_heads, "NEW_TOKENS", 5)
        section = box_heads._measure(work, work.examples, "objects", name)
    scores, hits = np.zeros((tiny.LAYERS, tiny.HEADS)), np.zeros((tiny.LAYERS, tiny.HEADS))
    for index in range(len(LENGTHS)):
        alone = case.row(processor.rows, index)
        places = (alone["input_ids"][0] == case.image_token_id).nonzero()[:, 0].tolist()
        side = round(len(places) ** 0.5)
        box = [places[r * side + c] for r in range(side) for c in range(side) if 40 * c / side < 20]
        with torch.no_grad():
            answer = case.model.generate(**alone, max_new_tokens=5, do_sample=False)[0]
        hit = np.zeros((tiny.LAYERS, tiny.HEADS), bool)
        for step in steps:  # token `step` was chosen by the row of the token before it
            read = answer[: len(alone["input_ids"][0]) + step][None]
            row = eager(case, {**alone, "input_ids": read, "attention_mask": torch.ones_like(read)})
            for layer in range(tiny.LAYERS):
                for head in range(tiny.HEADS):
                    look = row.weights[layer][head, -1]
                    scores[layer, head] += (int(look.argmax()) in box) / len(box)
                    hit[layer, head] |= int(look[: len(alone["input_ids"][0])].argmax()) in box
        hits += 0.75 * hit
    np.testing.assert_allclose(section.scores, scores / (len(steps) * len(LENGTHS)), atol=1e-4)
    np.testing.assert_allclose(section.hits, hits / len(LENGTHS), atol=1e-4)


def test_nothing_named_is_an_error(tmp_path: Path) -> None:
    work = job(Processor(tiny.get("llava")), tmp_path)
    work.profile = "concept-heads"
    with pytest.raises(CalibrationError, match="boxes of objects"):
        box_heads.measure_concept_heads(work)
    work.examples = [Example(e.id, e.text, e.image, objects=(Region("zebra", (0, 0, 9, 9)),)) for e in work.examples]
    with pytest.raises(CalibrationError, match="none of the 3 objects"):
        box_heads.measure_concept_heads(work)
