"""Writing results, in one step and by one process at a time, and saying where a result comes from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from .documents import read_yaml, shipped_yaml
from .errors import DISTRIBUTION, ConfigError, SightlineError, shortened, shown

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write, which takes the place of `path` in one step at the end of the block, if it ends well.

    A link is written through, and what is no regular file, such as a device or a pipe, is written into. A file that is
    there keeps its mode and owner; a new one gets what the umask leaves. Missing folders are made, and go again where
    the block fails.

    Raises:
        SightlineError: the folder cannot be made or written, or the disk is full.
    """
    made: list[Path] = []
    new: Path | None = None
    try:
        status = _status(path)
        direct = (status is not None and not stat.S_ISREG(status.st_mode)) or str(path).startswith(("/dev/", "/proc/"))
        if direct:
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch) / "new"
                with open(Path(scratch) / "new", "rb") as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target)
            return
        _check_mode(path, status)
        target_path = Path(os.path.realpath(path))
        made = make_folder(target_path.parent)
        new = target_path.with_name(f".{target_path.name[:80]}.{secrets.token_hex(6)}")
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # the system applies the umask
        yield new
        if status is not None:
            with suppress(PermissionError):  # only root gives a file back to its owner
                os.chown(new, status.st_uid, status.st_gid)
            os.chmod(new, stat.S_IMODE(status.st_mode))
        os.replace(new, target_path)
    except BaseException as error:
        if new is not None:
            with suppress(OSError):
                new.unlink(missing_ok=True)
        unmake(made)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise unwritable(path, error) from error
        raise


def _status(path: Path) -> os.stat_result | None:
    """What is there, behind links; None: nothing yet. Raises SightlineError for a name that no file can have."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from None


def _check_mode(path: Path, status: os.stat_result | None) -> None:
    """A file that is write-protected stays as it is, though its folder would let us replace it."""
    if status is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def unwritable(path: Path, error: Exception) -> SightlineError:
    """The error for a file that cannot be written."""
    mend = "make room, or choose another place" if getattr(error, "errno", None) in FULL else "choose another place"
    reason = getattr(error, "strerror", None) or error
    return SightlineError(f"cannot write {shortened(str(path), 200)}: {reason}; {mend}")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder with all above it; those that were not there, deepest first, for `unmake`."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def unmake(folders: Iterable[Path]) -> None:
    """Take away those of the folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader never sees half of it.

    Raises:
        SightlineError: the folder cannot be made or written.
    """
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")  # half of a character has no UTF-8


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically.

    Raises:
        SightlineError: the folder cannot be made or written.
    """
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")


def check_writable(*files: Path | None, out: Path | None = None) -> None:
    """Fail now rather than after minutes of work, and leave nothing behind.

    Args:
        files: files to be written into folders that are there.
        out: a file to be written into a folder that will be made where it is missing.

    Raises:
        SightlineError: one of them could not be written.
    """
    for path in (*files, out):
        if path is None:
            continue
        status = _status(path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise SightlineError(f"cannot write {path}: it is a folder; give a file name")
        if status is not None and not stat.S_ISREG(status.st_mode):
            continue
        folder = Path(os.path.realpath(path)).parent
        if path is out:
            folder = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
        elif not folder.exists():
            raise SightlineError(f"cannot write {path}: there is no folder {folder}; make it, or choose another place")
        try:
            _check_mode(path, status)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise unwritable(path, error) from error


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name that was read somewhere.

    Raises:
        ConfigError: it would lie elsewhere, or is no name for a file.
    """
    if not name.isprintable() or not name.strip(". ") or set(name) & {"/", "\\"} or len(name.encode()) > 200:
        raise ConfigError(
            f"{shown(name)} is to become the name of a file: choose one without / and \\, and a short one"
        )
    return folder / name


@contextmanager
def locked(lock: Path, what: object, *, seconds: float = 0.0) -> Iterator[None]:
    """Inside, this process is the only one that holds the lock; the lock's file goes with it.

    Args:
        lock: the lock's file; its folder is made where it is missing, and goes again where it stays empty.
        what: what it guards, for the message.
        seconds: how long to wait for another process.

    Raises:
        SightlineError: another process has it, or the file cannot be written.
    """
    import filelock

    made: list[Path] = []
    try:
        made = make_folder(lock.parent)
        held = filelock.FileLock(lock, timeout=seconds)
        held.acquire()
    except filelock.Timeout:
        raise SightlineError(f"{what} is in use by another process: wait for it, or choose another --out") from None
    except OSError as error:
        unmake(made)
        raise unwritable(lock, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone
        held.release()
        unmake(made)


# --- suites ----------------------------------------------------------------------------------------------------------


def read_suite(name: str, path: Path | None = None) -> dict[str, dict[str, Any]]:
    """Named configurations from a YAML file: a mapping of run name -> configuration (`methods`, `calibration`, ...).

    Args:
        name: the shipped suite, a file of `eval/`.
        path: a file to read instead.

    Raises:
        ConfigError: the file is missing or not such a mapping; the message names the file and the entry.
    """
    where = shortened(str(path), 200) if path else f"eval/{name}"
    suite = read_yaml(path) if path else shipped_yaml(name)
    if not isinstance(suite, dict) or not suite:
        raise ConfigError(f"{where}: expected a mapping of run name -> configuration, as in eval/demo.yaml")
    for run, config in suite.items():
        if not isinstance(config, dict):
            raise ConfigError(f"{where}: {shown(run)}: expected a configuration with `methods:`, got {shown(config)}")
        if str(run) == "plain":
            raise ConfigError(f"{where}: the name plain is taken by the model without the plugin; rename that run")
        try:
            inside(Path(), str(run))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return {str(run): config for run, config in suite.items()}


# --- where a result comes from ---------------------------------------------------------------------------------------


def command() -> str:
    """The shell command that is running, as a reader would type it."""
    import shlex

    return shlex.join(["sightline", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("sightline", "torch", "transformers", "numpy", "pillow"):
        try:
            found[name] = metadata.version(DISTRIBUTION if name == "sightline" else name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def config_hash(data: Any) -> str:
    """SHA-256 of a JSON-like value, independent of key order."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def model_hash(model: Any) -> str:
    """SHA-256 over the names, shapes and float32 values of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def images_hash(images: Iterable[Any]) -> str:
    """SHA-256 over the pixels of images, in order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def provenance(hashes: Mapping[str, str]) -> dict[str, Any]:
    """The part of every result that says how to make it again: command, versions, hashes."""
    return {"command": command(), "versions": versions(), "hashes": dict(hashes)}
