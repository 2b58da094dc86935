"""Reading suites, writing results atomically, and saying where a result comes from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, SightlineError

if TYPE_CHECKING:
    pass


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write, which takes the place of `path` in one step at the end of the block, if it ends well.

    Raises:
        SightlineError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)  # mkstemp makes private files; a result is for everybody
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise SightlineError(f"cannot write {path}: {error.strerror}; choose another place") from error


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader never sees half of it.

    Raises:
        SightlineError: the folder cannot be made or written.
    """
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically.

    Raises:
        SightlineError: the folder cannot be made or written.
    """
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")


def check_writable(*paths: Path | None) -> None:
    """Fail now rather than after minutes of work.

    Raises:
        SightlineError: one of the files could not be written.
    """
    for path in paths:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise SightlineError(f"cannot write {path}: {error.strerror}; choose another place") from error
        if path.is_dir():
            raise SightlineError(f"cannot write {path}: it is a folder; give a file name")


def read_suite(name: str, path: Path | None = None) -> dict[str, dict[str, Any]]:
    """Named configurations from a YAML file: a mapping of run name -> configuration (`methods`, `calibration`, ...).

    Args:
        name: the shipped suite, a file of `eval/`.
        path: a file to read instead.

    Raises:
        ConfigError: the file is missing or not such a mapping; the message names the file and the entry.
    """
    import yaml

    where = str(path) if path else f"eval/{name}"
    try:
        text = path.read_text("utf-8") if path else (resources.files("sightline.eval") / name).read_text("utf-8")
        suite = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {where}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where} is not YAML: {reason}") from error
    if not isinstance(suite, dict) or not suite:
        raise ConfigError(f"{where}: expected a mapping of run name -> configuration, as in eval/demo.yaml")
    for run, config in suite.items():
        if not isinstance(config, dict):
            raise ConfigError(f"{where}: {run}: expected a configuration with `methods:`, got {config!r}")
        if str(run) == "plain":
            raise ConfigError(f"{where}: the name plain is taken by the model without the plugin; rename that run")
    return {str(run): config for run, config in suite.items()}


def command() -> str:
    """The shell command that is running, as a reader would type it."""
    import shlex

    return shlex.join(["sightline", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("sightline", "torch", "transformers", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
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
