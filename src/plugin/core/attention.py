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
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .compat import attention_name
from .edits import (
    Add,
    Bias,
    Disperse,
    Edit,
    Gain,
    Input,
    InputProbe,
    Keys,
    Mass,
    OutputProbe,
    Shift,
)
from .explicit import Call, WeightEdit, edited_weights, explicit_rows, in_chunks
from .extras import Extras
from .groups import scale_groups
from .kernels import own_eager, sdpa
from .shards import Shard

IMPLEMENTATION = "sightline"  # the name under which transformers knows this function
EAGER = "sightline_eager"  # the same for a decoder that sdpa cannot compute, with the masks of eager attention
SLOT = "_sightline"  # attribute of an attention module that holds the `Stage` of its model


@dataclass(frozen=True)
class LayerPlan:
    """The edits of one layer, sorted by where they act; the order inside each tuple is the order of the config."""

    weights: tuple[WeightEdit, ...] = ()
    outputs: tuple[Gain | Add | OutputProbe, ...] = ()
    inputs: tuple[Input | InputProbe, ...] = ()
    queries: tuple[Shift | Disperse, ...] = ()
    answer: Tensor | None = None  # its tensors lie along the keys of the layer's cache (`compiled.py`); see `Keys`

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> LayerPlan:
        return cls(
            weights=tuple(e for e in edits if isinstance(e, WeightEdit)),
            outputs=tuple(e for e in edits if isinstance(e, Gain | Add | OutputProbe)),
            inputs=tuple(e for e in edits if isinstance(e, Input | InputProbe)),
            queries=tuple(e for e in edits if isinstance(e, Shift | Disperse)),
        )

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All of them."""
        return (*self.weights, *self.outputs, *self.inputs, *self.queries)

    def on(self, shard: Shard | None) -> LayerPlan:
        """The same plan for the heads of this process; None: all heads."""
        return self if shard is None else self.of([shard.edit(edit) for edit in self.edits])

    def acting(self) -> list[WeightEdit]:
        """The edits of weights that have something to do in this pass."""
        return [e for e in self.weights if not (isinstance(e, Mass) and e.idle is not None and e.idle())]


Plan = Mapping[int, LayerPlan]  # by layer index; a layer that is not in it runs plain


def merge(plans: Sequence[Mapping[int, Sequence[Edit]]]) -> Plan:
    """One plan from the edits of several methods: per layer, in the order of the methods."""
    layers = sorted({layer for plan in plans for layer in plan})
    return {layer: LayerPlan.of([e for plan in plans for e in plan.get(layer, ())]) for layer in layers}


class Aboard(Protocol):
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
    rider: Aboard | None = None
    joint: bool = False  # a branch's rows are rows of the pass like the model's
    shard: Shard | None = None  # which heads this process computes; None: all
    visited: set[int] = field(default_factory=set)  # the layers whose attention has run in this pass
    fewer: Mapping[int, Shard] = field(default_factory=dict)  # layers that have fewer heads than others
    eager: bool = False  # layers without edits run on the eager function of their model file, not on sdpa

    def keys(self, count: int, total: int) -> Keys:
        """What the `total` keys of a layer stand for, the pass's own `count` among them."""
        # A sliding cache has dropped its oldest keys; a static one has room after the newest.
        first = max(0, self.start + count - total)
        return Keys(slice(first, max(first, min(self.prompt, first + total))), self.prompt - first)

    def part(self, layer: int) -> Shard | None:
        """Which of the heads that edits speak of the layer computes here; None: all."""
        return self.shard or self.fewer.get(layer)


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
    if stage is None:  # no layer's own: Inkling 2 attends over the residuals of its blocks, too
        return plain_attention(module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    if not torch.compiler.is_compiling():
        stage.visited.add(layer)
    if stage.rider is not None and stage.rider.rides(layer):
        return stage.rider.attend(stage, module, query, key, value, attention_mask, scaling=scaling, **kwargs), None
    plan = stage.plan.get(layer)
    if plan is None:
        return plain_attention(module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return edited_attention(plan, stage, module, query, key, value, attention_mask, scaling=scaling, **kwargs), None


def plain_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The function that computes an attention module without edits: sdpa, or the eager one of its model file."""
    stage: Stage | None = module.__dict__.get(SLOT)
    eager = stage.eager if stage is not None else attention_name(getattr(module, "config", None)) == EAGER
    return own_eager(type(module)) if eager else sdpa  # type: ignore[arg-type]


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
    count = query.shape[2]
    causal = kwargs.get("is_causal")
    causal = count > 1 and bool(getattr(module, "is_causal", True) if causal is None else causal)
    if causal and attention_mask is None and stage.start == 0:  # the room of a static cache holds nothing yet
        key, value = key[:, :, :count], value[:, :, :count]
    total = key.shape[2]
    keys = stage.keys(count, total) if plan.answer is None else Keys(slice(0, total), plan.answer)
    call = Call(query, ((key, value),), attention_mask, scale, causal, keys, Extras.of(kwargs))

    edits = plan.acting()
    explicit = [edit for edit in edits if not isinstance(edit, Bias)]
    biased = len(explicit) < len(edits)
    every_row = any(edit.rows is None for edit in explicit) or (biased and stage.eager)  # eager functions take no bias
    start, stop = (0, count) if every_row or biased else _span(explicit)
    if len(call.chunks(start, stop)) > 1 and stage.start + count <= stage.prompt and not stage.eager:
        scaled = scale_groups(call, edits, start, stop)
        if scaled is not None:
            return edit_outputs(plan, scaled)
    if every_row:
        return edit_outputs(plan, explicit_rows(call, edits))
    if biased:
        output = _biased(call, [edit for edit in edits if isinstance(edit, Bias)], module, scaling, kwargs)
    else:
        output, _ = plain_attention(module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if explicit and output.requires_grad:
        output = output.clone()  # the kernel's backward needs its own output as it was
    for first, last in call.chunks(*_span(explicit)):
        weights, changed = edited_weights(call, edits, first, last)
        if changed is not None:
            kept = output[:, first:last]
            output[:, first:last] = torch.where(changed[:, :, None, None], call.outputs(weights), kept)
    return edit_outputs(plan, output)


def explicit_attention(plan: LayerPlan, call: Call) -> Tensor:
    """Head outputs [B, q, H, d] of a call whose rows all get explicit weights and the edits of `plan`."""
    return edit_outputs(plan, explicit_rows(call, plan.acting()))


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


def _biased(
    call: Call, biases: Sequence[Bias], module: nn.Module, scaling: float | None, kwargs: dict[str, Any]
) -> Tensor:
    """sdpa with biases on the prompt's keys: head outputs [B, q, H, d]."""
    (key, value), given = call.pieces[0], kwargs.get("position_bias")
    summed = torch.stack(torch.broadcast_tensors(*(edit.bias for edit in biases))).sum(0)[..., call.keys.prompt]
    bias = nn.functional.pad(summed, (0, key.shape[2] - summed.shape[-1]))[:, :, None].to(call.query)

    def rows(first: int, last: int) -> Tensor:  # a bias by heads makes a mask by heads
        own = bias if given is None else bias + (given if given.shape[2] == 1 else given[:, :, first:last])
        told = {**kwargs, "scaling": scaling, "position_bias": own}
        return sdpa(module, call.query[:, :, first:last], key, value, call.seen(first, last), **told)[0]

    return in_chunks(call, rows)


def _span(edits: Sequence[WeightEdit]) -> tuple[int, int]:
    """The smallest run of the pass's rows that holds every row which these edits name."""
    rows = [edit.rows for edit in edits if not isinstance(edit, Bias) and edit.rows is not None]
    return (min(one.start for one in rows), max(one.stop for one in rows)) if rows else (0, 0)
