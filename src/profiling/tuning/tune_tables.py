"""The trial table and the report of a tuning, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

SCORES = ("chair_s", "chair_i", "equal", "recall", "accuracy", "words", "time")
HEADS = ("CHAIR_S", "CHAIR_I", "at equal recall", "recall", "POPE acc.", "words", "time")
WARNING = "Of the data that was tuned on: a search, no result."


def settings(config: Mapping[str, Any]) -> str:
    """What a configuration sets, on one line."""
    entries = [*(config.get("methods") or ()), *([config["decoder"]] if config.get("decoder") else [])]
    return " ".join(
        f"{name}({', '.join(f'{key}={value}' for key, value in (fields or {}).items())})"
        for entry in entries
        for name, fields in entry.items()
    )


def trial_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for one in result["trials"]:
        verdict = "Pareto" if one["pareto"] else "" if one["kept"] else "breaks a guard"
        verdict = "chosen" if one["best"] else verdict
        yield [one["name"], settings(one["config"]), *(_cell(key, one["values"].get(key)) for key in SCORES), verdict]


def report_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for run in result["report"]["runs"]:
        cells = [run["name"]]
        for key in SCORES:
            low, high = (_cell(key, edge) for edge in run["intervals"].get(key, (None, None)))
            cells.append(f"{_cell(key, run['values'][key])} ({low}–{high})" if low else "")
        if "differences" in run:
            found = run["differences"][result["objective"]]
            low, high = (f"{100 * edge:+.1f}" for edge in found["interval"])
            cells.append(f"{100 * found['value']:+.1f} ({low} to {high})")
        else:
            cells.append("")
        yield cells


def terminal(result: Mapping[str, Any]) -> list[RenderableType]:
    """Tables for a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(title="Trials", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
    for column in ("trial", "settings", *HEADS, ""):
        table.add_column(column, justify="left" if column in ("trial", "settings", "") else "right", overflow="fold")
    for row, one in zip(trial_rows(result), result["trials"], strict=True):
        table.add_row(*row, style="bold green" if one["best"] else "" if one["kept"] else "dim")
    table.caption = f"{WARNING} {_aim(result)}."
    parts: list[RenderableType] = [table]
    without = [name for name, config in result["chosen"].items() if config is None]
    if without:
        parts.append(f"nothing is chosen for {', '.join(without)}: no setting keeps the guards and beats plain")
    if result["report"] is None:
        return parts
    report = Table(title="On other pictures", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("run", *HEADS, f"{result['objective']} minus plain, points"):
        report.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for row in report_rows(result):
        report.add_row(*row)
    return [*parts, report]


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    return f"# Tuning\n\n{body(result)}\n"


def body(result: Mapping[str, Any]) -> str:
    """What a page says below its title: both tables, and the command and versions below."""
    lines = [
        f"{WARNING} {result['examples']} pictures, seed {result['seed']}. {_aim(result)} (points against plain; words in "
        "percent).",
        "",
        *_table(("trial", "settings", *HEADS, ""), trial_rows(result)),
        "",
    ]
    if result["report"] is not None:
        head = ("run", *HEADS, f"{result['objective']} minus plain, points")
        lines += [
            f"## On {result['report']['examples']} other pictures, 95 % intervals",
            "",
            *_table(head, report_rows(result)),
            "",
        ]
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, f"Made by `{result['command']}` with {made}."])


def _aim(result: Mapping[str, Any]) -> str:
    """What was searched for."""
    held = f"guards: {', '.join(result['keep'])}"
    if result["apart"]:
        return f"Objective: {result['objective']}; {held}"
    return (
        "Methods and decoder together, for CHAIR_I at equal recall, recall and time: Pareto, that no other one is as good in "
        f"all three; chosen, of these the lowest at equal recall; {held}"
    )


def _table(head: tuple[str, ...], rows: Iterator[list[str]]) -> list[str]:
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]


def _cell(score: str, value: float | None) -> str:
    if value is None:
        return ""
    if score == "equal":
        return f"{100 * value:+.1f}"
    return f"{value:.1f}" if score == "words" else f"{value:.2f}" if score == "time" else f"{100 * value:.1f}"
