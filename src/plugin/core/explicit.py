"""Explicit attention weights, in chunks of rows that bound their memory: what edits of weights act on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .edits import Bias, Keys, Mass, Reweight, Rows, WeightProbe, log_weights
from .extras import Extras

CHUNK_ELEMENTS = 1 << 20
"""Float32 weights in one chunk: 4 MiB, of which some ten copies live at once while edits change them."""

WeightEdit = Bias | Mass | Reweight | WeightProbe


@dataclass(frozen=True)
class Call:
    """One layer's attention in one pass: query [B, H, q, d] and the keys and values that it sees.

    They come in one or more pieces [B, Hkv, K_i, d] that follow each other; K is their sum. The mask is as sdpa takes it.
    """

    query: Tensor
    pieces: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None
    scale: float
    causal: bool  # without a mask, row i of the pass sees the keys before it, and its own
    keys: Keys
    extras: Extras = field(default_factory=Extras)
    columns: Tensor | None = None  # which of the pass's `total` keys the pieces hold; None: all
    total: int = 0

    def chunks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Rows `start:stop` in runs whose explicit weights are few enough to live at once."""
        return runs(
            start, stop, self.query.shape[0] * self.query.shape[1] * sum(key.shape[2] for key, _ in self.pieces)
        )

    def logits(self, first: int, last: int) -> Tensor:
        """Scaled, capped and masked logits of rows `first:last`, float32 [B, H, r, K]."""
        batch, heads, _, size = self.query.shape
        # Query heads that share a key head stand together, so that keys are never repeated.
        packed = self.query[:, :, first:last].reshape(batch, self.pieces[0][0].shape[1], -1, size) * self.scale
        parts = [torch.matmul(packed.to(key), key.transpose(2, 3)) for key, _ in self.pieces]
        logits = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).float()
        logits = self.extras.on(logits.view(batch, heads, last - first, -1), first, last)
        seen = self.seen(first, last)
        if seen is None:
            return logits
        if seen.dtype != torch.bool:
            return logits + seen
        # The least finite number, not -inf: a row of padding sees nothing and must not become NaN.
        return logits.masked_fill_(~seen, torch.finfo(logits.dtype).min)

    def seen(self, first: int, last: int) -> Tensor | None:
        """Which keys the rows `first:last` see [B or 1, 1, r, K], as sdpa takes it; None where all see all."""
        if self.mask is not None:
            mask = self.mask[:, :, first:last]
            return mask if self.columns is None else mask[..., self.columns]
        if not self.causal:
            return None
        device, columns = self.query.device, self.columns
        total = sum(key.shape[2] for key, _ in self.pieces) if columns is None else self.total
        ahead = total - self.query.shape[2]  # keys of earlier turns
        rows = torch.arange(first, last, device=device) + ahead
        columns = torch.arange(total, device=device) if columns is None else columns
        return (columns <= rows[:, None])[None, None]

    def outputs(self, weights: Tensor) -> Tensor:
        """Head outputs [B, r, H, d] of weights [B, H, r, K], or of K + 1 with sinks, whose value is zero."""
        values = [value for _, value in self.pieces]
        weights = weights[..., : sum(value.shape[2] for value in values)]
        batch, heads, rows, total = weights.shape
        packed = weights.to(values[0].dtype).view(batch, values[0].shape[1], -1, total)
        if len(values) == 1:
            output = torch.matmul(packed, values[0])
        else:
            shares = packed.split([value.shape[2] for value in values], dim=-1)
            output = torch.stack([torch.matmul(w, v) for w, v in zip(shares, values, strict=True)]).sum(0)
        return output.view(batch, heads, rows, -1).transpose(1, 2).contiguous()  # as sdpa gives it: some models view it


def runs(start: int, stop: int, width: int) -> list[tuple[int, int]]:
    """Rows `start:stop` of `width` elements in runs that fit in a chunk."""
    if stop - start <= 1:
        return [(start, stop)][: stop - start]
    rows = max(1, CHUNK_ELEMENTS // max(1, width))
    return [(first, min(first + rows, stop)) for first in range(start, stop, rows)]


def edited_weights(call: Call, edits: Sequence[WeightEdit], first: int, last: int) -> tuple[Tensor, Tensor | None]:
    """Weights [B, H, r, K] of rows `first:last` after `edits`, and which rows [B, r] the edits with `rows` changed."""
    weights, logits = call.extras.weights(call.logits(first, last), first)
    keys, changed = call.keys, None
    for edit in edits:
        if isinstance(edit, Bias):
            bias = edit.bias[..., keys.prompt].to(logits)[:, :, None]
            bias = nn.functional.pad(bias, (0, logits.shape[-1] - bias.shape[-1]))
            logits, weights = logits + bias, torch.softmax(log_weights(weights) + bias, dim=-1)
        elif isinstance(edit, WeightProbe):
            low, high = max(edit.rows.start, first), min(edit.rows.stop, last)
            if low < high:
                seen = weights if call.extras.sinks is None else weights[..., :-1]
                edit.see(seen[:, :, low - first : high - first], keys.prompt, low)
        elif edit.rows is None:
            weights = edit(weights, logits, keys)
        else:
            active = active_rows(edit.rows, first, last).to(weights.device)
            # The edit may work in place: the rows it must leave alone are taken from a copy.
            weights = torch.where(active[:, None, :, None], edit(weights.clone(), logits, keys), weights)
            changed = active if changed is None else changed | active
    return weights, changed


def explicit_rows(call: Call, edits: Sequence[WeightEdit]) -> Tensor:
    """Head outputs [B, q, H, d] of a call whose rows all get explicit weights and these edits."""
    return in_chunks(call, lambda first, last: call.outputs(edited_weights(call, edits, first, last)[0]))


def in_chunks(call: Call, compute: Callable[[int, int], Tensor]) -> Tensor:
    """Head outputs [B, q, H, d] of all rows, chunk by chunk; each is put where it stays, so that the memory is used again."""
    chunks, output = call.chunks(0, call.query.shape[2]), None
    if len(chunks) == 1:
        return compute(*chunks[0])
    for first, last in chunks:
        part = compute(first, last)
        if output is None:
            output = part.new_empty(part.shape[0], call.query.shape[2], *part.shape[2:])
        output[:, first:last] = part
    assert output is not None
    return output


def active_rows(rows: Rows, first: int, last: int) -> Tensor:
    """`rows.active` cut to rows `first:last`: [B, last - first]."""
    inside = rows.active[:, max(first - rows.start, 0) : max(last - rows.start, 0)]
    before = min(max(rows.start - first, 0), last - first)
    return nn.functional.pad(inside, (before, last - first - before - inside.shape[1]))
