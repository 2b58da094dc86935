"""CARVE: the map against a naive reference, the new picture against hand-worked cases, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sightline
import torch
from PIL import Image
from sightline import CalibrationError, ConfigError, LayoutError, UnsupportedModelError
from sightline.cli import main as cli
from sightline.plugin.core.method import ModelFacts
from sightline.plugin.tracing.grid import Grid
from sightline.plugin.tracing.heat import stretched
from sightline.preprocessing.carve import Carve, CarveSettings
from sightline.preprocessing.regions import bounds, drawn, refined, regions_of, strongest
from transformers import BatchFeature

from studies.carving import fit
from tests.helpers import tiny
from tests.helpers.engine import METHODS, Snapshot, assert_message, calibration, entry, shared
from tests.helpers.shell import fails

Array = npt.NDArray[np.float64]
FAMILIES = ["llava_gqa", "qwen2_vl", "internvl", "gemma3"]
INSTRUCTION = "Say all."
SMALL = {"instruction": INSTRUCTION, "steps": 5}


class Processor:
    """A processor for tiny models: a letter is a token; a picture's pixels are noise that its first pixel seeds."""

    chat_template = None
    bos_token = None
    pad_token = "<pad>"
    image_token = "<image>"
    eos_token_id = pad_token_id = -1
    padding_side = "left"

    def __init__(self, case: tiny.TinyCase):
        self.case = case
        self.image_processor = SimpleNamespace(do_center_crop=False, merge_size=2)

    @property
    def tokenizer(self) -> Processor:
        return self

    def __call__(self, text: Sequence[str], images: Sequence[Sequence[Image.Image]], **_: Any) -> BatchFeature:
        pictures = self.case.pictures
        assert pictures is not None
        rows, tensors = [], []
        for words, own in zip(text, images, strict=True):
            assert words.count("<image>\n") == len(own)
            row = [tiny.BOS, 11, 12]
            for image in own:
                tensors.append(pictures.draw(1, torch.Generator().manual_seed(image.getpixel((0, 0))[0])))
                row += [*pictures.before, *[tiny.IMAGE] * pictures.counts(tensors[-1])[0], *pictures.after]
            rows.append(row + [20 + ord(letter) % 200 for letter in words.replace("<image>\n", "")])
        width = max(map(len, rows))
        data = {
            "input_ids": torch.tensor([[tiny.PAD] * (width - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        }
        data |= {key: torch.cat([one[key] for one in tensors]) for key in tensors[0]}
        if self.case.token_types:
            data[self.case.token_types] = data["input_ids"].eq(tiny.IMAGE).long()
        return BatchFeature(data)


def picture(seed: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = seed
    return Image.fromarray(pixels)


# --- the map ---------------------------------------------------------------------------------------------------------


@functools.cache
def eager(family: str) -> Any:
    model = copy.deepcopy(shared(family).model).double()
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def looks(family: str, text: str, image: Image.Image, layers: list[int], steps: int, end: int | None) -> list[Array]:
    """For each answer token, up to the end token: attention [layers, image tokens] of the row that predicts it, mean over

    heads; from whole forward passes over prompt and answer so far, in double precision.
    """
    model, inputs = eager(family), Processor(shared(family))([f"<image>\n{text}"], [[image]])
    more = {
        k: v
        for k, v in inputs.items()
        if k not in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    }
    more = {k: v.double() if v.is_floating_point() else v for k, v in more.items()}
    kinds = next((k for k in ("token_type_ids", "mm_token_type_ids") if k in inputs), None)
    ids, found = inputs["input_ids"], []
    for _ in range(steps):
        kind = {kinds: ids.eq(tiny.IMAGE).long()} if kinds else {}
        out = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), **kind, **more, use_cache=False, output_attentions=True
        )
        places = (ids[0] == tiny.IMAGE).nonzero()[:, 0]
        found.append(np.stack([out.attentions[layer][0, :, -1, places].mean(0).numpy() for layer in layers]))
        token = int(out.logits[0, -1].argmax())
        if token == end:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return found


def naive(
    family: str,
    question: str,
    image: Image.Image,
    *,
    layers: list[int],
    steps: int,
    end: int | None = None,
    instruction: str = INSTRUCTION,
    smoothing: float = 1e-8,
) -> tuple[Array, int]:
    """S = sum_t t sum_l A_Q / (A_G + lambda), over the steps that both answers have: [image tokens], and their number."""
    asked, general = (looks(family, text, image, layers, steps, end) for text in (question, instruction))
    total = np.zeros(asked[0].shape[1])
    count = min(len(asked), len(general))
    for t in range(count):
        for layer in range(len(layers)):
            for j in range(len(total)):
                total[j] += (t + 1) * asked[t][layer, j] / (general[t][layer, j] + smoothing)
    return total, count


def answer(family: str, text: str, image: Image.Image, steps: int) -> list[int]:
    inputs = Processor(shared(family))([f"<image>\n{text}"], [[image]])
    return shared(family).model.generate(**inputs, max_new_tokens=steps, do_sample=False)[0, -steps:].tolist()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_map(family: str, steps: int) -> None:
    case, image, question = shared(family), picture(3), "Is it?"
    for layers in (None, [0, 2]):
        found = sightline.carve(
            case.model, Processor(case), image, question, **{**SMALL, "steps": steps}, layers=layers
        )
        wanted, count = naive(family, question, image, layers=layers or [2, 3], steps=steps)
        assert found.steps == count == steps
        shape = (2, 3) if family == "qwen2_vl" else (4, 4) if family == "llava_gqa" else (2, 2)
        assert (found.grid.rows, found.grid.columns) == found.map.shape == shape
        np.testing.assert_allclose(found.map.ravel(), wanted, rtol=2e-4)
        assert wanted.max() > 1.05 * wanted.min()


@pytest.mark.parametrize("whose", [0, 1])
def test_a_step_counts_while_both_answers_go_on(whose: int) -> None:
    """The step that says the end is the last, whichever answer says it; others in the batch go on."""
    case, image = tiny.fresh("llava_gqa"), picture(3)
    texts = ["Is it red, or is it green?", INSTRUCTION]
    said = [answer("llava_gqa", text, image, 5) for text in texts]
    end = next(token for token in said[whose] if token not in said[1 - whose])
    case.model.generation_config.eos_token_id = end
    processor = Processor(case)
    others = [picture(4), picture(5, (20, 20))]
    found = sightline.carve_all(case.model, processor, [image, *others], [texts[0], "Why?", "Who is there?"], **SMALL)
    wanted, count = naive("llava_gqa", texts[0], image, layers=[2, 3], steps=5, end=end)
    assert found[0].steps == count == said[whose].index(end) + 1
    assert max(one.steps for one in found) > count or count == 5
    np.testing.assert_allclose(found[0].map.ravel(), wanted, rtol=2e-4)


def test_lambda() -> None:
    case, image = shared("llava_gqa"), picture(3)
    found = sightline.carve(case.model, Processor(case), image, "Is it?", **SMALL, smoothing=0.05)
    wanted, _ = naive("llava_gqa", "Is it?", image, layers=[2, 3], steps=5, smoothing=0.05)
    np.testing.assert_allclose(found.map.ravel(), wanted, rtol=2e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_batch_says_what_each_says_alone(steps: int) -> None:
    case = shared("qwen2_vl")
    processor, settings = Processor(case), {**SMALL, "steps": steps}
    images = [picture(1), picture(2, (12, 40)), picture(3, (50, 9))]
    questions = ["Is it?", "Where is the very long thing on the left?", "Who?"]
    together = sightline.carve_all(case.model, processor, images, questions, **settings)
    for image, question, found in zip(images, questions, together, strict=True):
        alone = sightline.carve(case.model, processor, image, question, **settings)
        np.testing.assert_allclose(found.map, alone.map, rtol=1e-4)
        assert found.heat.shape == found.mask.shape == (image.height, image.width)
        assert found.box == alone.box


def test_one_step_ends_behind_its_layers() -> None:
    case = tiny.fresh("llava_gqa")
    ran: list[int] = []
    for number, layer in enumerate(case.model.get_decoder().layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    before = Snapshot(case.model)
    sightline.carve(case.model, Processor(case), picture(1), "Is it?", **{**SMALL, "steps": 1}, layers=[0, 1])
    assert ran == [0, 1]
    before.assert_same(case.model)


def test_the_look_is_the_plain_models_and_leaves_no_trace() -> None:
    case = shared("llava_gqa")
    processor, before = Processor(case), Snapshot(case.model)
    plain = sightline.carve(case.model, processor, picture(1), "Is it?", **SMALL)
    before.assert_same(case.model)
    with sightline.attach(case.model, {"methods": [entry("pai")]}, calibration=calibration(case)):
        attached = sightline.carve(case.model, processor, picture(1), "Is it?", **SMALL)
        answered = case.model.generate(**attached.inputs(case.model, processor), max_new_tokens=3, do_sample=False)
    assert np.array_equal(plain.map, attached.map)
    before.assert_same(case.model)
    bare = case.model.generate(**attached.inputs(case.model, processor), max_new_tokens=3, do_sample=False)
    assert answered.shape == bare.shape


@pytest.mark.parametrize(("layers", "wanted"), [(32, range(20, 26)), (28, range(18, 23)), (8, range(5, 7)), (1, [0])])
def test_layers_in_proportion(layers: int, wanted: Sequence[int]) -> None:
    assert Carve(CarveSettings(), ModelFacts("m", "a", layers, 2, 8)).layers == tuple(wanted)


@pytest.mark.parametrize("pictures", ["refined", "both"])
def test_what_is_asked(pictures: str) -> None:
    """The paper asks about the refined picture, the release about the original and the refined one."""
    case = shared("llava_gqa")
    processor, images = Processor(case), [picture(1), picture(2)]
    found = sightline.carve_all(case.model, processor, images, ["Is it?", "Why so?"], **SMALL, pictures=pictures)
    inputs = sightline.carved_inputs(case.model, processor, found)
    shown = [[one.refined] if pictures == "refined" else [one.image, one.refined] for one in found]
    texts = ["<image>\n" * len(own) + question for own, question in zip(shown, ["Is it?", "Why so?"], strict=True)]
    wanted = processor(texts, shown)
    assert inputs.keys() == wanted.keys()
    assert all(torch.equal(inputs[key], wanted[key]) for key in wanted)
    assert torch.equal(
        found[0].inputs(case.model, processor)["pixel_values"], processor(texts[:1], shown[:1])["pixel_values"]
    )


# --- from the map to the picture -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (1, 3), (1, 1)])
@pytest.mark.parametrize("size", [(9, 7), (40, 64), (3, 2)])
def test_stretching_is_bilinear(shape: tuple[int, int], size: tuple[int, int]) -> None:
    cells = np.random.default_rng(0).random(shape).astype(np.float32)
    found = stretched(cells, Grid(*shape, (0.0, 0.0, float(size[0]), float(size[1]))), size)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(cells)[None, None], (size[1], size[0]), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-6)


def test_stretching_over_a_window() -> None:
    """What the processor cuts off has no value; the rest is the window stretched by itself."""
    cells = np.arange(16, dtype=np.float32).reshape(4, 4)
    found = stretched(cells, Grid(4, 4, (10.0, 0.0, 30.0, 20.0)), (40, 20))
    assert np.isnan(found[:, :10]).all()
    assert np.isnan(found[:, 30:]).all()
    np.testing.assert_allclose(
        found[:, 10:30], stretched(cells, Grid(4, 4, (0.0, 0.0, 20.0, 20.0)), (20, 20)), atol=1e-5
    )


HEAT = np.array(
    [
        [9, 9, 0, 0, 0, 5],
        [0, 0, 0, 0, 5, 5],
        [0, 6, 0, 5, 0, 0],
        [0, 0, 0, 0, 0, 8],
    ],
    dtype=np.float32,
)


@pytest.mark.parametrize(
    ("top", "regions", "wanted"),
    [
        (8 / 24, 1, [(0, 0), (0, 1)]),  # 18 against 15, 8, 6 and 5; corners do not touch
        (8 / 24, 2, [(0, 0), (0, 1), (0, 5), (1, 4), (1, 5)]),
        (8 / 24, None, [(0, 0), (0, 1), (0, 5), (1, 4), (1, 5), (3, 5)]),
        (3 / 24, 5, [(0, 0), (0, 1), (3, 5)]),
        (5 / 24, 9, [(0, 0), (0, 1), (0, 5), (1, 4), (1, 5), (2, 1), (2, 3), (3, 5)]),  # equal values go together
        (1e-6, 1, [(0, 0), (0, 1)]),
    ],
)
def test_the_strongest_regions(top: float, regions: int | None, wanted: list[tuple[int, int]]) -> None:
    found = strongest(HEAT, top, regions)
    assert [tuple(map(int, place)) for place in np.argwhere(found)] == wanted
    holed = np.pad(HEAT, ((0, 0), (2, 3)), constant_values=np.nan)
    assert np.array_equal(strongest(holed, top, regions), np.pad(found, ((0, 0), (2, 3))))


def test_of_many_regions_a_fifth_stays() -> None:
    heat = np.zeros((2, 60), dtype=np.float32)
    heat[0, ::2] = np.arange(30) + 1
    assert np.flatnonzero(strongest(heat, 0.25, None)[0]).tolist() == list(range(48, 60, 2))


def test_a_flat_map_keeps_the_picture() -> None:
    mask = strongest(np.ones((5, 4), dtype=np.float32), 0.2, 1)
    assert mask.all()
    image = picture(1, (4, 5))
    assert np.array_equal(refined(image, mask, "mask and crop", True), image)


def test_regions_are_those_of_a_search() -> None:
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.6, 0.9):
        mask = rng.random((17, 23)) < share
        labels, number = regions_of(mask)
        seen = np.zeros(mask.shape, dtype=int)
        count = 0
        for start in zip(*np.nonzero(mask), strict=True):
            if seen[start]:
                continue
            count += 1
            seen[start], queue = count, deque([start])
            while queue:
                y, x = queue.popleft()
                for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                    if (
                        all(0 <= p < n for p, n in zip(place, mask.shape, strict=True))
                        and mask[place]
                        and not seen[place]
                    ):
                        seen[place] = count
                        queue.append(place)
        assert number == count
        assert len(np.unique(np.stack([labels[mask], seen[mask]]), axis=1).T) == count  # one to one
        assert not labels[~mask].any()


def test_refined_pictures() -> None:
    """A mask in the shape of an L, on a picture of 6 x 4."""
    image = picture(7, (6, 4))
    pixels = np.asarray(image)
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 1:3] = mask[2, 1] = True
    assert bounds(mask) == (1, 1, 3, 3)
    blackened = pixels.copy()
    for y in range(4):
        for x in range(6):
            if (y, x) not in ((1, 1), (1, 2), (2, 1)):
                blackened[y, x] = 0
    assert np.array_equal(refined(image, mask, "mask", True), blackened)
    assert np.array_equal(refined(image, mask, "mask", False), blackened)
    assert np.array_equal(refined(image, mask, "crop", False), pixels[1:3, 1:3])
    assert np.array_equal(refined(image, mask, "mask and crop", False), blackened[1:3, 1:3])
    enlarged = refined(image, mask, "crop", True)
    assert enlarged.size == (6, 4)
    assert np.array_equal(enlarged, image.crop((1, 1, 3, 3)).resize((6, 4), Image.Resampling.BICUBIC))
    assert np.array_equal(image, pixels)


def test_drawn() -> None:
    image = Image.new("RGB", (8, 6), (90, 90, 90))
    heat = np.zeros((6, 8), dtype=np.float32)
    heat[2, 3], heat[:, 7] = 4.0, np.nan
    shown = np.asarray(drawn(image, heat, [(1, 1, 5, 5)]))
    assert shown[2, 3, 0] > 200 > 90 > shown[2, 3, 2]
    assert (shown[3, 3] == 90).all()
    assert (shown[0, 7] == 90).all()
    assert (shown[1, 1:5] == 255).all()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top": 0.0}, ("carve", "top", "greater than 0")),
        ({"top": 1.0}, ("top", "less than 1")),
        ({"top": 20}, ("top", "20")),
        ({"top": float("nan")}, ("top",)),
        ({"steps": 0}, ("steps", "1")),
        ({"regions": 0}, ("regions",)),
        ({"smoothing": 0.0}, ("smoothing",)),
        ({"refine": "blur"}, ("refine", "crop")),
        ({"layers": []}, ("layers",)),
        ({"instruction": ""}, ("instruction",)),
        ({"tops": 0.3}, ("tops", "did you mean 'top'")),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    case = shared("llava_gqa")
    with pytest.raises(ConfigError) as caught:
        sightline.carve(case.model, Processor(case), picture(1), "Is it?", **settings)
    assert_message(caught.value, *words)


@pytest.mark.parametrize("layers", [[4], [0, 99], [-1]])
def test_a_layer_that_is_not_there(layers: list[int]) -> None:
    case = shared("llava_gqa")
    with pytest.raises(CalibrationError) as caught:
        sightline.carve(case.model, Processor(case), picture(1), "Is it?", layers=layers)
    assert_message(caught.value, "carve.layers", str(layers[-1]), "0..3")


@pytest.mark.parametrize(
    ("image", "question", "word"),
    [
        (None, "Is it?", "picture"),
        ("a.png", "Is it?", "str"),
        (picture(1), "", "question"),
        (picture(1), "  ", "question"),
        (picture(1), None, "question"),
    ],
)
def test_no_picture_or_no_question(image: Any, question: Any, word: str) -> None:
    case = shared("llava_gqa")
    before = Snapshot(case.model)
    with pytest.raises(LayoutError) as caught:
        sightline.carve(case.model, Processor(case), image, question)
    assert_message(caught.value, "carve", word)
    before.assert_same(case.model)


def test_numbers_that_differ() -> None:
    case = shared("llava_gqa")
    for images, questions in (([], []), ([picture(1)], ["a", "b"])):
        with pytest.raises(LayoutError, match="one question to each"):
            sightline.carve_all(case.model, Processor(case), images, questions)


def test_a_text_model() -> None:
    case = shared("llama")
    with pytest.raises(UnsupportedModelError, match="image processor"):
        sightline.carve(case.model, SimpleNamespace(chat_template=None), picture(1), "Is it?")


def test_a_model_without_image_tokens() -> None:
    case = shared("mllama")
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.carve(case.model, Processor(case), picture(1), "Is it?")
    assert_message(caught.value, "carve", "cross-attention")


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "idefics3", "instructblip"])
def test_a_grid_that_is_not_known(family: str) -> None:
    """Tiles and line ends: no order of cells that we know."""
    case = shared(family)
    before = Snapshot(case.model)
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.carve(case.model, Processor(case), picture(1), "Is it?", **SMALL)
    assert_message(caught.value, "image tokens", "not known")
    before.assert_same(case.model)


