"""Checking what public files of benchmarks hold: every mistake is named by file and line, and nothing is dropped.

What stops a run is a `DataError`; what does not is counted in `Notes`, which every result carries. `documents.py` reads
the files themselves.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .documents import read_text
from .errors import LINE, DataError, shortened, shown

T = TypeVar("T")
CHECKSUMS = "SHA256SUMS"


class Notes(Counter[str]):
    """Warnings and how often each was met."""

    def add(self, message: str, times: int = 1) -> None:
        if times:
            self[message] += times

    def lines(self) -> list[str]:
        return [message if count == 1 else f"{message} ({count} times)" for message, count in self.items()]


def records(listed: Iterable[Any], where: str, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The JSON objects of a list as (place, object); `place` is "file, WHAT N". Raises DataError for anything else."""
    rows = []
    for number, row in enumerate(listed):
        place = f"{where}, {what} {number}"
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected a JSON object, got {shown(row)}")
        rows.append((place, row))
    return rows


def value(row: Mapping[str, Any], key: str, place: str, kind: type[T] | tuple[type[T], ...]) -> T:
    """`row[key]` of a given type. Raises DataError naming the place."""
    if key not in row:
        raise DataError(f"{place}: no {key!r}; it has {shortened(', '.join(map(str, row)), LINE) or 'nothing'}")
    if not isinstance(row[key], kind) or isinstance(row[key], bool):
        raise DataError(f"{place}: {key!r} is {shown(row[key])}")
    return row[key]


def texts(row: Mapping[str, Any], key: str, place: str) -> list[str]:
    """A list of texts that are not empty, which may itself be empty."""
    found = value(row, key, place, list)
    if not all(isinstance(one, str) and one.strip() for one in found):
        raise DataError(f"{place}: {key!r} is {shown(found)}; expected texts")
    return found


def numbers(row: Mapping[str, Any], key: str, place: str, count: int) -> list[float]:
    """A list of so many finite numbers."""
    found = value(row, key, place, list)
    kinds = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in found)
    if not kinds or len(found) != count:
        raise DataError(f"{place}: {key!r} is {shown(found)}; expected {count} numbers")
    return found


def text(row: Mapping[str, Any], key: str, place: str) -> str:
    """A text that is not empty."""
    found = value(row, key, place, str)
    if not found.strip():
        raise DataError(f"{place}: {key!r} is empty")
    return found


def label(written: object, place: str, names: Mapping[str, bool] | None = None) -> bool:
    """yes or no, in any case. Raises DataError for an unknown label."""
    names = names or {"yes": True, "no": False}
    key = str(written).strip().lower()
    if key not in names:
        raise DataError(f"{place}: unknown label {shown(written)}; it takes {' or '.join(names)}")
    return names[key]


def unique(keys: Iterable[tuple[str, Any]], what: str) -> None:
    """Raises DataError where a key comes twice; `keys` are (place, key)."""
    seen: dict[Any, str] = {}
    for place, key in keys:
        if key in seen:
            raise DataError(f"{place}: {what} {shown(key)} was already given at {seen[key]}")
        seen[key] = place


def images(folders: Sequence[Path], names: Iterable[str], missing: Notes | None = None) -> dict[str, Path]:
    """Where each picture lies: the first of the folders that has it.

    Args:
        folders: where to look.
        names: the pictures' names.
        missing: takes a note of pictures that are not there, which then get the path that they would have in the first
            folder; None: they are needed.

    Raises:
        DataError: pictures are needed and missing; it says where it looked.
    """
    known = list(dict.fromkeys(names))
    found = {name: next((f / name for f in folders if os.path.isfile(f / name)), None) for name in known}
    lost = [name for name in known if found[name] is None]
    if lost and missing is None:
        looked = ", ".join(map(str, folders))
        raise DataError(
            f"{len(lost)} of {len(known)} images are missing, first {shortened(lost[0], LINE)}: looked in {looked}; replies that exist "
            "(--answers) need none"
        )
    if missing is not None:
        missing.add("a picture is not on disk, which scoring replies that exist does not need", len(lost))
    return {name: path or folders[0] / name for name, path in found.items()}


def first_file(places: Sequence[Path]) -> Path:
    """The first of the files that is there. Raises DataError naming them."""
    found = next((path for path in places if os.path.isfile(path)), None)
    if found is None:
        raise DataError(f"none of these files is there: {', '.join(map(str, places))}; check --data")
    return found


def expect(count: int, published: int | Sequence[int], what: str, notes: Notes) -> None:
    """A note where the file is not as long as the published one, or one of its published versions."""
    lengths = [published] if isinstance(published, int) else list(published)
    if count not in lengths:
        one = " or ".join(map(str, lengths))
        notes.add(f"{what}: {count}, but the published set has {one}: these numbers compare with no paper's")


def check_sums(folder: Path) -> None:
    """Check the files that `SHA256SUMS` (as `sha256sum` writes it) lists, if the folder has one. Raises DataError."""
    listing = folder / CHECKSUMS
    if not listing.is_file():
        return
    for number, line in enumerate(read_text(listing).splitlines(), start=1):
        digest, _, name = line.strip().partition(" ")
        name = name.lstrip(" *")
        if line.strip() and (len(digest) != 64 or not name):
            raise DataError(f"{listing}, line {number}: expected 'digest  file', as sha256sum writes it")
        if line.strip() and file_hash(folder / name) != digest.lower():
            raise DataError(f"{folder / name} is not the file that {listing}, line {number} describes: fetch it again")


def file_hash(path: Path) -> str:
    """SHA-256 of a file. Raises DataError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def answers(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    path: Path,
    known: Sequence[Any],
    *,
    key: Callable[[Mapping[str, Any], str], Any],
    reply: Sequence[str],
) -> Iterator[str]:
    """Replies in the order of the known ids.

    Args:
        rows: (place, row) for each reply.
        path: the file that they come from.
        known: the ids of the questions.
        key: the id of a row.
        reply: the names under which a reply may stand; the first one found counts.

    Raises:
        DataError: a reply is missing, comes twice, or belongs to another question.
    """
    keyed = [(place, key(row, place)) for place, row in rows]
    unique(keyed, "id")
    found = {}
    for (place, identity), (_, row) in zip(keyed, rows, strict=True):
        name = next((name for name in reply if name in row), None)
        if name is None:
            raise DataError(f"{place}: no reply; expected one of {', '.join(reply)}")
        found[identity] = value(row, name, place, str)
    asked = set(known)
    strangers = [place for place, identity in keyed if identity not in asked]
    if strangers:
        raise DataError(
            f"{strangers[0]}: an answer to a question that was not asked ({len(strangers)} such answers): another file or split?"
        )
    lost = [identity for identity in known if identity not in found]
    if lost:
        raise DataError(f"{path}: {len(lost)} of {len(known)} questions have no answer, first {shown(lost[0])}")
    return (found[identity] for identity in known)
