"""Finished samples on a full disk: typed, and what was there before stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from sightline.benchmarks.runner.store import Store
from sightline.common.errors import SightlineError


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store(tmp_path, {"data": "abc"}) as store:
        store.append([{"id": "1", "reply": "yes"}])
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(SightlineError, match=r"rank-0.jsonl: No space left .*make room"):
            store.append([{"id": "2", "reply": "no"}])
    with Store(tmp_path, {"data": "abc"}) as store:
        assert "1" in store.done()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "rank-0.jsonl"]


def test_a_buffer_that_cannot_be_written_is_not_told_twice(tmp_path: Path) -> None:
    """What could not be written on a full disk must not be an untyped error again when the file is closed."""
    with Store(tmp_path, {"data": "abc"}) as store:
        store._file.close()
        store._file = open("/dev/full", "ab")  # noqa: SIM115
        with pytest.raises(SightlineError, match="No space left"):
            store.append([{"id": "1", "reply": "yes"}])
    assert not (tmp_path / ".rank-0.lock").exists()
