"""Reading the public files of benchmarks: every mistake in them is named by file and line, and nothing is dropped.

What stops a run is a `DataError`; what does not is counted in `Notes`, which every result carries.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import SightlineError

T = TypeVar("T")
CHECKSUMS = "SHA256SUMS"


class DataError(SightlineError):
    """A benchmark's file is missing, malformed, or does not belong to the others."""


class Notes(Counter[str]):
    """Warnings and how often each was met."""

    def add(self, message: str, times: int = 1) -> None:
        if times:
            self[message] += times

    def lines(self) -> list[str]:
        return [message if count == 1 else f"{message} ({count} times)" for message, count in self.items()]


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises DataError that names it."""
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no file {path}: check --data") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error


def read_json(path: Path, kind: type[T]) -> T:
    """A JSON file that holds a list or an object. Raises DataError naming file and line."""
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}): the file is cut off or damaged"
        ) from None
    if not isinstance(data, kind):
        raise DataError(f"{path}: expected a JSON {'list' if kind is list else 'object'}, got {type(data).__name__}")
    return data


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Objects of a file as (place, object): JSON lines, one JSON list, or parquet.

    `place` is "file, line N" of JSON lines, else "file, entry N". Raises DataError naming file and line.
    """
    if path.suffix == ".parquet":
        rows: list[tuple[str, Any]] = _numbered(path, _parquet(path))
    elif (written := read_text(path)).lstrip().startswith("["):
        rows = _numbered(path, read_json(path, list))
    else:
        rows = [
            (f"{path}, line {number}", _json_line(line, f"{path}, line {number}"))
            for number, line in enumerate(written.split("\n"), start=1)
            if line.strip()
        ]
    for place, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def _numbered(path: Path, rows: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(f"{path}, entry {number}", row) for number, row in enumerate(rows)]


def _json_line(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg}): the line is cut off or damaged") from None


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise DataError(f"{path} is a parquet file: pip install pyarrow to read it") from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ArrowInvalid) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with a header, as (place, row). Raises DataError for a missing column or value."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    missing = [name for name in columns if name not in (reader.fieldnames or [])]
    if missing:
        raise DataError(f"{path}, line 1: no column {missing[0]!r}; expected {', '.join(columns)}")
    rows = []
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if any(row[name] is None for name in columns):
                raise DataError(f"{place}: the row is cut off")
            rows.append((place, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def value(row: Mapping[str, Any], key: str, place: str, kind: type[T] | tuple[type[T], ...]) -> T:
    """`row[key]` of a given type. Raises DataError naming the place."""
    if key not in row:
        raise DataError(f"{place}: no {key!r}; it has {', '.join(map(str, row)) or 'nothing'}")
    if not isinstance(row[key], kind) or isinstance(row[key], bool):
        raise DataError(f"{place}: {key!r} is {row[key]!r}")
    return row[key]


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
        raise DataError(f"{place}: unknown label {written!r}; it takes {' or '.join(names)}")
    return names[key]


def unique(keys: Iterable[tuple[str, Any]], what: str) -> None:
    """Raises DataError where a key comes twice; `keys` are (place, key)."""
    seen: dict[Any, str] = {}
    for place, key in keys:
        if key in seen:
            raise DataError(f"{place}: {what} {key!r} was already given at {seen[key]}")
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
    found = {name: next((f / name for f in folders if (f / name).is_file()), None) for name in known}
    lost = [name for name in known if found[name] is None]
    if lost and missing is None:
        looked = ", ".join(map(str, folders))
        raise DataError(
            f"{len(lost)} of {len(known)} images are missing, first {lost[0]}: looked in {looked}; replies that exist "
            "(--answers) need none"
        )
    if missing is not None:
        missing.add("a picture is not on disk, which scoring replies that exist does not need", len(lost))
    return {name: path or folders[0] / name for name, path in found.items()}


def first_file(places: Sequence[Path]) -> Path:
    """The first of the files that is there. Raises DataError naming them."""
    found = next((path for path in places if path.is_file()), None)
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
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


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
        raise DataError(f"{path}: {len(lost)} of {len(known)} questions have no answer, first {lost[0]!r}")
    return (found[identity] for identity in known)
