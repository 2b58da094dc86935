"""The study of heads as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

THRESHOLD = 0.1  # of a retrieval head


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    scores, settings, test = np.array(result["scores"]), result["settings"], result["settings"]["masking"]
    order = np.argsort(-scores, axis=None, kind="stable")[:20]
    best = [(*divmod(int(i), scores.shape[1]), scores.flat[i]) for i in order]
    passed, total = (sum(run[key] for run in result["runs"]) for key in ("passed", "runs"))
    count = int((scores >= THRESHOLD).sum())
    names = {"seeds": "two seeds of the filler", "lengths": "two lengths", "needles": "two halves of the needles"}
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"# Heads of {result['model']}",
        "",
        f"`{result['command']}` ({versions})",
        "",
        "## Retrieval heads",
        "",
        f"{len(settings['seeds'])} seeds of generated filler, prompts of {_listed(settings['lengths'])} tokens,"
        f" {settings['depths']} depths, {settings['needles']} needles: {passed} of {total} runs passed (the answer"
        " recalls more than half of the needle's words).",
        f"Heads with a score of {THRESHOLD} or more: {count} of {scores.size} ({100 * count / scores.size:.1f} %).",
        "",
        "Top 20 (layer-head score): " + ", ".join(f"{layer}-{head} {value:.3f}" for layer, head, value in best) + ".",
        "",
        "| agreement of | Spearman, all heads | Spearman, retrieval heads of either | common heads in the top 20 |",
        "|---|---|---|---|",
        *(
            f"| {names[name]} | {row['spearman']:.3f} | {row['spearman_of_retrieval_heads']:.3f} | {row['top20']} |"
            for name, row in result["stability"].items()
        ),
        "",
        "| prompts | runs passed |",
        "|---|---|",
        *(f"| {name} | {good} of {of} |" for name, (good, of) in result["passed_by"].items()),
        "",
        "## Needle accuracy with heads masked",
        "",
        f"The same needles in fresh filler (seed {test['seed']}), prompts of {_listed(test['lengths'])} tokens,"
        f" {test['depths']} depths; heads masked from the last prompt token on. Random heads: the mean over"
        f" {max(len(row['draws']) for row in result['masking'])} draws, none of them among the top 20. Intervals: 95 %,"
        " bootstrap over trials.",
        "",
        "| heads masked | how | accuracy % (95 %) | minus plain, points (95 %) | each draw | trials |",
        "|---|---|---|---|---|---|",
        *(_mask_line(row) for row in result["masking"]),
        "",
        "`output`: the head's output is zero; `query`: its query is zero, so that it attends to all tokens alike.",
        "",
        "## Inducing heads (HICD)",
        "",
        f"{result['inducing_examples']} choices on everyday facts (`src/profiling/data/facts.py`), scale 20. Top 10: "
        + ", ".join(_top(result["inducing_heads"], 10))
        + ".",
        "",
        "## Conflict heads (JuICE)",
        "",
        f"{result['conflict_examples']} facts, target: what the context says.",
        "",
        *(
            f"- {kind}: " + (", ".join(f"{layer}-{head}" for layer, head in heads) or "none")
            for kind, heads in result["conflict_heads"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def _mask_line(row: dict[str, Any]) -> str:
    (low, high), (below, above) = row["interval"], row["change_interval"]
    change = (
        "–" if row["heads"] == "plain" else f"{100 * row['change']:+.1f} ({100 * below:+.1f} to {100 * above:+.1f})"
    )
    draws = " / ".join(f"{100 * value:.1f}" for value in row["draws"]) if len(row["draws"]) > 1 else "–"
    accuracy = f"{100 * row['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f})"
    return f"| {row['heads']} | {row['mode']} | {accuracy} | {change} | {draws} | {row['trials']} |"


def _top(scores: list[list[float]], count: int) -> list[str]:
    table = np.array(scores)
    order = np.argsort(-table, axis=None, kind="stable")[:count]
    return [f"{i // table.shape[1]}-{i % table.shape[1]} {table.flat[i]:.2f}" for i in order]
