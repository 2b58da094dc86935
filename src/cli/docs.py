"""Writes what the registry knows into the documentation.

The README's tables, `eval/composition.md`, `docs/models.md`, and the facts and settings on each page of `docs/methods/`.
`python -m sightline.cli.docs` writes, `--check` only compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..plugin.branches.decoder import DECODERS
from ..plugin.composition import exclusion, order_matters
from ..plugin.config import methods
from ..plugin.core.families.known import CHECKS, known_types, tried
from ..plugin.core.method import Registered
from ..plugin.core.registry import METHODS

BEGIN, END = "<!-- methods: written by make docs -->", "<!-- methods: end -->"
FACTS = "<!-- facts: written by make docs -->", "<!-- facts: end -->"
TYPES = "<!-- models: written by make docs -->", "<!-- models: end -->"
README, COMPOSITION, PAGES = Path("README.md"), Path("eval/composition.md"), Path("docs/methods")
MODELS = Path("docs/models.md")


def method_table() -> str:
    """Markdown table of every registered method: what it does, its source, cost and needs."""
    lines = ["| method | what it does | source | cost | needs from calibration |", "|---|---|---|---|---|"]
    for name, method in methods().items():
        needs = ", ".join(f"`{section}`" for section in method.needs) or "–"
        lines.append(f"| `{name}` | {method.summary} | {method.source} | {method.cost} | {needs} |")
    return "\n".join(lines)


def updated(text: str, new: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with what stands between its marks replaced. Raises ValueError where a mark is missing."""
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"the page lacks the marks {begin} and {end}")
    return f"{head}{begin}\n{new}\n{end}{tail}"


def facts(method: type[Registered]) -> str:
    """Markdown: what a method is, where it comes from, what it costs and needs, and its settings."""
    needs = ", ".join(f"`{section}`" for section in method.needs) or "nothing"
    lines = [
        f"{method.kind.capitalize()} `{method.name}`: {method.summary}.",
        "",
        f"- Source: {method.source}",
        f"- Cost: {method.cost}",
        f"- Needs from the calibration: {needs}",
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in method.config.model_fields.items():
        default = "required" if field.is_required() else f"`{'null' if field.default is None else field.default}`"
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {default} | {meaning} |")
    return "\n".join(lines)


def types_counted() -> str:
    """How many model types work, in one sentence."""
    parts = []
    for reads, called in (("pictures", "image-text"), ("text", "text")):
        of = [one for one in known_types() if one.reads == reads]
        parts.append(f"{sum(one.works for one in of)} of the {len(of)} {called} types")
    return f"**{parts[0]} and {parts[1]} of transformers {tried()['transformers']} work** ([docs/models.md](docs/models.md))."


def models_page() -> str:
    """Markdown page: every model type that was tried, what works on it, and what is refused and why."""
    lines = [
        "# Model types",
        "",
        "Written by `make docs` from `src/plugin/core/families/known.json`, which `python -m tests.zoo.survey` and `python -m tests.zoo.table` make:"
        " each type of `AutoModelForImageTextToText` and `AutoModelForCausalLM`, shrunk to a tiny random model, against plain eager"
        " runs. `sightline models NAME` prints a type's lines, `sightline check MODEL` looks at a checkpoint of yours.",
        "",
        types_counted().replace("](docs/models.md)", "](models.md)"),
        "",
        "**all** means: " + ", ".join(CHECKS.values()) + ".",
    ]
    for reads, title in (("pictures", "Types that read pictures"), ("text", "Types that read text")):
        chosen = [one for one in known_types() if one.reads == reads]
        lines += [
            "",
            f"## {title}",
            "",
            "| type | a checkpoint | works | what does not, and why |",
            "|---|---|---|---|",
        ]
        for one in sorted(chosen, key=lambda one: (not one.works, one.name)):
            works = "no" if not one.works else "all" if not one.refused else f"all but {len(one.refused)}"
            whys = "; ".join(f"{CHECKS.get(name, name)}: {reason}" for name, reason in one.refused.items())
            lines.append(f"| `{one.name}` | {one.checkpoint} | {works} | {whys.replace('|', ' ')} |")
    return "\n".join([*lines, ""])


def composition_page() -> str:
    """Markdown page: which methods compose in which order, and what a decoder's copy sees of them."""
    known, decoders = METHODS.known(), DECODERS.known()
    notes: list[str] = []

    def cell(first: str, second: str) -> str:
        if first == second:
            return "–"
        reason = exclusion(known[first], known[second])
        if reason is not None:
            note = f"`{min(first, second)}`, `{max(first, second)}`: {reason}."
            if note not in notes:
                notes.append(note)
            return "**no**"
        return "order" if order_matters(known[first], known[second]) else "either"

    rows = [
        f"| `{name}` | {known[name].acts} | " + " | ".join(cell(name, other) for other in known) + " |"
        for name in known
    ]
    refused = [
        f"`{name}`, `{other}`: {reason}."
        for name, decoder in decoders.items()
        for other, method in known.items()
        if (reason := exclusion(decoder, method)) is not None
    ]
    carried = ", ".join(f"`{name}`" for name, decoder in decoders.items() if not decoder.own_prompt)
    own = ", ".join(f"`{name}`" for name, decoder in decoders.items() if decoder.own_prompt)
    return "\n".join(
        [
            "# What composes with what",
            "",
            "Written by `make docs` from the methods' own declarations, which `tests/test_composition.py` holds against"
            " what tiny models compute.",
            "",
            "A method acts on the queries, on the logits, on the weights behind the softmax, or on the head outputs, and a"
            " layer works in that order. **either**: both orders in the list give the same result. **order**: the later one"
            " works on what the earlier one left. **no**: refused when the configuration is read.",
            "",
            "| method | acts on | " + " | ".join(f"`{name}`" for name in known) + " |",
            "|---" * (len(known) + 2) + "|",
            *rows,
            "",
            *(f"- {note}" for note in notes),
            "",
            "Every method goes with every decoder" + (", but for these:" if refused else "."),
            "",
            *(f"- {note}" for note in refused),
            *([""] if refused else []),
            f"Under {carried} whatever the decoder compares carries the methods' edits. The copy of {own} reads a prompt of"
            " its own and runs without them, because they speak of the model's tokens.",
            "",
        ]
    )


def main() -> int:
    readme = README.read_text(encoding="utf-8")
    written = [
        (README, readme, updated(updated(readme, method_table()), types_counted(), *TYPES)),
        (COMPOSITION, COMPOSITION.read_text(encoding="utf-8") if COMPOSITION.exists() else "", composition_page()),
        (MODELS, MODELS.read_text(encoding="utf-8") if MODELS.exists() else "", models_page()),
    ]
    for name, method in methods().items():
        path = PAGES / f"{name}.md"
        if not path.exists():
            print(
                f"{path} is missing: what {name} does, what paper and release say, what was measured", file=sys.stderr
            )
            return 1
        page = path.read_text(encoding="utf-8")
        written.append((path, page, updated(page, facts(method), *FACTS)))
    stale = []
    for path, old, new in written:
        if new != old:
            stale.append(path)
            if "--check" not in sys.argv[1:]:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        print(f"{', '.join(map(str, stale))}: not what the registry says: run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
