"""MS COCO as ground truth: the 80 categories, the words that name them, and which image holds what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...common.documents import read_json, read_text, read_yaml, shipped_yaml
from ...common.errors import DataError, shown
from ...common.readers import first_file, records, text, unique, value
from ...common.validation import suggest
from ..benchmark import OWN, STRICT, DataSource
from .chair import Vocabulary, Words
from .chair_script import ScriptWords

IMAGE_IDS = "image_ids.txt"
INSTANCES = ("instances_val2014.json", "instances.json")


@cache
def vocabulary(synonyms: Path | None = None, *, strict: bool = False) -> Words:
    """The words for COCO's objects.

    Args:
        synonyms: a table in the format of the published CHAIR script, a category and its synonyms on each line, divided by
            commas, instead of the project's own; then that script's rule finds them.
        strict: with that script's slips.

    Raises:
        DataError: the table is malformed, or lists a word twice.
    """
    if synonyms is not None:
        return ScriptWords(_synonyms(synonyms), strict=strict)
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
    return shipped_yaml("data", "coco.yaml")


def categories() -> list[str]:
    """The names of the 80 categories."""
    return list(own_table()["categories"])


def _synonyms(path: Path) -> dict[str, str]:
    """Word -> category, cut as the script cuts: a word with a capital, or behind two spaces, is one that it never finds."""
    table: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.strip().split(", ") if line.strip() else []
        for word in words:
            if table.setdefault(word, words[0]) != words[0]:
                raise DataError(f"{path}, line {number}: {word!r} already stands for {table[word]!r}")
    if not table:
        raise DataError(f"{path} is empty: expected a category and its synonyms on each line, divided by commas")
    return table


def annotated(folder: Path, source: DataSource) -> tuple[Path, Words, dict[int, str], dict[int, set[str]]]:
    """What a folder annotates: its instances file, the words for its objects, file names and objects by image id.

    Raises:
        DataError: a file is missing or malformed, or a category has no word.
    """
    path, renamed = instances(folder), {}
    words = vocabulary(source.synonyms, strict=source.match == STRICT)
    if source.categories == OWN:
        listed = value(read_json(path, dict), "categories", str(path), list)
        words = Vocabulary(text(row, "name", place) for place, row in records(listed, str(path), "category"))
    if isinstance(source.categories, Path):
        renamed = _renamed(source.categories, words)
    return path, words, *objects(path, words, renamed)


def _renamed(path: Path, words: Words) -> dict[str, str | None]:
    """A table of a file's categories: its name -> one that the words know, or None to leave it out."""
    table = read_yaml(path, error=DataError)
    if not isinstance(table, dict):
        raise DataError(f"{path}: expected a line 'its name: our name' for each category")
    wrong = [name for name in table.values() if name is not None and name not in words.names]
    if wrong:
        known = sorted(words.names)
        raise DataError(f"{path}: no object is called {shown(wrong[0])}{suggest(str(wrong[0]), known)}")
    return {str(name): known for name, known in table.items()}


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
            raise DataError(f"{place}: image {shown(line)} is not among the instances' images")
    unique(((place, line) for place, line in lines if line), "image id")
    return [int(line) for _, line in lines if line]


def image_names(annotations: Mapping[str, Any], where: str) -> dict[int, str]:
    """File names by image id, in the order of the file. Raises DataError for an id that comes twice."""
    rows = records(value(annotations, "images", where, list), where, "image")
    unique(((place, value(row, "id", place, int)) for place, row in rows), "image id")
    return {row["id"]: text(row, "file_name", place) for place, row in rows}


def objects(
    instances: Path, words: Words, renamed: Mapping[str, str | None] | None = None
) -> tuple[dict[int, str], dict[int, set[str]]]:
    """File names, and the objects annotated in each image, by image id.

    A category takes the name that the words give it, which for another table of synonyms may be another word; `renamed`
    gives some another name, or None: they are left out.

    Raises:
        DataError: the file is no instances file, an annotation belongs to no image, or a category is unknown.
    """
    data, renamed = read_json(instances, dict), renamed or {}
    names = image_names(data, str(instances))
    categories = records(value(data, "categories", str(instances), list), str(instances), "category")
    listed = {value(row, "id", place, int): text(row, "name", place) for place, row in categories}
    found: dict[int, set[str]] = {image: set() for image in names}
    canonical: dict[int, str | None] = {}
    for place, row in records(value(data, "annotations", str(instances), list), str(instances), "annotation"):
        image, category = value(row, "image_id", place, int), value(row, "category_id", place, int)
        if image not in found:
            raise DataError(f"{place}: image {image} is not among the file's images: files of two splits?")
        if category not in canonical:
            name = str(listed.get(category))
            if name not in renamed and words.category(name) is None:
                raise DataError(
                    f"{place}: category {category} ({name}) is none that the vocabulary knows: give --categories a YAML "
                    f"file with a line for each such category ({name}: person, say, or null to leave it out), or "
                    f"--categories {OWN} to look for the file's own names"
                )
            canonical[category] = renamed[name] if name in renamed else words.category(name)
        held = canonical[category]
        if held is not None:
            found[image].add(held)
    return names, found


def captions(path: Path, known: Iterable[int]) -> dict[int, list[str]]:
    """People's captions by image id. Raises DataError where one belongs to an image that is not known."""
    found: dict[int, list[str]] = {image: [] for image in known}
    for place, row in records(value(read_json(path, dict), "annotations", str(path), list), str(path), "annotation"):
        image = value(row, "image_id", place, int)
        if image not in found:
            raise DataError(f"{place}: image {image} is not among the instances' images: files of two splits?")
        found[image].append(value(row, "caption", place, str))
    return found
