"""GIFT's layers (arXiv 2510.22067): where the question turns the model's look at the image, and where to keep it up.

The saliency layer is the one with the largest total positive change of the image weights over the question's rows, over
the half of its heads that change most in each prompt. The last layer is left out, it has none behind it.

The release names its enhanced layers without saying how they were found. Ours: from the layer behind the saliency layer
to the last one whose last row still gives the image at least the median of what all layers give it (mean over the half
of the heads that give most). alpha is not measured here: it is what LLaVA-1.5 7B has, and `sightline tune` chooses
another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...common.errors import CalibrationError
from ...models.observe import Batch
from ...plugin.calibration.sections import Gaze
from ...plugin.core.edits import Edit, WeightProbe
from ...plugin.core.layout import Layout, Step
from ...plugin.core.method import ModelFacts, Session
from ..job import Job, Sums

ALPHA = 5.0


def measure_gaze(job: Job) -> Gaze:
    """The section of the calibration file. Raises CalibrationError for a model of one layer."""
    if job.facts.layers < 2:
        raise CalibrationError("gaze needs a model of two layers at least: one to look at, and one behind it to change")
    seen = job.total("rows", _look)
    saliency = int(seen["rise"][:-1].argmax())
    mass = seen["mass"]
    behind = [layer for layer in range(saliency + 1, len(mass)) if float(mass[layer]) >= float(mass.median())]
    last = max(behind, default=saliency + 1)
    return Gaze(saliency_layers=[saliency], enhanced_layers=list(range(saliency + 1, last + 1)), alpha=ALPHA)


def _look(batch: Batch) -> Sums:
    session = batch.read(GazeSession)
    return {"rise": session.rise, "mass": session.mass}


class GazeSession(Session):
    """Summed over the batch, by layer.

    rise: the total change of the heads that change most [L]. mass: what the last row gives the image, mean over the
    heads that give most [L].
    """

    def __init__(self, layout: Layout, facts: ModelFacts):
        self.layout, self.layers, self.kept = layout, facts.layers, max(1, facts.heads // 2)
        self.rise, self.mass = torch.zeros(facts.layers), torch.zeros(facts.layers)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        if not step.reading:
            return {}
        asked = self.layout.query
        compared = asked | torch.nn.functional.pad(asked[:, 1:], (0, 1))  # the first row has one before it
        asking, last = step.rows(compared), step.rows(self.layout.last_token)
        edits: dict[int, list[Edit]] = {layer: [] for layer in range(self.layers)}
        for layer, probes in edits.items():
            if asking is not None:
                probes.append(WeightProbe(self._compare(layer), asking))
            if last is not None:
                probes.append(WeightProbe(self._weigh(layer), last))
        return edits

    def _compare(self, layer: int) -> Callable[[Tensor, slice, int], None]:
        image, asked = self.layout.image, self.layout.query
        before: list[Tensor] = []  # the row before the next piece
        totals: list[Tensor] = []  # change of each head, by piece [B, H]

        def see(weights: Tensor, keys: slice, first: int) -> None:
            last = first + weights.shape[2]
            previous = torch.cat([before.pop() if before else weights[:, :, :1], weights[:, :, :-1]], dim=2)
            change = (weights - previous).clamp(min=0)[..., : keys.stop - keys.start]
            rows, columns = asked[:, first:last].to(weights), image[:, keys].to(weights)
            totals.append(torch.einsum("bhrk,br,bk->bh", change, rows, columns))
            before.append(weights[:, :, -1:].clone())
            summed = torch.stack(totals).sum(0)
            self.rise[layer] = summed.topk(self.kept, dim=-1).values.sum().cpu()

        return see

    def _weigh(self, layer: int) -> Callable[[Tensor, slice, int], None]:
        ends = self.layout.last

        def see(weights: Tensor, keys: slice, first: int) -> None:
            last = first + weights.shape[2]
            rows = torch.arange(first, last, device=ends.device) == ends[:, None]
            columns = self.layout.image[:, keys].to(weights)
            mass = torch.einsum("bhrk,br,bk->bh", weights[..., : keys.stop - keys.start], rows.to(weights), columns)
            self.mass[layer] += mass.topk(self.kept, dim=-1).values.mean(-1).sum().cpu()

        return see
