"""Writing files: in one step, through links and devices, with the modes that are there, and nothing left by a failure."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sightline.common.errors import ConfigError, SightlineError
from sightline.common.files import check_writable, inside, locked, read_suite, replacing, write_json, write_text


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "r.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert target.read_text() == '{\n "a": 1\n}\n'
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to(tmp_path / "there" / "new.json")
    write_text(dangling, "new")
    assert dangling.is_symlink()
    assert (tmp_path / "there" / "new.json").read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new.json", "r.json"]


def test_devices_and_pipes_are_written_into(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_json(Path("/dev/null"), {"a": 1})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    write_text(Path("/dev/stdout"), "to the reader\n")
    assert capfd.readouterr().out == "to the reader\n"
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_text(fifo, "through")
    assert os.read(reader, 100) == b"through"
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    os.close(reader)


def test_modes_are_kept_and_the_umask_counts(tmp_path: Path) -> None:
    secret, new = tmp_path / "secret", tmp_path / "new"
    secret.write_text("old")
    secret.chmod(0o600)
    write_text(secret, "mine")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = os.umask(0o027)
    try:
        write_text(new, "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def fill(path: Path, error: Exception) -> None:
    with replacing(path) as new:
        new.write_text("half")
        raise error


def test_a_failed_write_leaves_the_old_file_and_no_folder(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    for path in (old, tmp_path / "a" / "b" / "new"):
        for error, kind in ((OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SightlineError), (KeyError(), KeyError)):
            with pytest.raises(kind) as caught:
                fill(path, error)
            assert kind is KeyError or "No space left on device; make room" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert old.read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_write_protected_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(0o444)
    for write in (lambda: write_text(path, "new"), lambda: check_writable(path)):
        with pytest.raises(SightlineError, match="Permission denied"):
            write()
    assert path.read_text() == "old"


def test_checking_makes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "report.html"
    check_writable(tmp_path / "r.json", Path("/dev/null"), None, out=out)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SightlineError, match=r"there is no folder .*/a; make it"):
        check_writable(tmp_path / "a" / "r.json")
    with pytest.raises(SightlineError, match="it is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("\0", "x" * 300, str(tmp_path / "file" / "r.json")):
        for wrong in ({"out": Path(name)}, {}):
            with pytest.raises(SightlineError, match="cannot write"):
                check_writable(*(() if wrong else (Path(name),)), **wrong)
    write_text(out, "x")
    assert out.read_text() == "x"


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", " ", "a\\b", "a\nb", "x" * 300, "a\0"])
def test_names_stay_inside(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name of a file"):
        inside(tmp_path, name)
    suite = tmp_path / "suite.yaml"
    write_json(suite, {name: {"methods": ["vhr"]}})
    with pytest.raises(ConfigError, match=r"suite.yaml"):
        read_suite("demo.yaml", suite)
    assert inside(tmp_path, "vhr+gift 2.0") == tmp_path / "vhr+gift 2.0"


def test_a_suite_names_each_run_once(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("a: {methods: [vhr]}\na: {methods: [var]}")
    with pytest.raises(ConfigError, match=r"line 2.*'a' stands there twice"):
        read_suite("demo.yaml", suite)


HOLD = """
import sys, time
from pathlib import Path
from sightline.common.files import locked
with locked(Path(sys.argv[1]), "the file"):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    first: Any = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "mine\n"
    with pytest.raises(SightlineError, match="out is in use by another process"), locked(lock, "out"):
        pass
    assert lock.exists()
    first.stdin.close()
    assert first.wait() == 0
    with locked(lock, "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_waiting_process_gets_its_turn(tmp_path: Path) -> None:
    import threading

    lock, order = tmp_path / ".lock", list[str]()

    def second() -> None:
        with locked(lock, "out", seconds=20):
            order.append("second")

    with locked(lock, "out"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second"]
    assert not lock.exists()
