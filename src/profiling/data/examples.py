"""What profiling looks at: pictures with or without captions and boxes, generated scenes, rendered words, plain prose.

A folder is read as JSON lines (`*.jsonl`: `image`, and any of `prompt`, `caption`, `objects`, `texts`, the last two
lists of `{label, box: [left, top, right, bottom]}` in pixels), as COCO (`*.json` with `images` and `annotations`), or,
without either, as the pictures that lie in it. Rows of JSON lines without an image are prompts for a text model.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...common.documents import read_json, read_rows
from ...common.errors import LINE, DataError, SightlineError, shortened, shown
from ...common.pictures import open_image
from ...common.readers import Notes, numbers, records, value
from ...models.samples import TESTBED, Example, Region
from .texts import sentences

PROMPT = "Please describe this image in detail."
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PROSE = 6  # sentences of a text prompt


def examples(
    source: str | Path, number: int, *, seed: int, sees: bool, notes: Notes, split: str = "calibration"
) -> list[Example]:
    """At most `number` examples, drawn by `seed`; pictures that cannot be read are left out, with a note.

    Args:
        source: a folder, or "testbed": generated scenes of a split where the model sees, else generated prose.
        sees: whether the model takes pictures.

    Raises:
        DataError: the folder holds nothing to use, or a file in it is malformed.
    """
    if str(source) == TESTBED:
        found = list(_scenes(number, seed, split) if sees else _prose(number, seed))
    else:
        found = _folder(Path(source), number, seed, sees, notes)
    if len(found) < number:
        notes.add(f"{len(found)} examples instead of {number}: the folder holds no more")
    if len(found) == 1:
        notes.add("one example: its values are that example's, not the model's; give more")
    return found


def check_source(source: str | Path) -> None:
    """Raises DataError where `examples` would, before it is known what the model sees."""
    if str(source) != TESTBED:
        if not Path(source).is_dir():
            raise DataError(f"no folder {source}: check --data")
        _annotated(Path(source))


def _scenes(number: int, seed: int, split: str) -> Iterator[Example]:
    from ... import testbed

    for scene in testbed.scenes(split, number, seed=seed):
        objects = tuple(Region(item.name, item.box) for item in scene.objects)
        yield Example(f"{split} scene {seed}/{scene.index}", testbed.CAPTION_PROMPT, scene.image, objects=objects)


def _prose(number: int, seed: int) -> Iterator[Example]:
    for index in range(number):
        text = " ".join(itertools.islice(sentences(seed * 1_000_003 + index), PROSE))
        yield Example(f"prose {seed}/{index}", text)


def pages(number: int, *, seed: int) -> list[Example]:
    """White pages with a few code words in black, for models that read: where each word stands is known."""
    from PIL import Image, ImageDraw, ImageFont

    found = []
    for index in range(number):
        rng = random.Random(f"{seed}/{index}")
        page = Image.new("RGB", (336, 336), "white")
        draw, texts = ImageDraw.Draw(page), []
        for row in rng.sample(range(4), rng.randint(1, 3)):
            word = "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXYZ23456789") for _ in range(6))
            font = ImageFont.load_default(rng.randint(26, 40))
            spot = (rng.randint(8, 140), 84 * row + rng.randint(8, 30))
            draw.text(spot, word, fill="black", font=font)
            texts.append(Region(word, draw.textbbox(spot, word, font=font)))
        found.append(
            Example(f"page {seed}/{index}", "Write down all the words in this image.", page, texts=tuple(texts))
        )
    return found


def _folder(folder: Path, number: int, seed: int, sees: bool, notes: Notes) -> list[Example]:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: check --data")
    known = sorted(_annotated(folder), key=lambda example: example.id)
    if not known:
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
        known = [Example(str(path.relative_to(folder)), PROMPT, path) for path in pictures]
    known = [example for example in known if (example.image is not None) == sees]
    if not known:
        wanted = "pictures" if sees else "JSON lines with a 'prompt'"
        raise DataError(f"{folder} holds no {wanted}: put some there, or leave --data out to use generated examples")
    random.Random(seed).shuffle(known)
    found = list(itertools.islice(_readable(known, notes), number))
    if not found:
        raise DataError(f"none of {len(known)} pictures in {folder} can be read, first {known[0].image}")
    return found


def _readable(known: Sequence[Example], notes: Notes) -> Iterator[Example]:
    """The examples whose picture can be decoded; it is opened again when its turn comes."""
    for example in known:
        try:
            if isinstance(example.image, Path):
                open_image(example.image)
        except SightlineError:
            notes.add(f"{example.image} cannot be read as a picture and is left out")
        else:
            yield example


def _annotated(folder: Path) -> list[Example]:
    """The examples that annotation files describe, those of one picture merged."""
    places = {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES}
    merged: dict[str, Example] = {}
    rows = itertools.chain(
        *(_json_lines(path, folder, places) for path in sorted(folder.glob("*.jsonl"))),
        *(_coco(path, folder, places) for path in sorted(folder.glob("*.json"))),
    )
    for row in rows:
        old = merged.get(row.id)
        if old is not None:
            row = replace(
                row, objects=old.objects + row.objects, texts=old.texts + row.texts, caption=old.caption or row.caption
            )
        merged[row.id] = row
    return list(merged.values())


def _json_lines(path: Path, folder: Path, places: Mapping[str, Path]) -> Iterator[Example]:
    known = {"image", "prompt", "caption", "objects", "texts"}
    for place, row in read_rows(path):
        unknown = sorted(row.keys() - known)
        if unknown:
            raise DataError(f"{place}: unknown key {shown(unknown[0])}; it takes {', '.join(sorted(known))}")
        image = _picture(value(row, "image", place, str), folder, places, place) if "image" in row else None
        if image is None and "prompt" not in row:
            raise DataError(f"{place}: neither 'image' nor 'prompt'")
        yield Example(
            place if image is None else str(image),
            value(row, "prompt", place, str) if "prompt" in row else PROMPT,
            image,
            objects=_regions(row, "objects", place),
            texts=_regions(row, "texts", place),
            caption=value(row, "caption", place, str) if "caption" in row else None,
        )


def _regions(row: Mapping[str, Any], key: str, place: str) -> tuple[Region, ...]:
    found = []
    for item in value(row, key, place, list) if key in row else ():
        label, box = (item.get("label"), item.get("box")) if isinstance(item, dict) else (None, None)
        if not isinstance(label, str) or not label or not isinstance(box, list) or not _is_box(box):
            raise DataError(f"{place}: '{key}' takes {{label, box: [left, top, right, bottom]}}, got {shown(item)}")
        left, top, right, bottom = box
        found.append(Region(label, (left, top, right, bottom)))
    return tuple(found)


def _is_box(box: list[Any]) -> bool:
    known = len(box) == 4 and all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in box)
    return known and math.isfinite(sum(box)) and box[0] < box[2] and box[1] < box[3]


def _coco(path: Path, folder: Path, places: Mapping[str, Path]) -> Iterator[Example]:
    """One example per image, and one more for each annotation."""
    data = read_json(path, dict)
    names = {
        value(item, "id", place, int): value(item, "name", place, str)
        for place, item in records(
            value(data, "categories", str(path), list) if "categories" in data else (), str(path), "category"
        )
    }
    pictured: dict[int, Example] = {}
    for place, item in records(value(data, "images", str(path), list), str(path), "image"):
        image = _picture(value(item, "file_name", place, str), folder, places, place)
        pictured[value(item, "id", place, int)] = Example(str(image), PROMPT, image)
    yield from pictured.values()
    for place, item in records(value(data, "annotations", str(path), list), str(path), "annotation"):
        number = value(item, "image_id", place, int)
        if number not in pictured:
            raise DataError(f"{place}: image {number} is not in 'images'")
        if "caption" in item:
            yield replace(pictured[number], caption=value(item, "caption", place, str))
        elif "bbox" in item:
            left, top, width, height = numbers(item, "bbox", place, 4)
            if not _is_box([left, top, left + width, top + height]):
                continue  # COCO has a few boxes without area
            category = value(item, "category_id", place, int)
            if category not in names:
                raise DataError(f"{place}: category {category} is not in 'categories'")
            yield replace(pictured[number], objects=(Region(names[category], (left, top, left + width, top + height)),))


def _picture(name: str, folder: Path, places: Mapping[str, Path], place: str) -> Path:
    path = folder / name if os.path.isfile(folder / name) else places.get(Path(name).name)
    if path is None:
        raise DataError(f"{place}: no picture {shortened(name, LINE)} in {folder}")
    return path
