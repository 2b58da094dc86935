"""Finished samples on disk, one file for each process: what makes a run resumable and parallel without any talk.

A run's folder holds `manifest.json`, which says what the run is, and `rank-K.jsonl`, to which process K appends each
sample as soon as it is done. A killed process loses at most the line that it was writing; that sample is done again. A
folder is only ever continued by the same run: same data, model, configuration, calibration and settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ...common.documents import parse_json, read_json
from ...common.errors import SightlineError, shortened
from ...common.files import locked, unwritable, write_json
from ...common.readers import Notes

MANIFEST = "manifest.json"
MERGING = 600.0  # seconds to wait for another process that merges
Row = dict[str, Any]


class StoreError(SightlineError):
    """A run's folder belongs to another run, is in use, or is damaged."""


class Store:
    """One run's folder, opened by one process. A context manager: the process holds its file until it leaves.

    Args:
        folder: the run's folder, made if need be.
        identity: what the run is, as a flat JSON object.
        rank: the number of this process.

    Raises:
        StoreError: the folder was made by another run, another process holds the file, or it is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], rank: int = 0):
        self.folder, self.path = folder, folder / f"rank-{rank}.jsonl"
        manifest = folder / MANIFEST
        if not manifest.exists():
            if any(folder.glob("rank-*.jsonl")):
                raise StoreError(
                    f"{folder} holds results without {MANIFEST}, so whose is unknown: choose another --out"
                )
            write_json(manifest, dict(identity))
        _same_run(folder, read_json(manifest, dict, error=StoreError), json.loads(json.dumps(identity)))
        with ExitStack() as held:
            held.enter_context(locked(folder / f".rank-{rank}.lock", self.path))
            try:
                self._file: IO[bytes] = self.path.open("ab")
                whole = sum(len(line) + 1 for _, line in _whole_lines(self.path))
                if whole < self.path.stat().st_size:
                    self._file.truncate(whole)
            except OSError as error:
                raise unwritable(self.path, error) from error
            self._held = held.pop_all()  # until the process leaves

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held, suppress(OSError):  # a full disk was told when a sample was added
            self._file.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Add finished samples, each with its `id`; they are on disk when this returns.

        Raises:
            SightlineError: the disk is full; what was added before stays.
        """
        try:
            self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def done(self, notes: Notes | None = None) -> dict[str, Row]:
        """Finished samples of all processes, by id.

        Raises:
            StoreError: a line is damaged, other than a last one that is cut off: file and line are named.
        """
        return finished(self.folder, notes)


def finished(folder: Path, notes: Notes | None = None) -> dict[str, Row]:
    """What `Store.done` says, without opening the folder's run. Raises StoreError."""
    found: dict[str, Row] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for place, line in _whole_lines(path):
            row = _row(place, line)
            if row["id"] in found and notes is not None:
                notes.add("a sample was done twice: the first reply counts")
            found.setdefault(row["id"], row)
    return found


def _whole_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines that end, as (place, line). What stands behind the last end was cut off in writing."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        yield f"{path}, line {number}", line


def _row(place: str, line: bytes) -> Row:
    try:
        row = parse_json(line.decode(), place)
    except (SightlineError, UnicodeDecodeError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or "reply" not in row:
        raise StoreError(f"{place}: damaged, not a finished sample: delete that line, and the sample is done again")
    return row


def _same_run(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        raise StoreError(
            f"{folder} was made with another {other[0]} ({_short(before.get(other[0]))}, not {_short(now.get(other[0]))})"
            f"{f' and {len(other) - 1} more' if other[1:] else ''}: choose another --out, or delete that folder"
        )


def _short(setting: Any) -> str:
    return shortened(json.dumps(setting), 40)


def one_at_a_time(folder: Path) -> AbstractContextManager[None]:
    """Inside, this process is the only one of an evaluation; others wait."""
    return locked(folder / ".lock", folder, seconds=MERGING)
