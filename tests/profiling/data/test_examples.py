"""What profiling looks at: folders in each format, generated examples, and all that can be wrong with a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sightline import testbed
from sightline.common.errors import DataError
from sightline.common.readers import Notes
from sightline.models.samples import Example, Region
from sightline.profiling.data.examples import PROMPT, examples, pages


def picture(path: Path, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def read(folder: Path, number: int = 10, *, seed: int = 0, sees: bool = True) -> tuple[list[Example], list[str]]:
    notes = Notes()
    return examples(folder, number, seed=seed, sees=sees, notes=notes), notes.lines()


def lines(path: Path, *rows: Any) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def test_plain_pictures_are_drawn_by_seed(tmp_path: Path) -> None:
    for index in range(8):
        picture(tmp_path / ("deep" if index % 2 else ".") / f"{index}.png", (10 + index, 8))
    (tmp_path / "notes.txt").write_text("no picture")
    found, notes = read(tmp_path, 5)
    again, _ = read(tmp_path, 5)
    other, _ = read(tmp_path, 5, seed=1)
    everything, _ = read(tmp_path, 8)
    assert [one.id for one in found] == [one.id for one in again]
    assert [one.id for one in found] != [one.id for one in other]
    assert {one.size for one in everything} == {(10 + i, 8) for i in range(8)}
    assert all(one.text == PROMPT for one in found)
    assert notes == []


def test_json_lines(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "a.png")
    boxed = {"label": "dog", "box": [1, 2, 5, 6.5]}
    lines(
        tmp_path / "one.jsonl",
        {"image": "img/a.png", "prompt": "What?", "objects": [boxed]},
        {"image": "a.png", "caption": "a dog", "texts": [{"label": "EXIT", "box": [0, 0, 3, 3]}]},
    )
    lines(tmp_path / "two.jsonl", {"prompt": "Only words."})
    (seen,), _ = read(tmp_path)
    assert seen.objects == (Region("dog", (1, 2, 5, 6.5)),)
    assert seen.texts == (Region("EXIT", (0, 0, 3, 3)),)
    assert (seen.caption, seen.size) == ("a dog", (12, 8))
    (spoken,), _ = read(tmp_path, sees=False)
    assert (spoken.text, spoken.image) == ("Only words.", None)


def test_coco(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        picture(tmp_path / "val" / name)
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    boxes = [
        {"id": 7, "image_id": 2, "category_id": 5, "bbox": [1, 1, 4, 3]},
        {"id": 8, "image_id": 2, "category_id": 6, "bbox": [0, 0, 0, 3]},
        {"id": 9, "image_id": 2, "category_id": 6, "bbox": [2, 2, 2, 2]},
    ]
    (tmp_path / "instances.json").write_text(
        json.dumps(
            {"images": images, "annotations": boxes, "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "cup"}]}
        )
    )
    (tmp_path / "captions.json").write_text(
        json.dumps({"images": images, "annotations": [{"id": 3, "image_id": 1, "caption": "a cup"}]})
    )
    found = {Path(one.id).name: one for one in read(tmp_path)[0]}
    assert found["2.jpg"].objects == (Region("cat", (1, 1, 5, 4)), Region("cup", (2, 2, 4, 4)))
    assert (found["1.jpg"].objects, found["1.jpg"].caption) == ((), "a cup")


def test_corrupt_pictures_are_left_out_and_said(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:40])
    found, notes = read(tmp_path)
    assert [one.id for one in found] == ["good.png"]
    assert sum("cannot be read" in note for note in notes) == 2
    assert any("instead of 10" in note for note in notes)
    assert any("one example" in note for note in notes)
    good.unlink()
    with pytest.raises(DataError, match="none of 2 pictures"):
        read(tmp_path)


def test_folders_without_anything(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        read(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="'prompt'"):
        read(tmp_path, sees=False)
    with pytest.raises(DataError, match="no folder"):
        read(tmp_path / "missing")


WRONG: dict[str, tuple[Any, str]] = {
    "an unknown key": ({"image": "a.png", "captoin": "x"}, "captoin"),
    "nothing": ({}, "neither 'image' nor 'prompt'"),
    "a missing picture": ({"image": "b.png"}, "b.png"),
    "a number for a picture": ({"image": 3}, "'image' is 3"),
    "a box of three": ({"image": "a.png", "objects": [{"label": "x", "box": [1, 2, 3]}]}, "box: [left"),
    "a box inside out": ({"image": "a.png", "objects": [{"label": "x", "box": [5, 2, 3, 4]}]}, "box: [left"),
    "no label": ({"image": "a.png", "texts": [{"box": [1, 2, 3, 4]}]}, "'texts' takes"),
    "no list": ({"image": "a.png", "objects": "dog"}, "'objects'"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_rows_are_named(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    row, words = WRONG[name]
    lines(tmp_path / "rows.jsonl", {"image": "a.png"}, row)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert "rows.jsonl, line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"id": 1, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}, "image 9"),
        ({"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 0, 1, 1]}, "category 4"),
        ({"id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}, "image_id"),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, annotation: dict[str, Any], words: str) -> None:
    picture(tmp_path / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert "annotation 0" in str(caught.value)


def test_generated_examples() -> None:
    notes = Notes()
    found = examples("testbed", 4, seed=2, sees=True, notes=notes)
    scenes = testbed.scenes("calibration", 4, seed=2)
    assert [[(r.label, r.box) for r in one.objects] for one in found] == [
        [(o.name, o.box) for o in s.objects] for s in scenes
    ]
    prose = examples("testbed", 4, seed=2, sees=False, notes=notes)
    assert len({one.text for one in prose}) == 4
    assert all(one.image is None and len(one.text.split()) > 30 for one in prose)
    assert notes.lines() == []


def test_pages_hold_their_words_where_they_say() -> None:
    for page in pages(6, seed=1):
        assert page.image is not None
        assert not isinstance(page.image, Path)
        dark = page.image.convert("L").point(lambda value: 255 * (value < 128))
        inside = Image.new("L", page.image.size)
        for region in page.texts:
            left, top, right, bottom = (round(edge) for edge in region.box)
            assert dark.crop((left, top, right, bottom)).getbbox() is not None
            inside.paste(dark.crop((left, top, right, bottom)), (left, top))
        assert inside.tobytes() == dark.tobytes()  # and nothing stands outside of the boxes
    assert pages(2, seed=1)[1].texts != pages(2, seed=2)[1].texts
