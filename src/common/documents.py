"""Files of text into data: YAML, JSON, JSON lines and CSV, each by one reader.

Whatever is wrong with a file ends in a typed error that names file and place and shows at most a line of it. What the
readers hand on is plain: mappings, lists, text, whole numbers of 64 bits, finite depth, no key twice, nothing that
holds itself.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .errors import ConfigError, DataError, SightlineError, shortened, shown

T = TypeVar("T")
Kind = type[SightlineError]

MOST_YAML = 4 << 20
"""Bytes of a YAML file."""
MOST_DATA = 4 << 30
"""Bytes of any other file."""
MOST_STREAM = 64 << 20
"""Bytes of what is no regular file, such as a pipe, or a device that never ends."""
DEPTH = 64
"""Levels of nesting."""
NODES = 1_000_000
"""Values of a YAML file, those that an alias repeats counted again."""
WHOLE = range(-(2**63), 2**64)
"""Whole numbers."""


# --- text ------------------------------------------------------------------------------------------------------------


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file (or pipe) to read; False, not an error, for a name that no file can have."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_text(path: Path, *, error: Kind = DataError, where: str | None = None, most: int = MOST_DATA) -> str:
    """A UTF-8 file.

    Args:
        path: the file.
        error: the kind of error to raise.
        where: what messages call the file; default: its path.
        most: bytes that it may have.

    Raises:
        SightlineError: of the kind `error`: it cannot be read, is too large, or is no UTF-8 text.
    """
    where = shortened(str(path), 200) if where is None else where
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            most = most if stat.S_ISREG(status.st_mode) else min(most, MOST_STREAM)
            data = file.read(most + 1)
        if len(data) > most:
            raise error(f"{where} has more than {most / 1e6:,.0f} MB: is it the right file?")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise error(f"cannot read {where}: no such file; check the path") from None
    except UnicodeDecodeError:
        raise error(f"cannot read {where}: not UTF-8 text; check the path") from None
    except (OSError, ValueError) as caught:  # ValueError: a name with a NUL in it
        raise error(f"cannot read {where}: {_reason(caught)}; check the path") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


# --- YAML ------------------------------------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_PLAIN = (*(f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")), None)


class _Loader(yaml.SafeLoader):
    """The safe loader for plain data: no dates or bytes, no key twice, and limits on depth and on what aliases repeat.

    Every node is checked while the tree is composed, before anything is built from it.
    """

    twice_allowed = False

    def __init__(self, text: str):
        super().__init__(text)
        self._open = [0]  # values inside each node that is being composed
        self._sizes: dict[int, int] = {}  # values of each finished node

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        repeated = self.check_event(yaml.AliasEvent)
        if len(self._open) > DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEPTH} levels", mark)
        self._open.append(1)
        node = super().compose_node(parent, index)
        size = self._open.pop()
        if repeated and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "a value that holds itself", mark)
        size = self._sizes[id(node)] if repeated else size
        self._sizes[id(node)] = size
        self._open[-1] += size
        if self._open[-1] > NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {NODES:,} values, with what aliases repeat", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge" and not self.twice_allowed:
                found = self.construct_object(key)
                if found in seen or str(found) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"key {shown(found)} stands there twice", key.start_mark
                    )
                seen |= {found, str(found)}
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # What Python raises for a value that is not of its tag: `!!bool maybe`, a number of 5,000 digits.
            raise yaml.constructor.ConstructorError(
                None, None, f"no {str(node.tag).removeprefix(_TAG)}: {shown(node.value)}", node.start_mark
            ) from None

    def whole(self, node: Any) -> int:
        """A whole number of 64 bits."""
        number = int(self.construct_yaml_int(node))
        if number not in WHOLE:
            raise yaml.constructor.ConstructorError(None, None, "a whole number beyond 64 bits", node.start_mark)
        return number


class _ForeignLoader(_Loader):
    """For the files of other tools: unknown tags are None, and of a key that stands there twice the last one counts."""

    twice_allowed = True


_Loader.yaml_constructors = {tag: one for tag, one in yaml.SafeLoader.yaml_constructors.items() if tag in _PLAIN}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}int", _Loader.whole)
_ForeignLoader.add_constructor(f"{_TAG}int", _Loader.whole)
_ForeignLoader.add_multi_constructor("!", lambda loader, tag, node: None)


def parse_yaml(text: str, where: str, *, error: Kind = ConfigError, foreign: bool = False) -> Any:
    """YAML as plain data.

    Args:
        text: what is written.
        where: what messages call it.
        error: the kind of error to raise.
        foreign: another tool's file: its tags stand for None, and of a key that comes twice the last one counts.

    Raises:
        SightlineError: of the kind `error`: no YAML, a key that stands there twice, too deep or too large.
    """
    if len(text) > MOST_YAML:
        raise error(f"{where} has more than {MOST_YAML / 1e6:,.0f} MB: is it the right file?")
    try:
        return yaml.load(text, Loader=_ForeignLoader if foreign else _Loader)  # both are SafeLoaders
    except yaml.MarkedYAMLError as caught:
        mark = caught.problem_mark or caught.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise error(
            f"{where} is not valid YAML: {place}{shortened(str(caught.problem or caught.context), 200)}"
        ) from None
    except (yaml.YAMLError, RecursionError) as caught:
        raise error(f"{where} is not valid YAML: {shortened(str(caught), 200)}") from None


def read_yaml(path: Path, *, error: Kind = ConfigError, where: str | None = None, foreign: bool = False) -> Any:
    """A YAML file as plain data; arguments and errors as for `parse_yaml` and `read_text`."""
    where = shortened(str(path), 200) if where is None else where
    return parse_yaml(read_text(path, error=error, where=where, most=MOST_YAML), where, error=error, foreign=foreign)


def shipped_yaml(*names: str) -> Any:
    """A YAML file of the package's `eval/`."""
    return parse_yaml(resources.files("sightline.eval").joinpath(*names).read_text("utf-8"), "/".join(("eval", *names)))


