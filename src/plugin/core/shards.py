"""The heads of this process, where transformers' tensor parallel plan spreads a model over several.

Process r of n computes the r-th part of every layer's query heads and key heads; the attention function sees no others.
Edits speak of all heads of the model. `Shard.edit` makes of such an edit the same one for the heads at hand: factors,
biases, masks and offsets are cut; a function that may compare heads, and a probe, gets those of all processes, gathered,
and what it answers is cut. Every process asks the same functions the same, so all of them decide alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import UnsupportedModelError
from . import compat
from .edits import Add, Bias, Disperse, Edit, Gain, Mass, OutputProbe, Reweight, Shift, WeightProbe

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
CUT = "colwise"  # the style of a projection that gives a process its own heads
WHOLE = (None, "replicate", "colwise_gather_output", "colwise_rep")  # those that give it all
MEND = "load it with distributed_config=DistributedConfig(tp_size=N), or with device_map='auto'"


@dataclass(frozen=True)
class Shard:
    """Heads `first : first + count` of each layer.

    group: the processes, in the order of their heads, that hold the others, as many each.
    """

    first: int
    count: int
    group: Any

    def cut(self, values: Tensor, dim: int) -> Tensor:
        """The part of values of all heads; values that are the same for all heads (size 1) as they are."""
        _check_gradient(values)
        return values if values.shape[dim] == 1 else values.narrow(dim, self.first, self.count)

    def gather(self, values: Tensor, dim: int) -> Tensor:
        """Values of all heads, from those at hand."""
        _check_gradient(values)
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(parts, values, group=self.group)
        return torch.cat(parts, dim)

    def edit(self, edit: Edit) -> Edit:
        """The same edit for the heads at hand."""
        if isinstance(edit, Gain):
            factor = edit.factor
            return replace(
                edit, factor=self.cut(factor, 1) if isinstance(factor, Tensor) else self._through(factor, 2, 1)
            )
        if isinstance(edit, Bias):
            return Bias(self.cut(edit.bias, 1))
        if isinstance(edit, Shift):
            return Shift(self.cut(edit.offset, -2))
        if isinstance(edit, Disperse):
            return Disperse(self.cut(edit.heads, 1))
        if isinstance(edit, Mass):
            return replace(edit, rule=self._through(edit.rule, 1, 1))
        if isinstance(edit, Reweight):
            return edit if edit.headwise else replace(edit, change=self._changed(edit.change))
        if isinstance(edit, Add):
            return Add(self._through(edit.value, 2, 2))
        if isinstance(edit, OutputProbe):
            see = edit.see
            return OutputProbe(lambda output: see(self.gather(output, 2)))
        if isinstance(edit, WeightProbe):
            look = edit.see
            return replace(edit, see=lambda weights, keys, first: look(self.gather(weights, 1), keys, first))
        return edit  # of the hidden state, which every process holds whole

    def _through(self, function: Callable[[Tensor], Tensor], given: int, answered: int) -> Callable[[Tensor], Tensor]:
        """A function of all heads for those at hand; they stand in these dimensions of its argument and its result."""
        return lambda values: self.cut(function(self.gather(values, given)), answered)

    def _changed(self, change: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda weights, logits, *rest: self.cut(
            change(self.gather(weights, 1), self.gather(logits, 1), *rest), 1
        )


@dataclass(frozen=True)
class Fewer(Shard):
    """The `count` heads of a layer that has fewer than the `most` that another has.

    Edits speak of the first ones only, and a function of all heads gets zeros for those that are missing.
    """

    most: int = 0

    def cut(self, values: Tensor, dim: int) -> Tensor:
        return values if values.shape[dim] == 1 else values.narrow(dim, self.first, self.count)

    def gather(self, values: Tensor, dim: int) -> Tensor:
        missing = [*values.shape]
        missing[dim] = self.most - self.count
        return torch.cat([values, values.new_zeros(missing)], dim)


def _check_gradient(values: Tensor) -> None:
    """Raises UnsupportedModelError for values that have a gradient: it would be that of the heads at hand alone."""
    if values.requires_grad:
        raise UnsupportedModelError(
            "the model is spread over processes by its heads, and what is done to them has no gradient there: run it under"
            " torch.no_grad(), or in one process"
        )


def find_shard(model: nn.Module, layers: Sequence[nn.Module], heads: int, key_heads: int) -> Shard | None:
    """Which heads the attention modules `layers` compute in this process; None for all.

    Raises UnsupportedModelError where the model is spread in a way that edits cannot follow.
    """
    mesh, size = compat.mesh(model), compat.processes(model)
    split = getattr(model.config, "distributed_config", None)
    if mesh is not None:
        for name, reason in (
            ("pp_size", "a process holds some of the layers only"),
            (
                "fsdp_size",
                "its weights are collected in passes that all processes must make alike, and methods add some",
            ),
            ("dp_replicate_size", "its processes must make the same passes, and methods add some"),
        ):
            if (getattr(split, name, None) or 1) > 1:
                raise UnsupportedModelError(f"the model is spread over processes by {name}: {reason}; {MEND}")
    if mesh is None or size == 1:
        if any(hasattr(parameter, "placements") for parameter in model.parameters()):
            raise UnsupportedModelError(
                f"the model's weights are spread over processes (DTensor), but not by transformers' plan: {MEND}"
            )
        return None
    names = {id(module): name for name, module in model.named_modules()}
    plan: dict[str, str] = model.tp_plan  # type: ignore[assignment]
    styles = {
        plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", f"{names[id(layer)]}.{projection}"))
        for layer in layers
        for projection in PROJECTIONS
    }
    if styles <= set(WHOLE):
        return None
    if styles != {CUT}:
        raise UnsupportedModelError(
            f"the tensor parallel plan gives {', '.join(PROJECTIONS)} the styles {sorted(map(str, styles))}: it must cut all"
            f" three by heads ('{CUT}') or none; leave them out of your tp_plan"
        )
    if heads % size or key_heads % size:
        raise UnsupportedModelError(
            f"{heads} query heads and {key_heads} key head{'s'[: key_heads > 1]} cannot be dealt evenly to {size} processes: choose a tp_size"
            " that divides both, or load it with device_map='auto'"
        )
    own = mesh["tp"] if mesh.ndim > 1 else mesh
    count = heads // size
    return Shard(own.get_local_rank() * count, count, own.get_group())
