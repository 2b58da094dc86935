"""Edits by a part of their strength, one for each batch row: what a gate makes of a method's edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...common.errors import UnsupportedModelError
from .edits import (
    PROBES,
    Add,
    Bias,
    Disperse,
    Edit,
    Edits,
    Gain,
    Input,
    InputProbe,
    Keys,
    Mass,
    Reweight,
    Rows,
    Rule,
    Shift,
)
from .layout import Step


def partly(edits: Edits, strength: Tensor, step: Step, unseen: bool = False) -> Edits:
    """The edits of a pass by a share of their strength [B]: 0 leaves a row as it is, at 1 they are what they were.

    While a prompt is read, what looks before it acts still looks where every share is 0. unseen: the shares are not looked
    at, so that the host need not wait for them and every step has edits of the same kind.
    """
    if not unseen and bool((strength == 1).all()):
        return edits
    shut = not unseen and not bool((strength > 0).any())
    blend = unseen or bool(((strength > 0) & (strength < 1)).any())
    parts = {layer: [_part(edit, strength, step, shut, blend) for edit in some] for layer, some in edits.items()}
    return {layer: kept for layer, some in parts.items() if (kept := [one for one in some if one is not None])}


def late(edits: Edits, decide: Callable[[Tensor], Tensor], step: Step) -> Edits:
    """The edits by a share that each layer decides from the state [B, q, hidden] that enters it: decide(state) [B].

    Raises UnsupportedModelError for edits that are carried out before a layer runs.
    """
    made: dict[int, list[Edit]] = {}
    for layer, some in edits.items():
        if all(isinstance(edit, PROBES) for edit in some):
            made[layer] = list(some)
            continue
        strength = torch.zeros(step.layout.batch, device=step.layout.ids.device)
        told: list[tuple[Tensor, Tensor]] = []  # which rows an edit names, and which of them are open
        parts = [_late(edit, strength, step, told) for edit in some]
        made[layer] = [InputProbe(partial(_decide, decide, strength, told)), *parts]
    return made


def _decide(
    decide: Callable[[Tensor], Tensor], strength: Tensor, told: Sequence[tuple[Tensor, Tensor]], hidden: Tensor
) -> None:
    strength.copy_(decide(hidden))
    for named, opened in told:
        opened.copy_(named & (strength > 0)[:, None].to(named.device))


def _late(edit: Edit, strength: Tensor, step: Step, told: list[tuple[Tensor, Tensor]]) -> Edit:
    if isinstance(edit, PROBES):
        return edit
    if not isinstance(edit, Gain | Mass | Reweight | Add):
        raise UnsupportedModelError(
            f"a gate by layer decides when a layer runs, and {type(edit).__name__.lower()} edits are made before: use"
            " 'by: previous' or 'by: now'"
        )
    if isinstance(edit, Gain):
        factor = edit.factor
        function = (lambda output: factor) if isinstance(factor, Tensor) else factor
        return replace(edit, factor=Scaled(function, strength, 1))
    if isinstance(edit, Add):
        return Add(Scaled(edit.value, strength, 0))
    rows = _rows(edit, strength, step)
    opened = torch.zeros_like(rows.active)
    told.append((rows.active, opened))
    rows = replace(rows, active=opened)
    if isinstance(edit, Mass):
        return replace(edit, rule=Scaled(edit.rule, strength, 0), rows=rows)
    return replace(edit, change=Blended(edit.change, strength), rows=rows)


def _part(edit: Edit, strength: Tensor, step: Step, shut: bool, blend: bool) -> Edit | None:
    if isinstance(edit, PROBES):
        return edit
    looks = isinstance(edit, Mass | Reweight) or (isinstance(edit, Gain) and not isinstance(edit.factor, Tensor))
    if shut and not (step.reading and looks):
        return None
    if isinstance(edit, Gain):
        factor = edit.factor
        if isinstance(factor, Tensor):
            return replace(edit, factor=1 + _share(strength, factor) * (factor - 1))
        return replace(edit, factor=Scaled(factor, strength, 1))
    if isinstance(edit, Bias):
        return Bias(_share(strength, edit.bias) * edit.bias)
    if isinstance(edit, Shift):
        return Shift(_share(strength, edit.offset[None]) * edit.offset)
    if isinstance(edit, Disperse):
        return Disperse(edit.heads & (strength > 0)[:, None].to(edit.heads.device))
    if isinstance(edit, Add):
        return Add(Scaled(edit.value, strength, 0))
    if isinstance(edit, Input):
        change = edit.change
        return Input(lambda hidden: hidden + _share(strength, hidden) * (change(hidden) - hidden))
    rows = _rows(edit, strength, step)
    rows = replace(rows, active=rows.active & (strength > 0)[:, None].to(rows.active.device))
    if isinstance(edit, Mass):
        return replace(edit, rule=Scaled(edit.rule, strength, 0), rows=rows)
    return replace(edit, change=Blended(edit.change, strength) if blend else edit.change, rows=rows)


def _rows(edit: Mass | Reweight, strength: Tensor, step: Step) -> Rows:
    """The rows that an edit acts on, all of the pass where it names none."""
    return edit.rows or Rows(0, step.count, strength.new_ones(len(strength), step.count, dtype=torch.bool))


def _share(strength: Tensor, like: Tensor) -> Tensor:
    """The strength [B] to multiply something [B or 1, ..] with."""
    return strength.to(like.device).view(-1, *[1] * (like.ndim - 1)).to(like.dtype)


@dataclass(frozen=True)
class Scaled(Rule):
    """A function whose answer [B, ..] is drawn towards `neutral`, which changes nothing."""

    function: Callable[[Tensor], Tensor]
    strength: Tensor
    neutral: float

    def __call__(self, values: Tensor) -> Tensor:
        answer = self.function(values)
        return self.neutral + _share(self.strength, answer) * (answer - self.neutral)


@dataclass(frozen=True)
class Blended(Rule):
    """A change of weights by a share of it in their logarithms, which scales whatever it adds to logits."""

    function: Callable[..., Tensor]
    strength: Tensor

    def __call__(self, weights: Tensor, logits: Tensor, keys: Keys, *along: Tensor) -> Tensor:
        new, share = self.function(weights.clone(), logits, keys, *along), _share(self.strength, weights)
        held = weights > 0
        ratio = torch.where(held, new, 1) / torch.where(held, weights, 1)  # a gradient must not meet 0 / 0
        mixed = torch.where(held, weights * ratio**share, share * new)
        total = torch.lerp(weights.sum(-1, keepdim=True), new.sum(-1, keepdim=True), share)
        return mixed * (total / mixed.sum(-1, keepdim=True))