# --- JSON ------------------------------------------------------------------------------------------------------------

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character, which no UTF-8 file can hold


class _Wrong(ValueError):
    """JSON that a parser takes, and we do not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Wrong(f"key {shown(twice)} stands in one object twice")
    return found


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= 20 else WHOLE.stop
    if number not in WHOLE:
        raise _Wrong(f"{shown(digits, 24)}, a whole number beyond 64 bits")
    return number


def _check_plain(data: Any, text: str) -> None:
    """Raises _Wrong where data is nested too deep, or holds text that cannot be written as UTF-8."""
    halves = _HALF.search(text) is not None
    level = [data]
    for _ in range(DEPTH):
        if halves:
            try:
                [one.encode() for one in level if isinstance(one, str)]
                [key.encode() for one in level if isinstance(one, dict) for key in one]
            except UnicodeEncodeError:
                raise _Wrong("half of a character (\\ud800 to \\udfff)") from None
        kinds = (dict, list, str) if halves else (dict, list)
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [one for values in inside for one in values if isinstance(one, kinds)]
        if not level:
            return
    raise _Wrong(f"nested deeper than {DEPTH} levels")


def parse_json(text: str, where: str, *, lines: bool = False, error: Kind = DataError) -> Any:
    """JSON as plain data.

    Args:
        text: what is written.
        where: what messages call it.
        lines: whether it is a whole file, whose lines messages count.
        error: the kind of error to raise.

    Raises:
        SightlineError: of the kind `error`: no JSON, a key that stands in one object twice, too deep, or a number too
            large.
    """
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_int=_whole)
        _check_plain(data, text)
        return data
    except json.JSONDecodeError as caught:
        place = f"{where}, line {caught.lineno}" if lines else where
        raise error(f"{place}: not JSON ({caught.msg}): cut off, or damaged") from None
    except RecursionError:
        raise error(f"{where}: nested deeper than {DEPTH} levels") from None
    except _Wrong as caught:
        raise error(f"{where}: {caught}") from None


def read_json(path: Path, kind: type[T], *, error: Kind = DataError) -> T:
    """A JSON file that holds a list or an object. Raises SightlineError of the kind `error` naming file and line."""
    data = parse_json(read_text(path, error=error), str(path), lines=True, error=error)
    if not isinstance(data, kind):
        raise error(f"{path}: expected a JSON {'list' if kind is list else 'object'}, got {type(data).__name__}")
    return data


def read_rows(path: Path, *, error: Kind = DataError) -> list[tuple[str, dict[str, Any]]]:
    """Objects of a file as (place, object): JSON lines, one JSON list, or parquet.

    `place` is "file, line N" of JSON lines, else "file, entry N". Raises SightlineError of the kind `error`.
    """
    rows: list[tuple[str, Any]]
    if path.suffix == ".parquet":
        rows = [(f"{path}, entry {number}", row) for number, row in enumerate(_parquet(path, error))]
    elif (written := read_text(path, error=error)).lstrip().startswith("["):
        rows = [(f"{path}, entry {number}", row) for number, row in enumerate(read_json(path, list, error=error))]
    else:
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(written.split("\n"), start=1)]
        rows = [(place, parse_json(line, place, error=error)) for place, line in lines if line.strip()]
    for place, row in rows:
        if not isinstance(row, dict):
            raise error(f"{place}: expected a JSON object, got {type(row).__name__}")
    if not rows:
        raise error(f"{path} is empty")
    return rows


def _parquet(path: Path, error: Kind) -> list[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise error(f"{path} is a parquet file: pip install pyarrow to read it") from None
    try:
        return parquet.read_table(path).to_pylist()
    except Exception as caught:  # whatever a damaged file leads its reader to
        raise error(f"cannot read {path}: no parquet file ({type(caught).__name__})") from None


# --- CSV -------------------------------------------------------------------------------------------------------------


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with a header, as (place, row). Raises DataError for a missing column or value."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"{path}, line 1: no column {missing[0]!r}; expected {', '.join(columns)}")
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
