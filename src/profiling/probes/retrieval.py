"""Retrieval heads: which heads look at the needle's next token while the model copies it (arXiv 2404.15574).

While a prompt is answered greedily, a head scores at a step if the token it attends to most lies in the needle and is
the token that the model then says. Variants: `released` (default, and what the public head files hold) adds
1 / needle length at every such step, so that a head may exceed 1; `paper` counts every needle token once, which is the
printed |copied and needle| / |needle|. A run counts if the answer recalls more than half of the needle's words; a
head's score is its mean over these runs, and 0.1 makes a retrieval head.

Ours (see also `needles.py`): no fixed token ids, and an answer ends with a line by its text, under any tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...common.documents import read_json
from ...common.errors import CalibrationError, shown
from ...plugin.calibration.files import RetrievalHeads
from ...plugin.core.edits import Edit, Rows, WeightProbe
from ..data.needles import NeedleTest, recall, trials
from ..job import Job, Sums, rounded
from .direct import Direct, Edits, Reader

Variant = Literal["released", "paper"]


@dataclass(frozen=True)
class AnsweredTrial:
    """One answered prompt and what each head scored in it [layers, heads]."""

    trial: NeedleTest
    answer: str
    scores: Tensor

    @property
    def passed(self) -> bool:
        return self.trial.passed(self.answer)


class Pointers:
    """Where each head looks hardest in the last row of a pass: key positions [layers, heads]."""

    def __init__(self, direct: Direct):
        self.at = torch.zeros(direct.facts.layers, direct.facts.heads, dtype=torch.long)
        row = Rows(0, 1, torch.ones(1, 1, dtype=torch.bool, device=direct.model.device))
        self.edits: Edits = {layer: [self._probe(layer, row)] for layer in range(direct.facts.layers)}

    def _probe(self, layer: int, row: Rows) -> Edit:
        return WeightProbe(partial(self._see, layer), row)

    def _see(self, layer: int, weights: Tensor, keys: slice, first: int) -> None:
        self.at[layer] = weights[0, :, -1].argmax(-1).cpu() + keys.start


class Scorer:
    """Answers trials, each from where its prompt parts from the one before, and scores the heads meanwhile."""

    def __init__(self, direct: Direct, tokenizer: Any, variant: Variant = "released"):
        if variant not in ("released", "paper"):
            raise CalibrationError(f"unknown retrieval variant {variant!r}: choose released or paper")
        self.reader, self.pointers, self.variant = Reader(direct, tokenizer), Pointers(direct), variant

    def run(self, trial: NeedleTest) -> AnsweredTrial:
        self.reader.read(trial.ids)
        copied = torch.zeros(*self.pointers.at.shape, trial.stop - trial.start)
        answer = self.reader.answer(self.pointers.edits, each=partial(_count, copied, trial, self.pointers))[0]
        return AnsweredTrial(trial, answer, (copied if self.variant == "released" else copied.clamp(max=1)).mean(-1))


def runs(
    model: Any,
    tokenizer: Any,
    *,
    variant: Variant = "released",
    advance: Callable[[str, int], None] = lambda name, total: None,
    **how: Any,
) -> list[AnsweredTrial]:
    """Answer every needle trial and score the heads.

    Args:
        model, tokenizer: any language model or the text side of a vision-language model; a processor will do.
        variant: how a head's hits are counted, see above.
        advance: called with a name and the number of runs, after each.
        how: as for `needles.trials`.
    """
    done = []
    with Direct(model) as direct:
        scorer, found = Scorer(direct, tokenizer, variant), trials(model, tokenizer, **how)
        for trial in found:
            done.append(scorer.run(trial))
            advance("needles", len(found))
    return done


def _count(copied: Tensor, trial: NeedleTest, pointers: Pointers, tokens: list[int]) -> None:
    """Add the step that said `tokens` to `copied` [layers, heads, needle tokens]."""
    needle = torch.tensor(trial.ids[trial.start : trial.stop])
    place = pointers.at[..., None] - trial.start  # [layers, heads, 1]
    copied += (place == torch.arange(len(needle))) & (needle == tokens[0])


def average(done: Sequence[AnsweredTrial]) -> Tensor:
    """Mean scores of the runs that passed [layers, heads].

    Raises:
        CalibrationError: none did.
    """
    passed = [run.scores for run in done if run.passed]
    if not passed:
        raise _none_passed(len(done), done[0])
    return torch.stack(passed).mean(0)


def measure(job: Job, *, stage: str = "runs", variant: Variant = "released", **how: Any) -> RetrievalHeads:
    """The section of the calibration file.

    Args:
        stage: under which name the job keeps the runs.
        variant, how: as for `runs`.

    Raises:
        CalibrationError: no run passed, or what `needles.trials` refuses.
    """
    asked = trials(job.model, job.processor, **how)
    with Direct(job.model) as direct:
        scorer, last = Scorer(direct, job.processor, variant), None

        def look(some: Sequence[NeedleTest]) -> Sums:
            nonlocal last
            done = [scorer.run(trial) for trial in some]
            last = done[-1]
            passed = [run.scores for run in done if run.passed]
            return {"scores": sum(passed, torch.zeros_like(last.scores)), "passed": torch.tensor(float(len(passed)))}

        seen = job.add(stage, look, asked)
    if not float(seen["passed"]):
        raise _none_passed(len(asked), last)
    return RetrievalHeads(scores=rounded(seen["scores"] / seen["passed"]), source=None)


def _none_passed(count: int, run: AnsweredTrial | None) -> CalibrationError:
    """The error, with one of the runs for an example."""
    said = (
        ""
        if run is None
        else (
            f": to {run.trial.needle.question!r} in {len(run.trial.ids)} tokens the model answered {run.answer[:80]!r}"
        )
    )
    return CalibrationError(
        f"none of {count} needle runs passed, so no head can be scored{said}; use shorter prompts, needles that the model"
        " can answer, or a model that follows instructions"
    )


def record(done: Sequence[AnsweredTrial], seed: int) -> dict[str, Any]:
    """What was run, for reports."""
    rows = [
        {
            "question": run.trial.needle.question,
            "length": run.trial.length,
            "depth": run.trial.depth,
            "tokens": len(run.trial.ids),
            "needle": [run.trial.start, run.trial.stop],
            "answer": run.answer,
            "recall": round(recall(run.answer, run.trial.needle.answer), 4),
            "passed": run.passed,
        }
        for run in done
    ]
    lengths = sorted({run.trial.length for run in done})
    return {
        "runs": len(done),
        "passed": sum(run.passed for run in done),
        "lengths": lengths,
        "seed": seed,
        "rows": rows,
    }


def read_public(path: Path | str) -> list[list[float]]:
    """Mean scores [layer][query head] of a public head file, `{"layer-head": [score per run, ...], ...}`.

    Raises:
        CalibrationError: the file cannot be read, is not of that shape, lacks a head, or has runs for some heads only.
    """
    where = f"head score file '{path}'"
    data = read_json(Path(path), dict, error=CalibrationError)
    shape = 'expected {"<layer>-<head>": [score of each run, ...], ...}'
    if not data:
        raise CalibrationError(f"{where} holds no heads: {shape}")
    means: dict[tuple[int, int], float] = {}
    for key, values in data.items():
        parts = key.split("-")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise CalibrationError(f"{where}: {shown(key)} names no head: {shape}")
        if not isinstance(values, list) or not values or not all(_is_score(value) for value in values):
            raise CalibrationError(f"{where}: head {key} has no list of scores: {shape}")
        if len(values) != len(next(iter(data.values()))):
            raise CalibrationError(
                f"{where}: head {key} has {len(values)} scores, the first one another number of them"
            )
        at = (int(parts[0]), int(parts[1]))
        if at in means:
            raise CalibrationError(f"{where} names head {at[0]}-{at[1]} twice")
        means[at] = sum(values) / len(values)
    layers, heads = (1 + max(at[axis] for at in means) for axis in (0, 1))
    for layer in range(layers):
        for head in range(heads):
            if (layer, head) not in means:
                raise CalibrationError(
                    f"{where} has layers up to {layers - 1} and heads up to {heads - 1}, but no {layer}-{head}"
                )
    return [[means[layer, head] for head in range(heads)] for layer in range(layers)]


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
