"""The edit algebra: what a method may do to the attention of one layer, as data.

A method turns its calibration and the token layout into edits; `attention.py` carries them out. There are four kinds:

- `Gain`: a factor per batch row and query head on the head output, before `o_proj`; in all rows, or in named ones.
- `Bias`: an additive bias on the logits of prompt keys. It stays on the fused kernel.
- `Mass`: a rule that reads the attention mass of groups of keys and answers with a factor for each group.
- `Reweight`: explicit weights in, explicit weights out; for what the others cannot say.

Multiplying softmax weights by f_j and renormalising is exactly the bias log f_j, and moving the mass of a group from m
to t while the rest keeps its proportions is exactly the bias logit(t) - logit(m) on that group (`move`). `Mass` uses
that identity in its multiplicative form, because the rows it acts on have explicit weights anyway.

`Shift` adds a vector to a head's queries, which is a bias of its own on every key, a decoded one included.

Contrastive decoding weakens a branch with three more: `Disperse` (heads look everywhere alike), `Add` (something added
to the head outputs) and `Input` (another hidden state enters a layer).

Three probes look without touching: `InputProbe` (hidden state entering a layer), `WeightProbe` (attention weights of
some rows) and `OutputProbe` (head outputs). A layer that has only probes computes the same bits as without them.

Shapes: B batch rows, H query heads, R edited query rows, K keys, n prompt tokens, d head size, g groups.
Key-side tensors are given in prompt coordinates [B, n]; the attention function aligns them with the cache. H is all heads
of the model, also where a process holds some of them (`shards.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Query rows `start:stop` of one forward pass; `active` [B, stop - start] says which of them each batch row edits."""

    start: int
    stop: int
    active: Tensor


@dataclass(frozen=True)
class Keys:
    """What the keys of a pass stand for: the first columns are the prompt positions `prompt`.

    answer: the column of the first generated token, negative where a sliding cache has dropped it; a number, or a tensor
    of one where a graph is to serve every prompt.
    """

    prompt: slice
    answer: int | Tensor


class Rule:
    """Base of dataclasses that stand for a function that edits are made of; their tensors are fields."""


@dataclass(frozen=True)
class Gain:
    """Multiply head outputs. `factor` is [B or 1, H], or a function from the outputs [B, q, H, d] of this pass to it.

    `rows` None means every row of the pass.
    """

    factor: Tensor | Callable[[Tensor], Tensor]
    rows: Rows | None = None

    def __call__(self, output: Tensor) -> Tensor:
        factor = self.factor if isinstance(self.factor, Tensor) else self.factor(output)
        factor = factor[:, None, :, None].to(output)
        if self.rows is None:
            return output * factor
        start, stop = self.rows.start, self.rows.stop
        active = self.rows.active.to(output.device)[:, :, None, None]
        named = output[:, start:stop] * torch.where(active, factor, 1)
        return torch.cat([output[:, :start], named, output[:, stop:]], dim=1)


@dataclass(frozen=True)
class Bias:
    """Add `bias` [B or 1, H or 1, n] to the logits of the prompt's keys, in every row of the pass."""

    bias: Tensor


#: A bias that hides a key: nothing is left of its weight, in half precision too. A row that sees no other key keeps its own.
HIDDEN = -1e4


@dataclass(frozen=True)
class Mass:
    """Scale groups of keys by what their attention masses ask for.

    `groups()` is [B, n, g]: the weight of each prompt key in each group (mostly 0 or 1; groups may overlap).
    `rule(masses)` maps masses [B, H, R, g] (float32) to coefficients [B, H, R, c]. Key j's weight is multiplied by
    1 + sum_c coefficients_c * basis_jc, where `basis()` is [B, n, c] and defaults to the groups.
    With `renormalise` the row is divided by its new sum; without, the rule must keep the sum itself.
    `idle()` may say that the layer has nothing to scale, which spares it the explicit weights.
    The functions are called when the layer runs, so that an earlier layer of the same pass can decide them.
    `rows` None means every row of the pass.
    """

    groups: Callable[[], Tensor]
    rule: Callable[[Tensor], Tensor]
    basis: Callable[[], Tensor] | None = None
    renormalise: bool = False
    rows: Rows | None = None
    idle: Callable[[], bool] | None = None

    def tables(self) -> tuple[Tensor, Tensor]:
        """The groups and the basis."""
        groups = self.groups()
        return groups, groups if self.basis is None else self.basis()

    def change(self, weights: Tensor, columns: slice | Tensor) -> Tensor:
        """By what share the weights [B, H, R, L] of the prompt keys `columns` grow."""
        batch, heads, rows, length = weights.shape
        groups, basis = (table[:, columns].to(weights) for table in self.tables())
        masses = torch.bmm(weights.reshape(batch, heads * rows, length), groups).view(batch, heads, rows, -1)
        coefficients = self.rule(masses).reshape(batch, heads * rows, -1)
        return torch.bmm(coefficients, basis.transpose(1, 2)).view(weights.shape)

    def __call__(self, weights: Tensor, logits: Tensor, keys: Keys) -> Tensor:
        length = keys.prompt.stop - keys.prompt.start
        prompt = weights[..., :length]
        change = self.change(prompt, keys.prompt)
        if torch.is_grad_enabled():  # autograd keeps the weights it saw: build new ones
            weights = torch.cat([prompt * (1 + change), weights[..., length:]], dim=-1)
        else:
            prompt.addcmul_(prompt, change)
        return weights / weights.sum(-1, keepdim=True) if self.renormalise else weights


