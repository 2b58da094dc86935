"""Files that are nearly right: valid data with a few places changed, as text with a few characters changed."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD = (
    *(None, True, False, 0, -1, 10**18, 2**64, 10**400, 0.5, 1e308, float("inf"), float("nan"), "", " ", "yes"),
    *(
        "\0",
        "../../x",
        "\ud800",
        "x" * 3000,
        "2001-13-45",
        "auto",
        "id",
        "1",
        [],
        [None],
        [5],
        [[1, 2], [3]],
        {},
        {"": ""},
    ),
    *({"from": 1, "to": 0}, {"from": "a", "to": None}, [1, 2, 3], {"id": 1, "name": None}, 5.0, "embedded"),
)
TEXTS = (
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    "\n",
    "\t",
    ": ",
    "- ",
    "&a ",
    "*a",
    "!!bool ",
    "? ",
    "\0",
    "é",
    "\u2028",
    "9" * 5000,
)


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """Valid data with one to three places replaced, taken out, or doubled."""
    data = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        data = _changed(draw, data)
    return data


def _changed(draw: st.DrawFn, data: Any) -> Any:
    if isinstance(data, (dict, list)) and data and draw(st.integers(0, 5)):  # further inside, mostly
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = draw(st.sampled_from(keys))
        action = draw(st.sampled_from(("inside", "inside", "inside", "out", "twice", "key")))
        if action == "out":
            del data[key]
        elif action == "twice" and isinstance(data, list):
            data.append(copy.deepcopy(data[key]))
        elif action == "key" and isinstance(data, dict):
            data[draw(st.sampled_from(("id", "x", "", "truth", "1", *map(str, keys))))] = data.pop(key)
        else:
            data[key] = _changed(draw, data[key])
        return data
    return copy.deepcopy(draw(st.sampled_from(ODD)))


@st.composite
def torn(draw: st.DrawFn, text: str) -> str:
    """A text with up to three pieces replaced."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 5)))
        text = text[:start] + draw(st.sampled_from(TEXTS) | st.text(max_size=3)) + text[stop:]
    return text


@st.composite
def documents(draw: st.DrawFn, valid: Any) -> str:
    """JSON (which is YAML) that is nearly the valid data."""
    data = draw(changed(valid))
    return draw(torn(json.dumps(data, ensure_ascii=draw(st.booleans())))) if draw(st.booleans()) else json.dumps(data)


@st.composite
def rows(draw: st.DrawFn, valid: list[Any]) -> str:
    """JSON lines that are nearly the valid rows."""
    data = draw(changed(valid))
    lines = data if isinstance(data, list) else [data]
    return draw(torn("\n".join(json.dumps(line) for line in lines)))


def write(path: Any, text: str) -> None:
    """A file with that text; half characters become what no UTF-8 file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
