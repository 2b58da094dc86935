"""Reading files: plain data, or one typed line that names file and place and shows at most a line of them."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from sightline.common.documents import (
    DEPTH,
    MOST_YAML,
    parse_json,
    parse_yaml,
    read_json,
    read_rows,
    read_text,
    read_yaml,
)
from sightline.common.errors import LINE, LONGEST, CalibrationError, ConfigError, DataError, SightlineError, shown
from sightline.common.readers import numbers, records, texts, value


def bomb(levels: int = 8) -> str:
    """A few hundred bytes whose aliases repeat ten to the eighth values."""
    names = "abcdefghij"[: levels + 1]
    lines = [f"a: &a [{','.join(['lol'] * 10)}]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise(names)]
    return "\n".join(lines)


WRONG_YAML = {
    "no bool": ("a: 1\nb: !!bool maybe", ("line 2", "bool", "maybe")),
    "no number": ("a: !!float much", ("float", "much")),
    "no int": ("a: !!int ''", ("int",)),
    "a number of 5,000 digits": ("a: " + "9" * 5000, ("line 1", "int")),
    "more than 64 bits": ("a: " + "9" * 30, ("64 bits",)),
    "a time stamp": ("a: !!timestamp 2001-13-45", ("timestamp",)),
    "bytes": ("a: !!binary xx", ("binary",)),
    "deep lists": ("[" * 1000, ("deeper",)),
    "deep mappings": ("\n".join(f"{' ' * n}a:" for n in range(200)), ("deeper",)),
    "a NUL": ("a: \0", ("#x0000",)),
    "a key twice": ("a: 1\nb: 2\na: 3", ("line 3", "'a'", "twice")),
    "a key twice, inside": ("x: [{a: 1, a: 2}]", ("'a'", "twice")),
    "a number and its text": ("1: a\n'1': b", ("twice",)),
    "equal numbers": ("1: a\n1.0: b", ("twice",)),
    "a list as key": ("? [1, 2]\n: 3", ("key",)),
    "something that holds itself": ("&a [*a]", ("itself",)),
    "a mapping that holds itself": ("a: &a {b: *a}", ("itself",)),
    "aliases of aliases": (bomb(), ("values",)),
    "a python object": ("a: !!python/object/apply:os.system [ls]", ("python/object",)),
    "a merge of nothing": ("<<: 5", ("merg",)),
    "two documents": ("a: 1\n---\nb: 2", ("document",)),
    "no end": ("a: {b", ("line 1",)),
}


@pytest.mark.parametrize("name", list(WRONG_YAML))
def test_wrong_yaml(name: str, tmp_path: Path) -> None:
    text, words = WRONG_YAML[name]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    for kind in (ConfigError, DataError, CalibrationError):
        with pytest.raises(kind) as caught:
            read_yaml(path, error=kind)
        message = str(caught.value)
        assert [word for word in (str(path), *words) if word not in message] == []
        assert len(message) < len(str(path)) + 300
        assert "\n" not in message


def test_yaml_that_is_right() -> None:
    assert parse_yaml("a: 2001-01-02\nb: =", "x") == {"a": "2001-01-02", "b": "="}
    merged = parse_yaml("base: &b {x: 1, y: 2}\nc: {<<: *b, x: 3}\nd: {inner: &A {<<: *b, x: 4}, <<: *A}", "x")
    assert merged["c"] == {"x": 3, "y": 2}
    assert merged["d"] == {"inner": {"x": 4, "y": 2}, "x": 4, "y": 2}
    assert parse_yaml("[" * (DEPTH - 1) + "]" * (DEPTH - 1), "x")
    assert parse_yaml("a: !function x.y\nb: 1\nb: 2", "x", foreign=True) == {"a": None, "b": 2}


def test_duplicate_keys_are_found_in_linear_time() -> None:
    """The quadratic check took 13 seconds for 10,000 keys, six times as long as reading them."""
    text = "\n".join(f"key{n}: {n}" for n in range(6000))
    started = time.process_time()
    yaml.safe_load(text)
    plain = time.process_time() - started
    assert len(parse_yaml(text, "x")) == 6000
    assert time.process_time() - started - plain < 4 * plain


WRONG_JSON = {
    "deep lists": ("[" * 100_000, ("deeper",)),
    "just too deep": ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), ("deeper",)),
    "a number of 5,000 digits": ('{"a": ' + "9" * 5000 + "}", ("64 bits",)),
    "more than 64 bits": ('{"a": -' + "9" * 20 + "}", ("64 bits",)),
    "a key twice": ('{"label": "yes", "id": 1, "label": "no"}', ("'label'", "twice")),
    "half a character": ('{"a": ["\\ud800"]}', ("half",)),
    "half a character as key": ('{"\\udfff": 1}', ("half",)),
    "cut off": ('{"a": [1,', ("line 1", "not JSON")),
}


@pytest.mark.parametrize("name", list(WRONG_JSON))
@pytest.mark.parametrize("lines", [False, True])
def test_wrong_json(name: str, lines: bool, tmp_path: Path) -> None:
    text, words = WRONG_JSON[name]
    path = tmp_path / ("x.jsonl" if lines else "x.json")
    path.write_text(f'{{"a": 1}}\n{text}\n' if lines and text.startswith("{") else text)
    with pytest.raises(DataError) as caught:
        read_rows(path) if lines else read_json(path, dict)
    message = str(caught.value)
    assert [word for word in (path.name, *words) if word not in message.replace("line 2", "line 1")] == []
    assert len(message) < len(str(path)) + 200
    if lines and text.startswith("{"):
        assert "line 2" in message


def test_json_that_is_right(tmp_path: Path) -> None:
    text = '{"a": "\\ud83d\\ude00", "b": [1.5, -9223372036854775808], "c": null}'
    assert parse_json(text, "x") == {"a": "😀", "b": [1.5, -(2**63)], "c": None}
    (tmp_path / "x.json").write_text('\ufeff[{"a": 1}]', encoding="utf-8")
    assert read_rows(tmp_path / "x.json") == [(f"{tmp_path / 'x.json'}, entry 0", {"a": 1})]


@pytest.mark.parametrize("row", ["[null]", "5", "[[1]]", '["a"]', '{"a": 1}\n7'])
def test_rows_are_objects(row: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"x.jsonl.*expected a JSON object"):
        read_rows(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "no/such/file", ".", "x" * 300 + "/y"])
def test_names_that_no_file_has(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for reader in (read_text, read_yaml, read_rows):
        with pytest.raises(SightlineError) as caught:
            reader(Path(name))
        assert len(str(caught.value)) < 400


def test_files_without_end(tmp_path: Path) -> None:
    for endless in (read_yaml, lambda path: read_json(path, dict)):
        with pytest.raises(SightlineError, match="more than"):
            endless(Path("/dev/zero"))
    big = tmp_path / "big.yaml"
    with big.open("wb") as file:
        file.truncate(MOST_YAML + 1)
    with pytest.raises(ConfigError, match="more than 4 MB"):
        read_yaml(big)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"a: 1\n")
    os.close(write)
    assert read_yaml(Path(f"/dev/fd/{read}")) == {"a": 1}
    os.close(read)


def test_a_message_never_echoes_its_input() -> None:
    deep: Any = "x"
    for _ in range(1000):
        deep = [deep]
    for large in (
        "x" * 10**6,
        list(range(10**6)),
        {str(n): n for n in range(10**5)},
        [["y" * 1000] * 1000],
        deep,
        10**5000,
    ):
        assert len(shown(large)) <= LINE
    assert shown("short") == "'short'"
    assert len(str(SightlineError("x" * 10**6 + "\n the end"))) <= LONGEST
    assert str(SightlineError("a\n  b")) == "a b"
    assert str(SightlineError("x" * 10**6 + " the end")).endswith(" the end")


def test_rows_of_the_wrong_type() -> None:
    with pytest.raises(DataError, match=r"f, image 1: expected a JSON object, got None"):
        records([{}, None], "f", "image")
    for box in ([1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, True], [1, 2, 3, float("inf")], None, "1234"):
        with pytest.raises(DataError, match="place: 'bbox' is"):
            numbers({"bbox": box}, "bbox", "place", 4)
    for words in (["a", 5], ["a", " "], "a"):
        with pytest.raises(DataError, match="place: 'truth' is"):
            texts({"truth": words}, "truth", "place")
    with pytest.raises(DataError) as caught:
        value({"a": "x" * 10**6}, "a", "place", int)
    assert len(str(caught.value)) < 200
