"""Writes the README's method table from the registry: `python -m sightline.docs`, or `--check` to only compare."""

from __future__ import annotations

import sys
from pathlib import Path

from .plugin.registry import methods

BEGIN, END = "<!-- methods: written by make docs -->", "<!-- methods: end -->"


def method_table() -> str:
    """Markdown table of every registered method: what it does, its source, cost and needs."""
    lines = ["| method | what it does | source | cost | needs from calibration |", "|---|---|---|---|---|"]
    for name, method in methods().items():
        needs = ", ".join(f"`{section}`" for section in method.needs) or "–"
        lines.append(f"| `{name}` | {method.summary} | {method.source} | {method.cost} | {needs} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """`text` with the table between its marks replaced. Raises ValueError where a mark is missing."""
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"the README lacks the marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{method_table()}\n{END}{tail}"


def main() -> int:
    readme = Path("README.md")
    text = readme.read_text(encoding="utf-8")
    new = updated(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            print("README.md: the method table is not the registry's: run make docs", file=sys.stderr)
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
