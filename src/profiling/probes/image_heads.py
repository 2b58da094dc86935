"""Image-centric heads: where VAR would act, and how much of a head's look at the image is no sink (arXiv 2503.03321).

Over the rows behind the image: a row of a head counts where at least 0.2 of its attention lies on the image; its visual
non-sink ratio is 1 minus the share of that which lies on visual sinks. Ours: heads are ranked by the attention that
they give image tokens which are no sinks, in all rows; and rho, the ratio from which VAR acts (in the paper's sense),
splits the ratios of the rows that see a visual sink so that the two sides differ most (Otsu's threshold), where the
paper tunes it for each benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...common.errors import CalibrationError
from ...models.observe import Batch
from ...plugin.calibration.sections import ImageHeads, Sink
from ...plugin.core.edits import Edit, InputProbe, Rows, WeightProbe
from ...plugin.core.layout import Layout, Step
from ...plugin.core.method import ModelFacts, Session
from ..job import Job, Sums, rounded
from .sinks import FIRST_LAYER, magnitude

LEAST = 0.2  # of a row's attention, for the row to count
BINS = 100  # of the ratio


def measure_image_heads(job: Job) -> ImageHeads:
    """The section of the calibration file.

    Raises:
        CalibrationError: the section `sink` is not known.
    """
    sink = job.known.get("sink")
    if not isinstance(sink, Sink):
        raise CalibrationError("image-heads needs the section 'sink', which says what a sink is: measure sinks, too")
    seen = job.total("rows", lambda batch: _look(batch, sink))
    return ImageHeads(
        scores=rounded(seen["looks"] / seen["rows"]),
        centric=rounded(seen["centric"] / seen["rows"]),
        ratio=rounded(seen["ratio"] / seen["centric"].clamp(min=1)),
        rho=otsu(seen["ratios"]),
    )


def otsu(counts: Tensor) -> float | None:
    """The bin edge in [0, 1] that splits counts [bins] into the two most different parts; None where all lie in one."""
    counts = counts.double()
    centres = (torch.arange(len(counts)) + 0.5) / len(counts)
    low, moment = counts.cumsum(0)[:-1], (counts * centres).cumsum(0)[:-1]
    high = counts.sum() - low
    apart = low * high * (moment / low - ((counts * centres).sum() - moment) / high).square()
    apart = apart.nan_to_num(0.0)
    if not bool(apart.max() > 0):
        return None
    best = (apart >= apart.max() * (1 - 1e-9)).nonzero()[:, 0].double()  # an empty stretch: its middle
    return round(float(best.mean() + 1) / len(counts), 3)


def _look(batch: Batch, sink: Sink) -> Sums:
    session = batch.read(lambda layout, facts: _Rows(layout, facts, sink))
    return {
        "looks": session.looks,
        "ratio": session.ratio,
        "centric": session.centric,
        "ratios": session.ratios,
        "rows": session.rows.sum().float(),
    }


class _Rows(Session):
    """Summed over the batch's rows behind the image [layers, heads].

    looks: the attention on image tokens that are no sinks. centric: the rows that count. ratio: their ratio. ratios: how
    many of the rows that count and see a visual sink lie in each bin of the ratio.
    """

    def __init__(self, layout: Layout, facts: ModelFacts, sink: Sink):
        self.layout, self.sink, self.rows = layout, sink, layout.after_image
        self.looks, self.ratio, self.centric = (torch.zeros(facts.layers, facts.heads) for _ in range(3))
        self.ratios = torch.zeros(BINS)
        self.sinks: dict[int, Tensor] = {}

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        rows = step.rows(self.rows) if step.reading else None
        if rows is None:
            return {}
        return {
            layer: [InputProbe(partial(self._find, layer)), WeightProbe(self._weigh(layer, rows), rows)]
            for layer in range(len(self.ratio))
        }

    def _find(self, layer: int, hidden: Tensor) -> None:
        found = magnitude(hidden)[..., self.sink.dims].amax(-1) > self.sink.tau
        self.sinks[layer] = found & self.layout.image.to(hidden.device) & (layer >= FIRST_LAYER)

    def _weigh(self, layer: int, rows: Rows) -> Callable[[Tensor, slice, int], None]:
        def see(weights: Tensor, keys: slice, first: int) -> None:
            last = first + weights.shape[2]
            weights = weights[..., : keys.stop - keys.start]
            image = self.layout.image[:, keys].to(weights)
            visual = torch.einsum("bhrk,bk->bhr", weights, image)
            idle = torch.einsum("bhrk,bk->bhr", weights, self.sinks[layer][:, keys].to(weights))
            ratio = 1 - idle / (visual + 1e-6 * self.layout.image.sum(-1).to(weights)[:, None, None])
            active = rows.active[:, None, first - rows.start : last - rows.start].to(weights.device)
            counts = active & (visual >= LEAST)
            self.looks[layer] += ((visual - idle) * active).sum((0, 2)).cpu()
            self.ratio[layer] += (ratio * counts).sum((0, 2)).cpu()
            self.centric[layer] += counts.sum((0, 2)).cpu()
            split = ratio[counts & (idle > 0)].cpu()
            self.ratios += torch.bincount((split * BINS).long().clamp(0, BINS - 1), minlength=BINS).float()

        return see
