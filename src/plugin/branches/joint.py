"""The model's rows and a branch's as one batch over one static cache: a decode step that a compiled graph can hold.

Behind the prompt a branch is rows with edits of their own. Where `generate` compiles, both are rows of one pass: the plan
tells them apart by tensors with a row for each, and each layer's cache has room for both, of which the caller's cache
holds the model's rows as a view. Nothing but tensors changes from step to step, or from prompt to prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import compat
from ..core.attention import LayerPlan, Plan, Stage
from ..core.compat import CACHE
from ..core.edits import Bias, Disperse, Edit, Gain, Mass, Reweight, Rows, Rule, Shift
from ..core.layout import Step
from .cache import Pair

if TYPE_CHECKING:
    from .fork import Fork

MASK = "attention_mask"
ROOM = 64  # columns by which a cache is widened for a copy's prompt that is longer than the model's: widths are few


class Joint:
    """A fork's rows behind the model's, B + N in all.

    cache: that of both, None while they are apart. In its columns the tokens of both lie side by side; of a prompt of the
    branch's own what is longer than the model's lies in columns behind all others.
    """

    def __init__(self, fork: Fork):
        self.fork, self.batch, self.parts = fork, fork.layout.batch, 1 + fork.copies
        self.cache: Any = None
        self._views: dict[int, Pair] = {}  # of the model's rows, by layer, as the caller's cache holds them
        self._kept: frozenset[int] = frozenset()  # layers whose prompt the branch has read by itself
        self._extra = 0

    @property
    def holds(self) -> bool:
        """Whether the branch's keys and values are here, not in its own cache."""
        return self.cache is not None

    def obstacle(self, kwargs: Mapping[str, Any]) -> str | None:
        """Why the rows cannot be one batch; None where they can."""
        fork, mask = self.fork, kwargs.get(MASK)
        if fork.branch.anew:
            return "what a copy of the model sees is chosen in each pass, by what an earlier layer of it shows"
        if fork.across or fork.latent or not compat.static(kwargs[CACHE]):
            return "a copy of the model rides along, and not every layer has keys and values in one place of the cache"
        if any(one is None or one.ndim != 4 for one in (mask.values() if isinstance(mask, Mapping) else [mask])):
            return "a copy of the model rides along, and the mask [B, 1, 1, K] of the cache did not come with the pass"
        return None

    def plan(self, plan: Plan, stage: Stage, count: int) -> Plan:
        """The plan of both for a pass of `count` tokens: the model's, which the branch carries or not, and the branch's."""
        fork = self.fork
        branch = torch.arange(self.batch * self.parts) >= self.batch
        carrying = None if fork.branch.carries else ~branch
        own = fork.branch.edits(Step(fork.layout, stage.start, count))
        found: dict[int, LayerPlan] = {}
        for layer in sorted(plan.keys() | own.keys()):
            mine, theirs = plan.get(layer, LayerPlan()), LayerPlan.of(own.get(layer, ())).on(stage.part(layer))
            edits = [self._wide(edit, carrying, count) for edit in mine.edits]
            found[layer] = LayerPlan.of([*edits, *(self._wide(edit, branch, count) for edit in theirs.edits)])
        return found

    def _wide(self, edit: Edit, where: Tensor | None, count: int) -> Edit:
        """The same edit in a batch of both, in the rows `where` [B + N]; None: in all."""

        def wide(value: Tensor, neutral: float = 0) -> Tensor:
            value = value.expand(self.batch, *value.shape[1:]).repeat(self.parts, *[1] * (value.ndim - 1))
            if where is None:
                return value
            return value.masked_fill(~where.to(value.device).view(-1, *[1] * (value.ndim - 1)), neutral)

        if isinstance(edit, Gain) and isinstance(edit.factor, Tensor):
            return replace(edit, factor=wide(edit.factor, 1))
        if isinstance(edit, Bias):
            return Bias(wide(edit.bias))
        if isinstance(edit, Shift):
            return Shift(wide(edit.offset if edit.offset.ndim == 3 else edit.offset[None]))
        if isinstance(edit, Disperse):
            return Disperse(wide(edit.heads))
        if not isinstance(edit, Mass | Reweight):
            return edit
        rows = edit.rows
        if rows is not None or where is not None:
            named = torch.ones(1, count, dtype=torch.bool) if rows is None else rows.active
            rows = Rows(0, count, wide(named))
        if isinstance(edit, Reweight):
            change = ByPart(edit.change, self.parts)
            return replace(edit, change=change, rows=rows, along=lambda: tuple(wide(one) for one in edit.along()))
        basis = None if edit.basis is None else lambda: wide(edit.basis())  # type: ignore[misc]
        groups, rule = lambda: wide(edit.groups()), ByPart(edit.rule, self.parts)
        return replace(edit, groups=groups, rule=rule, basis=basis, rows=rows)

    # ---- a pass ------------------------------------------------------------------------------------------------------

    def arguments(self, kwargs: Mapping[str, Any], start: int) -> dict[str, Any]:
        """The arguments of a pass of both, whose first token is at `start`, from those of the model's."""
        if not self.holds:
            self._begin(kwargs[CACHE], start)
        self._follow(kwargs[CACHE])
        found = {**kwargs, CACHE: self.cache, "return_dict": True}
        for name, value in kwargs.items():
            if name == MASK:
                found[name] = (
                    {kind: self._mask(one) for kind, one in value.items()}
                    if isinstance(value, Mapping)
                    else self._mask(value)
                )
            elif isinstance(value, Tensor):
                dim = -2 if name == "position_ids" else 0
                found[name] = torch.cat([value] * self.parts, dim) if value.shape[dim] == self.batch else value
        return found

    def _mask(self, given: Tensor) -> Tensor:
        """Which keys the rows of both see, from what the model's do [B, 1, q, K]."""
        branch, fork = torch.cat([given] * (self.parts - 1)), self.fork
        if fork.branch.carries:
            return torch.cat([given, branch])
        never = False if given.dtype == torch.bool else torch.finfo(given.dtype).min
        valid, length = fork.cache.valid.to(given.device)[:, None, None], fork.layout.length
        seen = torch.zeros_like(valid, dtype=given.dtype) if never else valid
        seen = seen.masked_fill(~valid, never).expand(-1, -1, given.shape[2], -1)
        pad = torch.nn.functional.pad
        first = pad(seen[..., :length], (0, max(0, length - seen.shape[-1])), value=never)
        branch = torch.cat([first, branch[..., length:]], dim=-1)
        if not self._extra:
            return torch.cat([given, branch])
        last = pad(seen[..., length:], (0, self._extra + length - seen.shape[-1]), value=never)
        return torch.cat([pad(given, (0, self._extra), value=never), torch.cat([branch, last], dim=-1)])

    def parted(self, output: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Tensor]:
        """The model's output, and the branch's logits [N, T, V], of a pass of both."""
        base: dict[str, Any] = {"logits": output.logits[: self.batch], CACHE: kwargs[CACHE]}
        if output.get("hidden_states") is not None:
            base["hidden_states"] = tuple(hidden[: self.batch] for hidden in output.hidden_states)
        return type(output)(**{**output, **base}), output.logits[self.batch :]

    # ---- the cache ---------------------------------------------------------------------------------------------------

    def _begin(self, cache: Any, start: int) -> None:
        """Lay the branch's keys and values beside the first `start` of the model's."""
        own, length = self.fork.cache, self.fork.layout.length
        self._kept = frozenset(own.prompt)
        if not self.fork.branch.carries:
            self._extra = -(min(0, length - own.length) // ROOM) * ROOM
        self.cache = copy.copy(cache)  # it counts its tokens with the caller's
        self.cache.layers = [copy.copy(layer) for layer in cache.layers]
        self._follow(cache)
        for number, layer in enumerate(self.cache.layers):
            prompt, grown = own.prompt.get(number), own.grown.get(number)
            for one, wide in enumerate(compat.held(layer) or ()):
                branch, total = wide[self.batch :], wide.shape[2] - self._extra
                branch[:, :, :start] = wide[: self.batch, :, :start].repeat(self.parts - 1, 1, 1, 1)
                if prompt is not None:
                    first, last = prompt[one][:, :, :length], prompt[one][:, :, length:]
                    branch[:, :, : first.shape[2]] = first
                    branch[:, :, total : total + last.shape[2]] = last
                if grown is not None:
                    branch[:, :, self._grown : self._grown + grown[one].shape[2]] = grown[one]
        own.clear()

    @property
    def _grown(self) -> int:
        """The column of the first key that has grown behind the branch's prompt."""
        return self.fork.cache.length if self.fork.branch.carries else self.fork.layout.length

    def _follow(self, cache: Any) -> None:
        """Hold the model's rows for the caller's cache; a beam search puts others in their place."""
        for number, (mine, both) in enumerate(zip(cache.layers, self.cache.layers, strict=True)):
            held, views = compat.held(mine), self._views.get(number)
            assert held is not None
            if views is not None and held[0] is views[0] and held[1] is views[1]:
                continue
            if views is None:
                batch, total = self.batch * self.parts, held[0].shape[2] + self._extra
                compat.put(both, *(one.new_zeros(batch, one.shape[1], total, one.shape[3]) for one in held))
            wide = compat.held(both)
            assert wide is not None
            keys, values = (
                one[: self.batch, :, : old.shape[2]].copy_(old) for one, old in zip(wide, held, strict=True)
            )
            compat.put(mine, keys, values)
            self._views[number] = keys, values

    def leave(self, stop: int) -> None:
        """Give the branch its own keys and values back, those of the tokens before `stop`."""
        if not self.holds:
            return
        own, length = self.fork.cache, self.fork.layout.length
        for number, layer in enumerate(self.cache.layers):
            branch = [wide[self.batch :] for wide in compat.held(layer) or ()]
            if number in self._kept:
                far = branch[0].shape[2] - self._extra
                ends = slice(0, min(own.length, length)), slice(far, far + max(0, own.length - length))
                keys, values = (torch.cat([one[:, :, end] for end in ends], dim=2) for one in branch)
                own.prompt[number] = keys, values
            if number >= self.fork.branch.first and stop > self._grown:
                keys, values = (one[:, :, self._grown : stop] for one in branch)
                own.grown[number] = keys, values
        self.clear()

    def select(self, rows: Tensor) -> None:
        """Take these of the branch's rows."""
        for layer in self.cache.layers if self.holds else ():
            for wide in compat.held(layer) or ():
                wide[self.batch :] = wide[self.batch :].index_select(0, rows.to(wide.device))

    def clear(self) -> None:
        """Let go of the cache of both."""
        self.cache = None
        self._views.clear()


@dataclass(frozen=True)
class ByPart(Rule):
    """A rule about the rows of a batch, for a batch of `parts` such, one below the other."""

    function: Any
    parts: int

    def __call__(self, *given: Any) -> Tensor:
        each = [one.chunk(self.parts) if isinstance(one, Tensor) else (one,) * self.parts for one in given]
        return torch.cat([self.function(*own) for own in zip(*each, strict=True)])
