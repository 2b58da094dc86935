"""Writes `src/plugin/core/families/known.json` from what a survey saw: `python -m tests.zoo.table SURVEY.json..`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import transformers as tf

from tests.zoo.prove import LISTS

TABLE = Path(__file__).parents[2] / "src" / "plugin" / "core" / "families" / "known.json"


def checkpoint(model_type: str) -> str:
    """The checkpoint that the documentation of a type's configuration names, or of its text part."""
    kind = tf.CONFIG_MAPPING[model_type]
    source = inspect.getsource(inspect.getmodule(kind))  # type: ignore[arg-type]
    before = source[: source.find(f"class {kind.__name__}(")]
    named = re.findall(r'checkpoint="([^"]+)"', before)
    return named[-1] if named else ""


def reason(said: str) -> str:
    """What the proof said, in the words of the table."""
    return re.sub(r"^(refused|plain): (\w+(Error|Exception): )?", "", said)


def main() -> None:
    seen: dict[str, dict[str, str]] = {}
    for path in sys.argv[1:]:
        seen.update(json.loads(Path(path).read_text(encoding="utf-8")))
    types: list[dict[str, Any]] = []
    for kind, reads in (("image", "pictures"), ("text", "text")):
        for name in LISTS[kind][1]:
            results = dict(seen.get(f"{kind}:{name}", {"build": "not tried"}))
            results = {check: reason(said) for check, said in results.items() if check != "seconds"}
            types.append({"name": name, "reads": reads, "checkpoint": checkpoint(name), "results": results})
    table = {"transformers": tf.__version__, "types": types}
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    good = [one for one in types if one["results"].get("attach") == "ok"]
    for reads in ("pictures", "text"):
        print(reads, sum(one["reads"] == reads for one in good), "of", sum(one["reads"] == reads for one in types))


if __name__ == "__main__":
    main()
