"""The one attention function. transformers calls it for every layer of an attached model's text decoder.

A layer without edits goes to sdpa untouched, so an empty plan computes the plain model's bits. Otherwise the prompt is
still read by sdpa; only the rows that an edit names get explicit float32 weights (in chunks, all heads at once), and a
decode step, whose single row is edited, gets them instead of sdpa.

A decoder that sdpa cannot compute (learned sinks, capped logits) runs on the eager function of its own model file instead,
and its explicit weights have the cap and the sinks: a sink is one more key behind the others, whose value is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .compat import own_eager, sdpa_attention_forward
from .edits import (
    Add,
    Bias,
    Disperse,
    Edit,
    Gain,
    Input,
    InputProbe,
    Mass,
    OutputProbe,
    Reweight,
    Rows,
    Shift,
    WeightProbe,
    log_weights,
)
from .extras import Extras
from .shards import Shard

IMPLEMENTATION = "sightline"  # the name under which transformers knows this function
EAGER = "sightline_eager"  # the same for a decoder that sdpa cannot compute, with the masks of eager attention
SLOT = "_sightline"  # attribute of an attention module that holds the `Stage` of its model
CHUNK_ELEMENTS = 1 << 24  # float32 weights alive at once while a prompt is read: 64 MiB


WeightEdit = Bias | Mass | Reweight | WeightProbe


@dataclass(frozen=True)
class LayerPlan:
    """The edits of one layer, sorted by where they act; the order inside each tuple is the order of the config."""

    weights: tuple[WeightEdit, ...] = ()
    outputs: tuple[Gain | Add | OutputProbe, ...] = ()
    inputs: tuple[Input | InputProbe, ...] = ()
    queries: tuple[Shift | Disperse, ...] = ()

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> LayerPlan:
        return cls(
            weights=tuple(e for e in edits if isinstance(e, WeightEdit)),
            outputs=tuple(e for e in edits if isinstance(e, Gain | Add | OutputProbe)),
            inputs=tuple(e for e in edits if isinstance(e, Input | InputProbe)),
            queries=tuple(e for e in edits if isinstance(e, Shift | Disperse)),
        )

    def on(self, shard: Shard | None) -> LayerPlan:
        """The same plan for the heads of this process; None: all heads."""
        if shard is None:
            return self
        return self.of([shard.edit(e) for e in (*self.weights, *self.outputs, *self.inputs, *self.queries)])

    @cached_property
    def _explicit(self) -> tuple[Mass | Reweight | WeightProbe, ...]:
        """The edits that need explicit weights; biases alone stay on the fused kernel."""
        return tuple(e for e in self.weights if not isinstance(e, Bias))

    @cached_property
    def every_row(self) -> bool:
        """Whether each row of the pass gets explicit weights, so that sdpa need not run at all."""
        return any(e.rows is None for e in self._explicit)

    def span(self, count: int) -> tuple[int, int]:
        """The smallest run of the pass's `count` rows that holds every row in need of explicit weights."""
        bounds = [(e.rows.start, e.rows.stop) if e.rows is not None else (0, count) for e in self._explicit]
        return min((b[0] for b in bounds), default=0), max((b[1] for b in bounds), default=0)


Plan = Mapping[int, LayerPlan]  # by layer index; a layer that is not in it runs plain


def merge(plans: Sequence[Mapping[int, Sequence[Edit]]]) -> Plan:
    """One plan from the edits of several methods: per layer, in the order of the methods."""
    layers = sorted({layer for plan in plans for layer in plan})
    return {layer: LayerPlan.of([e for plan in plans for e in plan.get(layer, ())]) for layer in layers}


class Rider(Protocol):
    """What attention asks of a branch that rides along in the pass (`branches/rider.py`)."""

    def rides(self, layer: int) -> bool:
        """Whether the layer's tensors hold the branch's rows too."""

    def attend(
        self, stage: Stage, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any
    ) -> Tensor:
        """Head outputs of both: `query` holds both, `key` and `value` are the base's."""


