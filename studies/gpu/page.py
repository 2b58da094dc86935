"""The page of `python -m studies.gpu`, from what its parts found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .conformance import BOUNDS, passes


def page(found: Mapping[str, Any], missing: Sequence[str]) -> str:
    """Markdown: the conformance subset, then the speed tables."""
    made = found["versions"]
    lines = ["# On one card", ""] if not found["tiny"] else ["# A dry run, which measures nothing", ""]
    lines += [
        "`python -m studies.gpu --out eval/results`; every part is a run of its own, and a second call goes on where the"
        " first ended.",
        "",
        f"Device: {found['device']}. torch {made['torch']}, transformers {made['transformers']}.",
        "",
    ]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    groups = {kind: {t: one for t, one in found["parts"].items() if t.startswith(kind)} for kind in ("conf", "speed")}
    return "\n".join([*lines, *_conformance(groups["conf"]), *_speed(groups["speed"])]).rstrip() + "\n"


def _conformance(parts: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Conformance",
        "",
        "Every method and decoder on tiny models, one row and four padded ones, given the CPU's answer token by token."
        " Distance: of a step's scores from the CPU's in float32, over their size. float32 is held to its worst step (at"
        f" most {BOUNDS['float32']:g}), half precision to its median one (float16 {BOUNDS['float16']:g}, bfloat16"
        f" {BOUNDS['bfloat16']:g}), since rounding may move a choice of heads or sinks. On a card no layer of a decode step"
        " may wait for the device.",
        "",
        "| type | family | cases | as they should be | plain, median | largest median | largest worst |",
        "|---|---|---|---|---|---|---|",
    ]
    wrong = []
    for title, part in parts.items():
        if "error" in part:
            wrong.append(f"- {title}: {part['error']}")
            continue
        rows, dtype = part["rows"], part["dtype"]
        done = [row for row in rows if "failed" not in row]
        plain = max((row["median"] for row in done if row["name"] == "plain"), default=float("nan"))
        largest = [max((row[what] for row in done), default=float("nan")) for what in ("median", "worst")]
        lines.append(
            f"| {dtype} | {part['family']} | {len(rows)} | {part['passed']} | {plain:.1e} | {largest[0]:.1e} |"
            f" {largest[1]:.1e} |"
        )
        for row in rows:
            if not passes(row, dtype):
                reason = (
                    row.get("failed") or row.get("waits") or f"median {row['median']:.1e}, worst {row['worst']:.1e}"
                )
                wrong.append(f"- {dtype}, {row['family']}, {row['name']}, {row['prompt']}: {reason}")
    return [*lines, "", *(["What is not:", "", *wrong, ""] if wrong else [])]


def _speed(parts: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Speed",
        "",
        "Random weights in the sizes of published models. Ratios are to plain of the same kind in the same round; that of"
        " plain is to itself, the noise.",
        "",
    ]
    for title, part in parts.items():
        if "error" in part:
            lines += [f"### {title.removeprefix('speed ')}", "", part["error"], ""]
            continue
        model = part["model"]
        step, rows = model["step"], part["rows"]
        ms = next(row["ms"] for row in rows if (row["name"], row["phase"]) == ("plain", "decode"))
        lines += [
            f"### {title.removeprefix('speed ')}",
            "",
            f"{model['parameters'] / 1e9:.2f} G parameters, {model['dtype']}, prompt {model['prompt_tokens']}"
            f" ({model['image_tokens']} image), {part['new_tokens']} new tokens, {part['repeats']} rounds. A decode step of"
            f" plain reads {step['bytes'] / 1e9:.2f} GB and computes {step['flops'] / 1e9:.2f} GFLOP: {step['bytes'] / ms / 1e6:.0f}"
            f" GB/s.",
            "",
            "| run | prefill ms | ratio (min - max) | decode ms | ratio (min - max) | peak MB |",
            "|---|---|---|---|---|---|",
        ]
        for prefill, decode in zip(rows[::2], rows[1::2], strict=True):
            peak = max((row["peak_mb"] or 0 for row in (prefill, decode)), default=0)
            cells = [cell for row in (prefill, decode) for cell in (f"{row['ms']:.2f}", _ratio(row["ratio"]))]
            lines.append(f"| {prefill['name']} | {' | '.join(cells)} | {peak:.0f} |")
        lines.append("")
    return lines


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['min']:.3f} - {ratio['max']:.3f})"
