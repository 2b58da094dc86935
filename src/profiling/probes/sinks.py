"""Attention sinks: the massive hidden dimensions of a model, and the threshold that tells their tokens apart.

The published search (VAR, arXiv 2503.03321, and its forks) takes the dimensions whose RMS-normalised magnitude is
extreme on the most attended tokens, consistently over layers and samples. Ours is how that is made exact:

- attention counts that comes from behind: from the text behind the image, or the last quarter of a text prompt, on all
  tokens before it. So no token is ahead for being early, or for being near to those that look;
- a dimension's contrast is its mean magnitude on the tenth of the tokens that get most attention (weighted by it) minus
  its median over all: a dimension that is massive everywhere tells no token apart;
- its score is the median over layers of the mean over samples. The dimensions before the widest drop in scores are
  taken, the drop being a ratio and the bulk of all scores its floor;
- tau lies in the emptiest stretch of the distribution of phi, the largest magnitude over these dimensions, above its
  median and below the sinks. Where no dimension stands out, tau lies above every token.

Secondary sinks (arXiv 2512.22213): other tokens than the first whose hidden state points along that of the first token,
in the layers where the first token is a sink.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...models.observe import Batch
from ...plugin.calibration.sections import Sink, TokenCounts
from ...plugin.core.edits import Edit, InputProbe, Rows, WeightProbe
from ...plugin.core.layout import Layout, Step
from ...plugin.core.method import ModelFacts, Session
from ...plugin.methods.secondary import ALIGNED, alignment
from ..job import Job, Sums

FIRST_LAYER = 2  # VAR looks for sinks from here on
ATTENDED = 0.1  # share of the tokens that counts as most attended
CLEAR = 2.0  # a dimension that stands out less than so many times as far as the next one is none
MOST = 8  # dimensions
COMMON = 0.25  # sinks per prompt and layer that tau must leave above it
LOW, HIGH, STEP = 1e-2, 1e3, 0.01  # bins of phi, in steps of its logarithm
BINS = round(math.log(HIGH / LOW) / STEP)
FIRST, VISUAL, TEXT = range(3)  # kinds of tokens


def measure_sinks(job: Job) -> Sink:
    """The section of the calibration file."""
    layers = range(min(FIRST_LAYER, job.facts.layers - 1), job.facts.layers)
    contrast = job.total("contrast", lambda batch: _contrast(batch, layers))
    dims, drop = stand_out((contrast["contrast"] / contrast["prompts"]).median(0).values)
    seen = job.total("tokens", lambda batch: _tokens(batch, layers, dims))
    prompts = float(seen["prompts"])
    counts = seen["phi"].sum((0, 1))
    tau = threshold(counts, len(layers) * prompts)
    if drop < CLEAR:
        tau = LOW * math.exp(STEP * (int(counts.nonzero().max()) + 10))
        job.say(
            f"sinks: no hidden dimension stands out of the others ({drop:.1f} times the next): tau is set above all"
        )
    sinks = seen["phi"][..., bin_of(tau) :].sum(-1)  # [layers, kinds]
    first = [index for index in range(len(layers)) if float(sinks[index, FIRST]) > prompts / 2]
    return Sink(
        dims=dims,
        tau=float(f"{tau:.4g}"),
        contrast=round(drop, 2),
        first=[layers[index] for index in first],
        tokens=_counts(sinks[:, VISUAL], sinks[:, [FIRST, TEXT]].sum(-1), prompts),
        secondary=_counts(seen["aligned"][first, VISUAL], seen["aligned"][first, TEXT], prompts) if first else None,
        cosine=ALIGNED if first else None,
    )


def stand_out(scores: Tensor) -> tuple[list[int], float]:
    """The dimensions before the widest drop in their scores [D], and that drop, as a ratio."""
    bulk = scores.median()
    floor = 3 * 1.4826 * (scores - bulk).abs().median()  # three standard deviations of the bulk
    values, order = scores.sort(descending=True)
    values = values[: MOST + 1].clamp(min=max(float(floor), 1e-9))
    drops = values[:-1] / values[1:]
    kept = int(drops.argmax()) + 1
    return sorted(order[:kept].tolist()), float(drops[kept - 1])


def threshold(counts: Tensor, prompts: float) -> float:
    """tau from the counts of phi in each bin; `prompts` counts them once for each layer."""
    above = counts.flip(0).cumsum(0).flip(0)
    median = int((above >= above[0] / 2).nonzero().max())
    top = int((above >= COMMON * prompts).nonzero().max())
    width = round(0.05 / STEP)  # a stretch is five percent to each side
    smooth = torch.nn.functional.avg_pool1d(counts.double()[None], 2 * width + 1, 1, width, count_include_pad=False)[0]
    inside = smooth[median + 1 : top] if top > median + 1 else smooth[median : median + 1]
    length = end = run = 0
    for at, is_empty in enumerate((inside <= inside.min() + 1e-9).tolist()):
        run = run + 1 if is_empty else 0
        if run > length:
            length, end = run, at + 1
    return LOW * math.exp(STEP * (median + 1 + end - length / 2))


def bin_of(value: float) -> int:
    return min(BINS - 1, max(0, round(math.log(value / LOW) / STEP)))


def _counts(visual: Tensor, text: Tensor, prompts: float) -> TokenCounts:
    return TokenCounts(visual=round(float(visual.mean()) / prompts, 3), text=round(float(text.mean()) / prompts, 3))


def magnitude(hidden: Tensor) -> Tensor:
    """|x| / RMS(x) over the last axis, in float32."""
    state = hidden.float()
    return (state * torch.rsqrt(state.square().mean(-1, keepdim=True) + 1e-6)).abs()


def readers(layout: Layout) -> Tensor:
    """The rows that look [B, n]: those behind the image, or the last quarter of a prompt without one."""
    order = layout.valid.int().cumsum(-1)
    late = layout.valid & (order > (order[:, -1:] * 3) // 4)
    return torch.where(layout.image.any(-1, keepdim=True), layout.after_image, late)


def _contrast(batch: Batch, layers: range) -> Sums:
    session = batch.read(lambda layout, facts: _Contrast(layout, layers))
    found = torch.stack([session.found[layer] for layer in layers])
    return {"contrast": found, "prompts": torch.tensor(float(len(batch.examples)))}


class _Contrast(Session):
    """found: by layer, contrast of every dimension, summed over the batch [D]."""

    def __init__(self, layout: Layout, layers: range):
        self.layout, self.layers, self.readers = layout, layers, readers(layout)
        self.found: dict[int, Tensor] = {}

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        rows = step.rows(self.readers) if step.reading else None
        if rows is None:
            return {}
        return {layer: [InputProbe(self._enter), WeightProbe(self._look(layer, rows), rows)] for layer in self.layers}

    def _enter(self, hidden: Tensor) -> None:
        self.hidden, self.received = hidden, torch.zeros(self.layout.valid.shape, device=hidden.device)

    def _look(self, layer: int, rows: Rows) -> Callable[[Tensor, slice, int], None]:
        def see(weights: Tensor, keys: slice, first: int) -> None:
            last = first + weights.shape[2]
            active = rows.active[:, first - rows.start : last - rows.start].to(weights)
            self.received[:, keys] += torch.einsum("bhrk,br->bk", weights[..., : keys.stop - keys.start], active)
            if last == rows.stop:
                self.found[layer] = self._contrast()

        return see

    def _contrast(self) -> Tensor:
        """Summed over the batch [D]; what was seen of the layer is dropped."""
        total = torch.zeros(self.hidden.shape[-1], device=self.hidden.device)
        for row, (valid, looks) in enumerate(zip(self.layout.valid, self.readers, strict=True)):
            before = (valid & ~looks).to(self.hidden.device).nonzero()[:, 0]
            if not len(before):
                continue
            state, got = magnitude(self.hidden[row, before]), self.received[row, before]
            got, top = got.topk(max(1, int(ATTENDED * len(before))))
            total += (state[top] * got[:, None]).sum(0) / got.sum().clamp(min=1e-9) - state.median(0).values
        del self.hidden, self.received
        return total.cpu()


def _tokens(batch: Batch, layers: range, dims: list[int]) -> Sums:
    session = batch.read(lambda layout, facts: _Tokens(layout, facts, layers, dims))
    return {"phi": session.phi, "aligned": session.aligned, "prompts": torch.tensor(float(len(batch.examples)))}


class _Tokens(Session):
    """Counts tokens by their phi and their direction.

    phi: how many tokens of each kind lie in each bin [layers, kinds, bins]. aligned: how many of them point along the
    first token [layers, kinds].
    """

    def __init__(self, layout: Layout, facts: ModelFacts, layers: range, dims: list[int]):
        self.layout, self.layers, self.dims = layout, layers, dims
        self.phi = torch.zeros(len(layers), 3, BINS)
        self.aligned = torch.zeros(len(layers), 3)
        first = layout.first_token
        self.kinds = torch.stack([first, layout.image & ~first, layout.valid & ~layout.image & ~first]).cpu()

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        if not step.reading:
            return {}
        return {layer: [InputProbe(self._see(index))] for index, layer in enumerate(self.layers)}

    def _see(self, index: int) -> Callable[[Tensor], None]:
        def see(hidden: Tensor) -> None:
            phi = magnitude(hidden)[..., self.dims].amax(-1).cpu()
            at = ((phi.clamp(LOW, HIGH) / LOW).log() / STEP).round().long().clamp(max=BINS - 1)
            start = self.kinds[FIRST].int().argmax(-1).to(hidden.device)
            first = hidden[torch.arange(len(hidden), device=hidden.device), start]
            cosine = alignment(hidden, first).cpu()
            for kind, mask in enumerate(self.kinds):
                self.phi[index, kind] = torch.bincount(at[mask], minlength=BINS).float()
                self.aligned[index, kind] = (cosine[mask] > ALIGNED).sum()

        return see
