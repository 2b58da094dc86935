"""Heads that look at a thing while the model names it: objects (concept heads) or written words (OCR heads).

The model answers greedily, and at every step each head's hardest look is compared with the image tokens that the
thing's box touches. scores (SparseMM, arXiv 2506.05344): a token that names a thing gives 1 / tokens of its box to a
head whose strongest key is one of them; mean over these tokens. hits (OCR heads, arXiv 2505.15865): a thing that is
named gives the share of its label that is said, if the head's strongest key of the prompt was in the box at any of its
tokens; mean over these things; published: an OCR head has 0.1 and more.

Ours: what a token names is found by the words of the answer, not by testing whether the token occurs in a label; a
label with several boxes has them all; OCR heads are measured on pages of code words that we draw, unless the data has
`texts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...common.errors import CalibrationError
from ...models.observe import Batch
from ...models.samples import Example, Region
from ...plugin.calibration.sections import BoxHeads
from ...plugin.core.edits import Edit, WeightProbe
from ...plugin.core.layout import Layout, Step
from ...plugin.core.method import ModelFacts, Session
from ...plugin.tracing.grid import grid
from ..data.examples import pages
from ..job import Job, Sums, rounded
from .naming import Naming, named_objects, named_words, spelled, vocabulary

NEW_TOKENS = 96
FEW = 10  # named things below which scores say little
Kind = Literal["objects", "texts"]


def measure_concept_heads(job: Job) -> BoxHeads:
    """The section of the calibration file, from the boxes of objects. Raises CalibrationError where there are none."""
    shown = [example for example in job.examples if example.objects]
    if not shown:
        raise CalibrationError("concept-heads needs pictures with boxes of objects: see --data")
    words = vocabulary(shown)

    def name(example: Example, text: str, spans: Sequence[tuple[int, int]]) -> list[Naming]:
        return named_objects(text, spans, {region.label for region in example.objects}, words)

    return _measure(job, shown, "objects", name)


def measure_ocr_heads(job: Job) -> BoxHeads:
    """The section of the calibration file, from written words. Raises CalibrationError where the model reads none."""
    shown = [example for example in job.examples if example.texts] or pages(len(job.examples), seed=job.seed)

    def name(example: Example, text: str, spans: Sequence[tuple[int, int]]) -> list[Naming]:
        return named_words(text, spans, {region.label for region in example.texts})

    return _measure(job, shown, "texts", name)


def _measure(job: Job, shown: Sequence[Example], kind: Kind, name: Callable[..., list[Naming]]) -> BoxHeads:
    seen = job.total("answers", lambda batch: _answer(batch, kind, name), shown)
    if not float(seen["things"]):
        count = sum(len(getattr(example, kind)) for example in shown)
        raise CalibrationError(
            f"{job.profile}: the model's answers name none of the {count} {kind} whose boxes are known, so no head can"
            " be scored"
        )
    if float(seen["things"]) < FEW:
        job.say(f"{job.profile}: only {int(seen['things'])} of the {kind} were named: the scores are of little worth")
    return BoxHeads(scores=rounded(seen["scores"] / seen["tokens"]), hits=rounded(seen["hits"] / seen["things"]))


def _answer(batch: Batch, kind: Kind, name: Callable[..., list[Naming]]) -> Sums:
    session, answers = batch.answer(Looks, NEW_TOKENS)
    layers, heads = session.facts.layers, session.facts.heads
    sums: Sums = {"scores": torch.zeros(layers, heads), "hits": torch.zeros(layers, heads)}
    counts = {"tokens": 0, "things": 0}
    for row, (example, tokens) in enumerate(zip(batch.examples, answers, strict=True)):
        places = session.layout.image[row].nonzero()[:, 0].cpu()
        shape = grid(batch.processor, batch.inputs, row, len(places), example.size)
        regions: Sequence[Region] = getattr(example, kind)
        for naming in name(example, *spelled(batch.processor, tokens)):
            cells = set().union(*(shape.cells(region.box) for region in regions if region.label == naming.label))
            if not cells or not naming.tokens:
                continue  # cut off by the processor
            box = places[sorted(cells)]
            steps = list(naming.tokens)
            inside = torch.stack([torch.isin(session.strongest(step, row), box) for step in steps])
            hit = torch.stack([torch.isin(session.strongest(step, row, of_prompt=True), box) for step in steps]).any(0)
            sums["scores"] += inside.sum(0) / len(cells)
            sums["hits"] += hit * naming.share
            counts["tokens"] += len(steps)
            counts["things"] += 1
    return sums | {key: torch.tensor(float(count)) for key, count in counts.items()}


class Looks(Session):
    """Where every head looks hardest at each step of an answer."""

    def __init__(self, layout: Layout, facts: ModelFacts):
        self.layout, self.facts = layout, facts
        self.steps: list[Tensor] = []  # strongest key, and strongest key of the prompt, by step [2, layers, B, H]

    def strongest(self, step: int, row: int, *, of_prompt: bool = False) -> Tensor:
        """Key positions [layers, heads] when token `step` of the answer was chosen; -1 where a window holds none."""
        return self.steps[step][int(of_prompt), :, row]

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        if step.reading:
            rows = step.rows(self.layout.last_token)
        else:
            rows = Step(self.layout, 0, 1).rows(torch.ones_like(self.layout.valid))
        if rows is None:
            return {}
        return {layer: [WeightProbe(partial(self._see, layer), rows)] for layer in range(self.facts.layers)}

    def _see(self, layer: int, weights: Tensor, keys: slice, first: int) -> None:
        if layer == 0:
            self.steps.append(torch.full((2, self.facts.layers, *weights.shape[:2]), -1))
        row = weights[:, :, -1]
        for kind, part in enumerate((row, row[..., : keys.stop - keys.start])):
            if part.shape[-1]:
                self.steps[-1][kind, layer] = part.argmax(-1).cpu() + keys.start