def test_a_template_without_its_picture() -> None:
    case = shared("llava_gqa")

    class Blind(Processor):
        def __call__(self, text: Sequence[str], images: Any, **_: Any) -> BatchFeature:
            full = super().__call__(text, images)
            return BatchFeature(
                {"input_ids": full["input_ids"][:, -4:], "attention_mask": full["attention_mask"][:, -4:]}
            )

    with pytest.raises(LayoutError, match="no image token"):
        sightline.carve(case.model, Blind(case), picture(1), "Is it?", **SMALL)


@pytest.mark.parametrize("config", ["carve", {"methods": ["carve"]}, {"decoder": {"carve": {"top": 0.3}}}])
def test_it_is_no_configuration(config: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        sightline.attach(shared("llava_gqa").model, config)
    assert_message(caught.value, "carve", "preprocessor", "sightline.carve", "--carve")


def test_it_is_listed() -> None:
    assert sightline.methods()["carve"] is Carve
    assert "carve" not in METHODS


# --- the shell -------------------------------------------------------------------------------------------------------


def test_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sightline import testbed

    scene = testbed.scene("test", 3)
    scene.image.save(tmp_path / "scene.png")
    question = testbed.question(scene.objects[0].name)
    asked = [
        "generate",
        "embedded",
        "--prompt",
        question,
        "--image",
        str(tmp_path / "scene.png"),
        "--max-new-tokens",
        "3",
    ]
    carved = [*asked, "--carve", str(tmp_path / "map.png"), "--carving", "{top: 0.4, refine: crop}"]
    assert cli.main([*carved, "--json", str(tmp_path / "said.json")]) == 0
    shown = capsys.readouterr().out
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    model, processor = testbed.load()
    found = sightline.carve(model, processor, scene.image, question, top=0.4, refine="crop")
    assert said["box"] == list(found.box)
    ids = model.generate(**found.inputs(model, processor), max_new_tokens=3, do_sample=False)[:, -3:]
    assert said["reply"] in processor.batch_decode(ids)[0]
    assert said["reply"] in shown
    assert "map.png" in shown
    with Image.open(tmp_path / "map.png") as drawing:
        assert np.array_equal(np.asarray(drawing), np.asarray(found.drawn()))
    for more, words in (
        (["--carve", str(tmp_path / "x.png"), "--carving", "{tops: 0.4}"], ["tops"]),
        (["--carve", str(tmp_path / "x.png"), "--carving", "{top: [}"], ["--carving", "YAML"]),
        (["--carve", str(tmp_path / "x.png"), "--carving", "0.4"], ["--carving", "mapping"]),
        (["--carve", str(tmp_path)], ["folder"]),
    ):
        error = fails([*asked, *more], capsys)
        assert all(word in error for word in words)
    error = fails(["generate", "embedded", "--prompt", "x", "--carve", str(tmp_path / "x.png")], capsys)
    assert "--image" in error
    assert not (tmp_path / "x.png").exists()


# --- the measurement -------------------------------------------------------------------------------------------------


def test_how_a_region_fits() -> None:
    """A picture of 4 x 4 with an object of 2 x 2 in a corner; three pixels are kept, one of them the object's."""
    heat = np.array([[9, 1, 1, 1], [1, 1, 1, 8], [1, 1, 1, 7], [1, 1, 1, 1]], dtype=np.float32)
    mask = heat > 6
    found = SimpleNamespace(mask=mask, heat=heat, box=bounds(mask))
    covers, chance, box_covers, box_chance, hotter = fit(found, [(0, 0, 2, 2)])  # type: ignore[arg-type]
    assert (covers, chance) == (1 / 4, 3 / 16)
    assert (box_covers, box_chance) == (1.0, 12 / 16)
    # The object's 9 beats all 12 others; each of its three 1 ties with ten and loses to two.
    assert hotter == pytest.approx((12 + 3 * 5) / (4 * 12))