@dataclass
class Stage:
    """What the attention function needs to know of the forward pass under way; one per attached model."""

    plan: Plan = field(default_factory=dict)  # for these heads
    start: int = 0  # absolute position of the first query row
    prompt: int = 0  # number of prompt positions, padding included
    rider: Rider | None = None
    shard: Shard | None = None  # which heads this process computes; None: all
    visited: set[int] = field(default_factory=set)  # the layers whose attention has run in this pass
    fewer: Mapping[int, Shard] = field(default_factory=dict)  # layers that have fewer heads than others
    eager: bool = False  # layers without edits run on the eager function of their model file, not on sdpa

    def part(self, layer: int) -> Shard | None:
        """Which of the heads that edits speak of the layer computes here; None: all."""
        return self.shard or self.fewer.get(layer)


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
    keys: slice  # the prompt positions that the first keys stand for
    extras: Extras = field(default_factory=lambda: Extras())

    def logits(self, first: int, last: int) -> Tensor:
        """Scaled, capped and masked logits of rows `first:last`, float32 [B, H, r, K]."""
        batch, heads, _, size = self.query.shape
        # Query heads that share a key head stand together, so that keys are never repeated.
        packed = self.query[:, :, first:last].reshape(batch, self.pieces[0][0].shape[1], -1, size) * self.scale
        parts = [torch.matmul(packed, key.transpose(2, 3)) for key, _ in self.pieces]
        logits = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).float()
        logits = self.extras.on(logits.view(batch, heads, last - first, -1), first, last)
        if self.mask is not None:
            mask = self.mask[:, :, first:last]
            if mask.dtype != torch.bool:
                return logits + mask
            visible = mask
        elif self.causal:
            ahead = logits.shape[-1] - self.query.shape[2]  # keys of earlier turns
            rows = torch.arange(first, last, device=logits.device) + ahead
            visible = torch.arange(logits.shape[-1], device=logits.device) <= rows[:, None]
        else:
            return logits
        # The least finite number, not -inf: a row of padding sees nothing and must not become NaN.
        return logits.masked_fill(~visible, torch.finfo(logits.dtype).min)

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


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """sdpa with the edits of `module`'s layer. Shapes as in `Call`; returns the head outputs [B, q, H, d] and None."""
    stage: Stage | None = module.__dict__.get(SLOT)
    layer: int = module.layer_idx  # type: ignore[assignment]
    if stage is not None:
        stage.visited.add(layer)
    if stage is not None and stage.rider is not None and stage.rider.rides(layer):
        return stage.rider.attend(stage, module, query, key, value, attention_mask, scaling=scaling, **kwargs), None
    plan = stage.plan.get(layer) if stage is not None else None
    if stage is None or plan is None:
        return plain_attention(module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return edited_attention(plan, stage, module, query, key, value, attention_mask, scaling=scaling, **kwargs), None


def plain_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The function that computes an attention module without edits: sdpa, or the eager one of its model file."""
    stage: Stage | None = module.__dict__.get(SLOT)
    return own_eager(type(module)) if stage is not None and stage.eager else sdpa_attention_forward  # type: ignore[arg-type]


def edited_attention(
    plan: LayerPlan,
    stage: Stage,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Tensor:
    """sdpa with the edits of `plan`: head outputs [B, q, H, d]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = edit_queries(plan, query, getattr(module, "scaling", scale) / scale)
    count, total = query.shape[2], key.shape[2]
    # A sliding cache has dropped its oldest keys; a static one has room after the newest.
    offset = max(0, stage.start + count - total)
    keys = slice(offset, max(offset, min(stage.prompt, offset + total)))
    causal = kwargs.get("is_causal")
    causal = count > 1 and bool(getattr(module, "is_causal", True) if causal is None else causal)
    call = Call(query, ((key, value),), attention_mask, scale, causal, keys, Extras.of(kwargs))

    bias = _fused_bias(plan.weights, keys, total)
    chunk = max(1, CHUNK_ELEMENTS // (query.shape[0] * query.shape[1] * total))
    every_row = plan.every_row or (bias is not None and stage.eager)  # eager functions take no bias
    if every_row and count <= chunk:
        output = call.outputs(_edited(call, plan.weights, 0, count)[0])
    else:
        plain = plain_attention(module)
        if bias is not None and not stage.eager:
            given = kwargs.get("position_bias")
            bias = bias.to(query).expand(-1, -1, count, -1)
            kwargs["position_bias"] = bias if given is None else bias + given
        output, _ = plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        start, stop = (0, count) if every_row else plan.span(count)
        if start < stop and output.requires_grad:
            output = output.clone()  # the kernel's backward needs its own output as it was
        for first in range(start, stop, chunk):
            last = min(first + chunk, stop)
            weights, changed = _edited(call, plan.weights, first, last)
            if every_row:
                output[:, first:last] = call.outputs(weights)
            elif changed is not None:
                kept = output[:, first:last]
                output[:, first:last] = torch.where(changed[:, :, None, None], call.outputs(weights), kept)

    return edit_outputs(plan, output)


def explicit_attention(plan: LayerPlan, call: Call) -> Tensor:
    """Head outputs [B, q, H, d] of a call whose rows all get explicit weights and the edits of `plan`."""
    count = call.query.shape[2]
    return edit_outputs(plan, call.outputs(_edited(call, plan.weights, 0, count)[0]))


def edit_queries(plan: LayerPlan, query: Tensor, scaled: float) -> Tensor:
    """The queries [B, H, q, d], shifted, and zero in dispersed heads.

    scaled: by what the model has multiplied them already, so that only the rest of its scale is left to do (OPT).
    """
    for edit in plan.queries:
        if isinstance(edit, Shift):
            query = query + scaled * edit.offset.to(query)[..., None, :]
        else:
            query = query.masked_fill(edit.heads.to(query.device)[:, :, None, None], 0)
    return query


def edit_outputs(plan: LayerPlan, output: Tensor) -> Tensor:
    """The head outputs [B, q, H, d] after the edits of outputs."""
    for edit in plan.outputs:
        if isinstance(edit, OutputProbe):
            edit.see(output)
        elif isinstance(edit, Add):
            output = output + edit.value(output).to(output)
        else:
            output = edit(output)
    return output


def _edited(call: Call, edits: Sequence[WeightEdit], first: int, last: int) -> tuple[Tensor, Tensor | None]:
    """Weights [B, H, r, K] of rows `first:last` after `edits`, and which rows [B, r] the edits with `rows` changed."""
    weights, logits = call.extras.weights(call.logits(first, last), first)
    changed = None
    for edit in edits:
        if isinstance(edit, Bias):
            bias = edit.bias[..., call.keys].to(logits)[:, :, None]
            bias = nn.functional.pad(bias, (0, logits.shape[-1] - bias.shape[-1]))
            logits, weights = logits + bias, torch.softmax(log_weights(weights) + bias, dim=-1)
        elif isinstance(edit, WeightProbe):
            low, high = max(edit.rows.start, first), min(edit.rows.stop, last)
            if low < high:
                seen = weights if call.extras.sinks is None else weights[..., :-1]
                edit.see(seen[:, :, low - first : high - first], call.keys, low)
        elif edit.rows is None:
            weights = edit(weights, logits, call.keys)
        else:
            active = _active(edit.rows, first, last).to(weights.device)
            # The edit may work in place: the rows it must leave alone are taken from a copy.
            weights = torch.where(active[:, None, :, None], edit(weights.clone(), logits, call.keys), weights)
            changed = active if changed is None else changed | active
    return weights, changed


def _fused_bias(edits: Sequence[WeightEdit], keys: slice, total: int) -> Tensor | None:
    """The sum of all biases, over the keys of this pass: [B or 1, H or 1, 1, K]."""
    biases = [e.bias for e in edits if isinstance(e, Bias)]
    if not biases:
        return None
    summed = torch.stack(torch.broadcast_tensors(*biases)).sum(0)[..., keys]
    return nn.functional.pad(summed, (0, total - summed.shape[-1]))[:, :, None]


def _active(rows: Rows, first: int, last: int) -> Tensor:
    """`rows.active` cut to rows `first:last`: [B, last - first]."""
    inside = rows.active[:, max(first - rows.start, 0) : max(last - rows.start, 0)]
    before = min(max(rows.start - first, 0), last - first)
    return nn.functional.pad(inside, (before, last - first - before - inside.shape[1]))
