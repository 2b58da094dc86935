"""The tables of a page of results: what its JSON files say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.benchmarks.benchmark import Benchmark
from sightline.benchmarks.public.captions import ChairBenchmark
from sightline.benchmarks.public.object_questions import PopeBenchmark
from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.tables import code, differences, legend, made_with, pipes, scores
from sightline.benchmarks.speed.bench import PHASES
from sightline.plugin.calibration.files import shipped

from .choice import points

PAGES = ("demo", "methods", "head-gain", "embedded-smol")
"""Pages whose file `sightline demo` wrote."""

STUDY = {
    "embedded-smol-chair-0": "`embedded-smol`, seed 0",
    "embedded-smol-chair-1": "seed 1",
    "embedded-chair-0": "`embedded`, seed 0",
    "embedded-chair-1": "seed 1",
}
"""What `sightline eval` wrote for `study.md`: model, benchmark, seed of the scenes; the heads of the columns of its summary."""


SPEED = (
    "embedded",
    "embedded-contrast",
    "llava-shape-128",
    "llava-shape",
    "llava-shape-4000",
    "smollm2",
    "smollm2-compiled",
    "smollm2-batch4",
)
"""What `sightline bench` wrote for `speed.md`."""


def tables(file: Path) -> str:
    """Markdown of a result of `sightline demo`: captions first, then questions, and what it was made with."""
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    parts = [f"{code(result['command'])} ({result['scenes']} scenes)"]
    for benchmark, title in ((ChairBenchmark, "Captions"), (PopeBenchmark, "Questions")):
        parts += [f"## {title}", legend(result, benchmark)]
        parts += _shown(result, benchmark)
    return _page(parts, result)


def study(folder: Path) -> str:
    """Markdown of the study's evaluations: of each its command, scores and paired differences."""
    parts: list[str] = []
    for name in STUDY:
        result: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        benchmark = suite.find(result["benchmark"])
        parts = parts or [legend(result, benchmark)]
        parts += [f"## {name}", f"{code(result['command'])} (n = {result['n']})"]
        parts += _shown(result, benchmark)
    return _page(parts, result)


def speed(folder: Path) -> str:
    """Markdown of what `sightline bench` measured: of each its command, then a row for each run."""
    parts: list[str] = []
    for name in SPEED:
        result: dict[str, Any] = json.loads((folder / f"bench-{name}.json").read_text(encoding="utf-8"))
        model, rows = result["model"], result["rows"]
        parts += [f"## {name}", code(result["command"])]
        parts.append(
            f"{model['parameters'] / 1e6:.0f}M parameters, batch {result['batch']}, a prompt of {model['prompt_tokens']} tokens."
        )
        lines = ["| run | prefill ms | times plain | decode ms | times plain | peak MB |", "|---|---|---|---|---|---|"]
        for run in dict.fromkeys(row["name"] for row in rows):
            prefill, decode = (
                next(row for row in rows if (row["name"], row["phase"]) == (run, phase)) for phase in PHASES
            )
            peak = max(prefill["peak_mb"], decode["peak_mb"])
            lines.append(f"| {run} | {_timed(prefill)} | {_timed(decode)} | {peak:.0f} |")
        parts.append("\n".join(lines))
    return _page(parts, result)


def _timed(row: Mapping[str, Any]) -> str:
    """Two cells: the median time, and the ratio to plain with its bounds."""
    ratio = row["ratio"]
    return f"{row['ms']:.2f} | **{ratio['median']:.2f}** ({ratio['min']:.2f} – {ratio['max']:.2f})"


def heads(file: Path) -> str:
    """Markdown of `studies.smol_heads`: how alike the head maps are, their best heads, sinks by layer."""
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    passed, runs = result["passed"]
    sink, libraries = result["sink"], ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{code(result['command'])} ({libraries})",
        "",
        f"{passed} of {runs} needle runs passed; {result['scenes']} calibration scenes.",
        "",
        "| maps | rank correlation | common in the best 20 |",
        "|---|---|---|",
        *(
            f"| {'; '.join(row['maps'])} | {row['spearman']:.3f} | {len(row['common'])}: {_heads(row['common'])} |"
            for row in result["agreement"]
        ),
        "",
        "| map | best heads (layer-head) |",
        "|---|---|",
        *(f"| {name} | {_heads(heads)} |" for name, heads in result["best"].items()),
        "",
        "## Sinks by layer",
        "",
        f"Dimensions {', '.join(map(str, sink['dims']))}; a token is a sink above tau, {sink['tau']}. phi of the state that"
        " enters a layer, means over prompts.",
        "",
        "| layer | phi, first token | image tokens, median | image tokens, largest | sinks among them |",
        "|---|---|---|---|---|",
        *(
            f"| {layer} | {row['first']:.1f} | {row['image_median']:.2f} | {row['image_most']:.1f} | {row['image_sinks']:.2f} |"
            for layer, row in enumerate(result["layers"])
        ),
    ]
    return "\n".join(lines)


def _heads(pairs: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{layer}-{head}" for layer, head in pairs) or "none"


def thresholds() -> str:
    """Markdown of the gates' thresholds in the shipped calibration files."""
    lines = [
        "| model | signal | by | opens | AUROC | of hallucinated words | of true words |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, calibration in shipped().items():
        known = calibration.gate_thresholds
        for by in ("now", "previous") if known is not None else ():
            for signal, one in getattr(known, by):
                share = f"{100 * one.of_hallucinated:.0f} % | {100 * one.of_true:.0f} %"
                cells = f"`{signal}` | `{by}` | {one.side} {one.value:g} | {one.auroc:.2f} | {share}"
                lines.append(f"| {model.rpartition('/')[2]} | {cells} |")
    return "\n".join(lines)


def summary(folder: Path) -> str:
    """Markdown of what the study's captions say: CHAIR_I at equal recall against plain, by run and set of scenes."""
    files = [folder / f"{name}.json" for name, head in STUDY.items() if head]
    shown = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    lines = [f"| CHAIR_I at equal recall, points (95 %) | {' | '.join(filter(None, STUDY.values()))} |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for number, run in enumerate(shown[0]["runs"]):
        changes = [one["runs"][number]["differences"]["chair"].get("equal") for one in shown]
        cells = [
            "" if one is None else f"**{points(one)}**" if one["interval"][1] < 0 else points(one) for one in changes
        ]
        lines += [f"| {run['name']} | {' | '.join(cells)} |"] if number else []
    return "\n".join(lines)


def _shown(result: Mapping[str, Any], benchmark: type[Benchmark]) -> list[str]:
    return [pipes(table(result, benchmark)).rstrip() for table in (scores, differences)]


def _page(parts: Sequence[str], result: Mapping[str, Any]) -> str:
    return "\n\n".join([*parts, "## Made with", made_with(result).rstrip()])
