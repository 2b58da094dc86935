"""The tables of the language-model evaluation, for a terminal and as Markdown, from the same cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import copies, instructions

if TYPE_CHECKING:
    from rich.table import Table

Entry = Mapping[str, Any]

NOTE = (
    "Percent of the items, with 95 % bootstrap intervals; the difference is paired, p is McNemar's exact test against plain "
    "and not corrected for the number of runs. time: median over batches of the seconds over those of plain. A dash: the "
    "run was not asked (its passage, CAD's context for one, does not stand in these prompts)."
)


@dataclass(frozen=True)
class Part:
    """One table: the scores of one group of a set, as score -> heading, the first of them compared with plain.

    `faith`: the first score asks for faith in a context. `forms`: groups that get a table of their own, with
    the scores that it shows of each.
    """

    title: str
    questions: str
    group: str
    scores: dict[str, str]
    meaning: str
    faith: bool = True
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def first(self) -> str:
        return next(iter(self.scores))


PARTS = (
    Part(
        "Knowledge conflicts, all",
        "conflicts",
        "all",
        {"context": "context", "memory": "memory", "neither": "neither", "mentioned": "mentioned"},
        "The context states a substituted answer. context, memory: the reply begins with the substituted or the true answer "
        "(exact match of normalised words); mentioned: its first sentence names the substituted one first.",
    ),
    Part(
        "Knowledge conflicts, facts that plain answers closed-book",
        "conflicts",
        "known",
        {"context": "context", "memory": "memory", "neither": "neither", "mentioned": "mentioned"},
        "The same replies, of those facts only.",
    ),
    Part(
        "Copies",
        "copies",
        "all",
        {"exact": "exact", "memory": "memory"},
        "exact: the reply begins with the wanted text; memory: with the usual one (proverbs and lists).",
        forms={form: ("exact", "memory") if form in copies.KNOWN else ("exact",) for form in copies.FORMS},
    ),
    Part(
        "Multiple choice with a context that states a substituted answer",
        "choices with context",
        "all",
        {"accuracy": "accuracy", "normalised": "per token", "memory": "memory"},
        "accuracy: the context's answer has the highest log-probability of four (per token: divided by its tokens); memory: "
        "the true answer has.",
    ),
    Part(
        "Multiple choice, closed-book",
        "choices closed-book",
        "all",
        {"accuracy": "accuracy", "normalised": "per token"},
        "The same without a context; the true answer is right.",
        faith=False,
    ),
    Part(
        "Instructions",
        "instructions",
        "all",
        {"followed": "followed", "right": "right", "both": "both"},
        "A fact is asked under an instruction on the form of the reply. followed: the reply keeps to the form; right: it "
        "names the true answer.",
        faith=False,
        forms=dict.fromkeys(instructions.FORMS, ("followed", "right")),
    ),
    Part(
        "False premises, completed",
        "premises",
        "all",
        {"true": "true", "false": "false", "neither": "neither"},
        "The question takes a false object for granted; the reply, whose beginning is given, goes on with the true object, "
        "the false one, or neither.",
        faith=False,
    ),
    Part(
        "False premises, completed, facts that plain answers closed-book",
        "premises",
        "known",
        {"true": "true", "false": "false", "neither": "neither"},
        "The same replies, of those facts only.",
        faith=False,
    ),
    Part(
        "False premises, answered freely",
        "premises open",
        "all",
        {"corrects": "corrects", "affirms": "affirms", "neither": "neither", "true": "true"},
        "corrects: the reply names the true object or denies something (told by words alone); affirms: it names the false one "
        "and does not correct; true: it names the true object.",
        faith=False,
    ),
)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """The result for a terminal."""
    from rich import box
    from rich.table import Table

    shown = []
    for title, columns, rows, meaning in _sections(result):
        table = Table(title=title, caption=meaning, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        shown.append(table)
    shown[-1].caption = f"{shown[-1].caption} {NOTE}"
    return shown


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    return f"# A language model on {', '.join(result['runs'][0]['scores'])}\n\n{body(result)}\n"


def body(result: Mapping[str, Any]) -> str:
    """What a page says below its title: what was measured, the tables, the configurations, the command."""
    lines = [f"{result['model']}, split `{result['split']}`, greedy, batches of {result['batch']}. {NOTE}"]
    for title, columns, rows, meaning in _sections(result):
        lines += ["", f"## {title}", "", meaning, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", "## Configurations", ""]
    lines += [f"- {entry['name']}: `{entry['config']}`" for entry in result["runs"][1:]]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    hashes = ", ".join(f"{name} {value[:12]}" for name, value in result["hashes"].items())
    lines += ["", f"Made by `{result['command']}` with {versions}. SHA-256: {hashes}."]
    return "\n".join(lines)


def _sections(result: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]], str]]:
    runs = result["runs"]
    if faith(runs[0]) is not None:
        yield _summary(runs)
    for part in PARTS:
        if part.questions not in runs[0]["scores"]:  # `--sets` left it out
            continue
        number = runs[0]["scores"][part.questions][part.group]["n"]
        columns = ["run", *part.scores.values(), f"{part.scores[part.first]} minus plain", "p", "time"]
        yield f"{part.title} (n = {number})", columns, [_row(entry, part) for entry in runs], part.meaning
        if part.forms:
            yield _forms(runs, part)


def _summary(runs: list[Entry]) -> tuple[str, list[str], list[list[str]], str]:
    """The first score of each set, and the mean of those that ask for faith in a context."""
    asked = runs[0]["scores"]
    parts = [part for part in PARTS if part.group == "all" and part.questions in asked]
    columns = ["run", *(part.questions for part in parts), "mean of the first three", "time"]
    rows = []
    for entry in runs:
        found = [entry["scores"].get(part.questions) for part in parts]
        values = [None if one is None else one["all"][part.first] for one, part in zip(found, parts, strict=True)]
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in [*values, faith(entry)]]
        times = sorted(entry["time_ratio"].values())
        rows.append([entry["name"], *cells, f"{times[0]:.1f} to {times[-1]:.1f}"])
    return "Summary", columns, rows, "The first score of each table below. time: over the sets."


def faith(entry: Entry) -> float | None:
    """What settings are chosen by: the mean of the first scores that ask for faith in a context; None: not all asked."""
    parts = [part for part in PARTS if part.group == "all" and part.faith]
    if any(part.questions not in entry["scores"] for part in parts):
        return None
    return sum(entry["scores"][part.questions]["all"][part.first] for part in parts) / len(parts)


def _row(entry: Entry, part: Part) -> list[str]:
    if part.questions not in entry["scores"]:
        return [entry["name"], *["–"] * (len(part.scores) + 3)]
    scores, between = (entry[key][part.questions][part.group] for key in ("scores", "intervals"))
    cells = [f"{100 * scores[key]:.1f} ({_span(between[key], '.0f')})" for key in part.scores]
    change = entry["differences"][part.questions][part.group][part.first]
    difference = f"{100 * change['value']:+.1f} ({_span(change['interval'], '+.1f')})"
    compared = ["", ""] if entry["name"] == "plain" else [difference, f"{change['p']:.3f}"]
    return [entry["name"], *cells, *compared, f"{entry['time_ratio'][part.questions]:.2f}"]


def _forms(runs: list[Entry], part: Part) -> tuple[str, list[str], list[list[str]], str]:
    """A set form by form."""
    asked = [
        entry["scores"][part.questions] | {"run": entry["name"]} for entry in runs if part.questions in entry["scores"]
    ]
    columns = ["run", *(f"{form} (n = {asked[0][form]['n']})" for form in part.forms)]
    rows = []
    for groups in asked:
        cells = (
            " / ".join(f"{100 * groups[form][score]:.0f}" for score in shown) for form, shown in part.forms.items()
        )
        rows.append([groups["run"], *cells])
    most = max(part.forms.values(), key=len)
    return f"{part.title} by form", columns, rows, f"{' / '.join(most)}, without intervals: the forms are small."


def _span(between: tuple[float, float], form: str) -> str:
    return " to ".join(format(100 * end, form) for end in between)
