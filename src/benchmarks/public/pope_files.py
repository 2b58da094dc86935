"""POPE's question files as they are published: where they lie, and what they hold.

Rows of `question_id, image, text, label`, JSON lines or a JSON list, for a *set* of pictures (COCO, A-OKVQA, GQA) and a
split: `coco_pope_random.json`, `aokvqa_pope_seem_popular.json`, `gqa_pope_adversarial.json`, ... in the data folder, or in
`coco/`, `aokvqa/`, `gqa/` and `seem/` of it as releases have them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.documents import read_rows
from ...common.errors import DataError
from ...common.readers import Notes, label, text, unique, value
from .pope import SPLITS

PUBLISHED = 3000
"""Questions in each published split."""
SETS = ("coco", "aokvqa", "gqa")
FOLDERS = ("", *SETS, "seem/aokvqa", "seem/gqa")
"""Where question files may lie in the data folder."""


@dataclass(frozen=True)
class Entry:
    """A question of a split, as its file has it; `place` says where."""

    place: str
    id: Any
    image: str
    text: str
    yes: bool


def read_entries(path: Path, notes: Notes) -> list[Entry]:
    """The questions of a file. Raises DataError for an unknown label, or an id that comes twice."""
    found = [
        Entry(
            place,
            question_id(row, place),
            text(row, "image", place),
            text(row, "text", place),
            label(row.get("label"), place),
        )
        for place, row in read_rows(path)
    ]
    unique(((entry.place, entry.id) for entry in found), "question_id")
    twice = len(found) - len({(entry.image, entry.text) for entry in found})
    notes.add(f"{path.name} asks a question twice, under two ids: both count, as in the published script", twice)
    return found


def question_id(row: Mapping[str, Any], place: str) -> Any:
    """A row's id. Raises DataError where it has none."""
    return value(row, "question_id", place, (int, str))


def spelled(question: str) -> str:
    """A question without the slip of VCD's files."""
    return question.replace("imange", "image")


def split_files(folder: Path) -> dict[tuple[str, str], Path]:
    """The file of each set (empty where no name says it) and split. Raises DataError where one has two."""
    if not folder.is_dir():
        raise DataError(f"{'a file, not a folder:' if folder.exists() else 'no folder'} {folder}: check the path")
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(path for place in FOLDERS for path in (folder / place).glob("*.json*")):
        split, kind = (
            re.search("|".join(SPLITS), path.name),
            re.search("|".join(SETS), f"{path.parent.name}/{path.name}"),
        )
        if split is None:
            continue
        key = (kind.group() if kind else "", split.group())
        before = found.setdefault(key, path)
        if before.with_suffix("") != path.with_suffix(""):  # the same file may be there as a list and as lines
            raise DataError(f"{folder} has two files for the split {' '.join(key).strip()}: {before.name}, {path.name}")
    kinds = {kind for kind, _ in found}
    if "" in kinds and len(kinds) > 1:
        unnamed = next(path.name for (kind, _), path in found.items() if not kind)
        raise DataError(f"{folder}: {unnamed} says no set ({', '.join(SETS)}), but other files do: rename or remove it")
    return {(kind, split): found[kind, split] for kind in (*SETS, "") for split in SPLITS if (kind, split) in found}
