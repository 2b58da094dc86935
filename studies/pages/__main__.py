"""`python -m studies.pages` writes what the documentation says of itself; `--check` only compares.

Every table that comes from the registry, from the model types or from a file of results stands between two marks of its
name, every page that is made whole says so; plots lie in `docs/assets/`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sightline.plugin.config import methods

from . import choice, measured, plots, reference, registry, speed, study

ROOT = Path(__file__).parents[2]


def between(text: str, name: str, new: str) -> str:
    """`text` with what stands between the marks of a name replaced. Raises ValueError where a mark is missing."""
    begin, end = f"<!-- {name}: written by make docs -->", f"<!-- {name}: end -->"
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"the page lacks the marks {begin} and {end}")
    return f"{head}{begin}\n{new}\n{end}{tail}"


def made() -> Iterator[tuple[Path, str]]:
    """Every page as it should be.

    Raises:
        ValueError: a method has no page, or a page lacks its marks.
    """
    yield _filled(
        "README.md", choice=choice.table(), support=f"{registry.support_matrix()}\n\n{registry.types_counted()}"
    )
    yield _filled("docs/methods/README.md", methods=registry.method_table())
    for name, method in methods().items():
        yield _filled(f"docs/methods/{name}.md", facts=registry.facts(method))
    results = ROOT / "eval/results"
    for name, tables in measured.tables(results):
        yield _filled(f"eval/results/{name}.md", tables=tables)
    for name, page in measured.pages(results):
        yield results / f"{name}.md", page
    yield _filled("eval/results/speed.md", tables=speed.tables(results))
    runs = results / "study"
    yield _filled("eval/results/study.md", summary=study.summary(runs), tables=study.tables(runs))
    yield _filled("docs/guides/gate.md", thresholds=registry.thresholds())
    yield ROOT / "eval/composition.md", registry.composition_page()
    yield ROOT / "docs/models.md", registry.models_page()
    yield ROOT / "docs/reference/api.md", reference.api()
    yield ROOT / "docs/reference/cli.md", reference.cli()
    for name, drawing in plots.plots(results):
        yield ROOT / "docs/assets" / f"{name}.svg", drawing


def _filled(name: str, **parts: str) -> tuple[Path, str]:
    path = ROOT / name
    if not path.exists():
        raise ValueError(f"{name} is missing: write what it does, what paper and release say, what was measured")
    text = path.read_text(encoding="utf-8")
    for mark, new in parts.items():
        text = between(text, mark, new)
    return path, text


def main() -> int:
    check, stale = "--check" in sys.argv[1:], []
    try:
        for path, text in made():
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(str(path.relative_to(ROOT)))
                if not check:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text, encoding="utf-8")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if check and stale:
        print(f"{', '.join(stale)}: not what the code and the results say: run make docs", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
