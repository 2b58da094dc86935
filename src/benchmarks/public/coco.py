"""MS COCO as ground truth: the 80 categories, the words that name them, and which image holds what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ...common.readers import DataError, first_file, read_json, read_text, text, unique, value
from .chair import Vocabulary

IMAGE_IDS = "image_ids.txt"
INSTANCES = ("instances_val2014.json", "instances.json")
_SCRIPT_DOUBLES = {"bow tie": "tie", "toilet seat": "toilet", "street light": None, "home plate": None}
_SCRIPT_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")


@cache
def vocabulary(synonyms: Path | None = None) -> Vocabulary:
    """The words for COCO's objects.

    Args:
        synonyms: a table in the format of the original CHAIR script, a category and its synonyms on each line, divided by
            commas, instead of the project's own; then that script's special cases apply, and none of ours.

    Raises:
        DataError: the table is malformed, or lists a word twice.
    """
    if synonyms is not None:
        return _script_vocabulary(synonyms)
    table = own_table()
    surfaces = {word: name for name, words in table["categories"].items() for word in (name, *words)}
    by_name: dict[str, list[str]] = {}
    for word, name in surfaces.items():
        by_name.setdefault(name, []).append(word)
    for qualifier, names in table["qualifiers"].items():
        for name in by_name if names == "all" else names:
            surfaces |= {f"{qualifier} {word}": name for word in by_name[name]}
    return Vocabulary(categories(), surfaces, table["ignore"], table["unless"])


@cache
def own_table() -> Mapping[str, Any]:
    import yaml

    return yaml.safe_load((resources.files("sightline.eval") / "data" / "coco.yaml").read_text("utf-8"))


def categories() -> list[str]:
    """The names of the 80 categories."""
    return list(own_table()["categories"])


def _script_vocabulary(path: Path) -> Vocabulary:
    """The original script's rules: baby and adult animals, passenger trains, double words, the seat of a toilet."""
    surfaces: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = [word.strip().lower() for word in line.split(",") if word.strip()]
        for word in words:
            if surfaces.setdefault(word, words[0]) != words[0]:
                raise DataError(f"{path}, line {number}: {word!r} already stands for {surfaces[word]!r}")
    if not surfaces:
        raise DataError(f"{path} is empty: expected a category and its synonyms on each line, divided by commas")
    qualified = [(f"{q} {animal}", animal) for q in ("baby", "adult") for animal in _SCRIPT_ANIMALS]
    qualified += [("passenger jet", "jet"), ("passenger train", "train")]
    known = {double: surfaces[word] for double, word in qualified if word in surfaces}
    doubles = {double: word for double, word in _SCRIPT_DOUBLES.items() if double not in surfaces}
    known |= {double: surfaces[word] for double, word in doubles.items() if word in surfaces}
    ignore = [double for double, word in doubles.items() if word is None]
    unless = {"seat": "toilet"} if "seat" in surfaces else {}
    return Vocabulary(set(surfaces.values()), known | surfaces, [*ignore, "baby animal", "adult animal"], unless)


def places(folder: Path, *names: str) -> list[Path]:
    """Where an annotation file may lie: in the folder, or in its `annotations/`."""
    return [place / name for name in names for place in (folder, folder / "annotations")]


def picture_folders(folder: Path) -> list[Path]:
    """Where pictures may lie."""
    return [folder, folder / "images", folder / "val2014"]


def instances(folder: Path) -> Path:
    """The file that says which image holds what. Raises DataError."""
    return first_file(places(folder, *INSTANCES))


def chosen(folder: Path, known: Sequence[int]) -> list[int]:
    """The images to ask about, in order: those of `image_ids.txt`, or all in an order that is random but everybody's.

    Raises:
        DataError: an id is unknown, or comes twice.
    """
    listing = folder / IMAGE_IDS
    if not listing.is_file():
        return sorted(known, key=lambda image: hashlib.sha256(str(image).encode()).digest())
    possible = set(known)
    lines = [(f"{listing}, line {n}", line.strip()) for n, line in enumerate(read_text(listing).splitlines(), start=1)]
    for place, line in lines:
        if line and (not line.isdecimal() or int(line) not in possible):
            raise DataError(f"{place}: image {line!r} is not among the instances' images")
    unique(((place, line) for place, line in lines if line), "image id")
    return [int(line) for _, line in lines if line]


def image_names(annotations: Mapping[str, Any], where: str) -> dict[int, str]:
    """File names by image id, in the order of the file. Raises DataError for an id that comes twice."""
    rows = [(f"{where}, image {n}", row) for n, row in enumerate(value(annotations, "images", where, list))]
    unique(((place, value(row, "id", place, int)) for place, row in rows), "image id")
    return {row["id"]: text(row, "file_name", place) for place, row in rows}


def objects(instances: Path, words: Vocabulary) -> tuple[dict[int, str], dict[int, set[str]]]:
    """File names, and the objects annotated in each image, by image id.

    A category takes the name that the vocabulary gives it, which for another table of synonyms may be another word.

    Raises:
        DataError: the file is no instances file, an annotation belongs to no image, or a category is unknown.
    """
    data = read_json(instances, dict)
    names = image_names(data, str(instances))
    listed = {row.get("id"): row.get("name") for row in value(data, "categories", str(instances), list)}
    found: dict[int, set[str]] = {image: set() for image in names}
    canonical: dict[int, str] = {}
    for number, row in enumerate(value(data, "annotations", str(instances), list)):
        place = f"{instances}, annotation {number}"
        image, category = value(row, "image_id", place, int), value(row, "category_id", place, int)
        if image not in found:
            raise DataError(f"{place}: image {image} is not among the file's images: files of two splits?")
        if category not in canonical:
            mentions = words.mentions(str(listed.get(category)))
            if not mentions:
                raise DataError(
                    f"{place}: category {category} ({listed.get(category)}) is none that the vocabulary knows"
                )
            canonical[category] = mentions[0].name
        found[image].add(canonical[category])
    return names, found


def captions(path: Path, known: Iterable[int]) -> dict[int, list[str]]:
    """People's captions by image id. Raises DataError where one belongs to an image that is not known."""
    found: dict[int, list[str]] = {image: [] for image in known}
    for number, row in enumerate(value(read_json(path, dict), "annotations", str(path), list)):
        place = f"{path}, annotation {number}"
        image = value(row, "image_id", place, int)
        if image not in found:
            raise DataError(f"{place}: image {image} is not among the instances' images: files of two splits?")
        found[image].append(value(row, "caption", place, str))
    return found