@dataclass(frozen=True)
class Reweight:
    """Replace weights by those that `change(weights, logits, keys, *along)` returns.

    It gets weights and scaled, masked logits [B, H, R, K] in float32 and `keys`; it returns new weights of that shape.
    `along()`: what it needs to know of the prompt's tokens, tensors [B, n]; it gets the columns of `keys.prompt`.
    `headwise`: it treats each head by itself and all alike, so that a process that holds some of the heads (`shards.py`)
    needs no others.
    """

    change: Callable[..., Tensor]
    rows: Rows | None = None
    headwise: bool = False
    along: Callable[[], tuple[Tensor, ...]] = tuple

    def __call__(self, weights: Tensor, logits: Tensor, keys: Keys) -> Tensor:
        return self.change(weights, logits, keys, *(t[:, keys.prompt].to(weights.device) for t in self.along()))


@dataclass(frozen=True)
class Shift:
    """Add `offset` [H, d], or [B, H, d], to the queries of every row, after their rotation: key j's logit gains scale * offset . k_j."""

    offset: Tensor


@dataclass(frozen=True)
class Disperse:
    """Heads whose query is zero, so that every visible key weighs the same; `heads` is a mask [B or 1, H]."""

    heads: Tensor


@dataclass(frozen=True)
class Add:
    """Add `value(output)` to the head outputs [B, q, H, d] of this pass."""

    value: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Input:
    """Replace the hidden state [B, q, hidden] that enters the layer, before its first norm, by `change(hidden)`."""

    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InputProbe:
    """`see(hidden)` gets the hidden state [B, q, hidden] that enters the layer, before its first norm."""

    see: Callable[[Tensor], None]


@dataclass(frozen=True)
class WeightProbe:
    """`see(weights, keys, first)` gets float32 weights [B, H, r, K] of consecutive rows.

    first: the index of the first of them in the pass. Long spans arrive in several calls, in order.
    """

    see: Callable[[Tensor, slice, int], None]
    rows: Rows


@dataclass(frozen=True)
class OutputProbe:
    """`see(output)` gets the head outputs [B, q, H, d] of the pass, after every edit of the weights."""

    see: Callable[[Tensor], None]


PROBES = (InputProbe, WeightProbe, OutputProbe)
Edit = Gain | Bias | Mass | Reweight | Shift | Disperse | Add | Input | InputProbe | WeightProbe | OutputProbe
Edits = Mapping[int, Sequence[Edit]]  # by layer


def placed(edit: Edit, device: torch.device) -> Edit:
    """The same edit with its tensors on a device, so that no pass has to fetch them."""
    moved: dict[str, Any] = {n: value.to(device) for n, value in vars(edit).items() if isinstance(value, Tensor)}
    return replace(edit, **moved) if moved else edit


NO_MASS = 1e-30  # float32 factors that would lift less than this overflow


def move(target: float | Tensor) -> Callable[[Tensor], Tensor]:
    """Rule for a one-group `Mass` with `renormalise`: bring the group's mass m to `target`, the rest in proportion.

    The factor is the odds ratio t(1-m) / (m(1-t)), i.e. the bias logit(t) - logit(m). A group with no mass to speak of,
    below `NO_MASS`, stays so: nothing of it would be left but rounding.
    """

    def rule(masses: Tensor) -> Tensor:
        goal = target.to(masses) if isinstance(target, Tensor) else target
        held = masses > NO_MASS
        mass = torch.where(held, masses, 0.5)  # a gradient must not meet the division by zero either
        odds = goal / (1 - goal) * (1 - mass) / mass
        return torch.where(held, odds - 1, torch.zeros_like(masses))

    return rule


def own_key(logits: Tensor) -> Tensor:
    """Column of each row's own key, the last one that it sees: [B, 1, R, 1]; a static cache has room behind it.

    logits: masked, [B, H, R, K].
    """
    columns = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(visible(logits), columns, -1).amax(-1, keepdim=True)


def visible(logits: Tensor) -> Tensor:
    """Which keys the rows see [B, 1, R, K]; logits as above."""
    return logits[:, :1] > torch.finfo(logits.dtype).min / 2


def log_weights(weights: Tensor) -> Tensor:
    """Logarithm of attention weights, -inf for a masked key, where its gradient is zero."""
    if not torch.is_grad_enabled():
        return weights.log()
    masked = weights == 0
    return weights.masked_fill(masked, 1).log().masked_fill(masked, -torch.inf)


def boosted(weights: Tensor, bonus: Tensor, where: Tensor) -> Tensor:
    """Weights [B, H, R, K] after `bonus` was added to the logits of the first n keys, where `where` holds.

    Both broadcast to [B, H, R, n]. The logits are those of the weights as the methods before left them; a key that is
    masked out stays so.
    """
    logits, count = log_weights(weights), where.shape[-1]
    logits[..., :count] += bonus.masked_fill(~(where & (weights[..., :count] > 0)), 0)
    return logits.softmax(-1)
