"""Decode steps in a compiled graph, where `generate` compiles: one graph for each kind of plan, whatever the prompt.

What a prompt decides are tensors in buffers, laid out along the keys of the static cache; the graph has the rules. A buffer
keeps its address from prompt to prompt, so that a CUDA graph reads the new values where it read the old ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import compat
from .attention import LayerPlan, Plan, Stage
from .edits import Bias, Disperse, Edit, Gain, Mass, Reweight, Rule, Shift

GRAPHS = "_sightline_graphs"  # attribute of a model that `generate` has compiled while it was attached
_NUMBERS = itertools.count()


class Companion(Protocol):
    """What a compiled pass asks of a branch whose rows are rows of it (`branches/joint.py`)."""

    def obstacle(self, kwargs: Mapping[str, Any]) -> str | None:
        """Why there can be no such pass with these arguments; None where there can."""

    def plan(self, plan: Plan, stage: Stage, count: int) -> Plan:
        """The plan of both, from the model's."""

    def arguments(self, kwargs: Mapping[str, Any], start: int) -> dict[str, Any]:
        """The arguments of both, from the model's, for a pass whose first token is at `start`."""


class MadeOf:
    """What a plan was laid out for, by identity; of the cache no more than that is kept."""

    def __init__(self, stage: Stage, cache: Any, count: int, companion: Companion | None, config: Any):
        held = [compat.held(layer) for layer in getattr(cache, "layers", ())]
        places = [stage.keys(count, pair[0].shape[2]).prompt for pair in held if pair is not None]
        self._values = config, [*stage.plan], places
        self._objects = [weakref.ref(one) for one in (cache, companion, *stage.plan.values()) if one is not None]

    def same(self, other: MadeOf | None) -> bool:
        """Whether the other one was made of the same."""
        if other is None or self._values != other._values or len(self._objects) != len(other._objects):
            return False
        return all(one() is before() for one, before in zip(self._objects, other._objects, strict=True))


def uncompilable(plan: Plan, stage: Stage, cache: Any) -> str | None:
    """Why a decode step of this plan cannot be compiled; None where it can."""
    if stage.shard is not None:
        return "the model is spread over processes by its heads"
    layers = len(getattr(cache, "layers", ()))
    for layer, edits in plan.items():
        if layer >= layers or compat.held(cache.layers[layer]) is None:
            return f"layer {layer} has no keys of its own in the cache"
        for edit in edits.edits:
            if not _of_tensors(edit):
                return f"a {type(edit).__name__} of layer {layer} is no matter of tensors"
    return None


def _kind(plan: Plan) -> str:
    """The rules of a plan, without what they are applied to."""
    return str({layer: [_named(edit) for edit in edits.edits] for layer, edits in plan.items()})


def _named(edit: Edit) -> str:
    """What an edit is, apart from its tensors."""
    rule = getattr(edit, "rule", getattr(edit, "change", None))
    names = [type(edit).__name__, "" if getattr(edit, "rows", None) is None else "in rows"]
    while isinstance(rule, Rule):
        names.append(type(rule).__name__)
        rule = getattr(rule, "function", None)
    return " ".join([*names, getattr(rule, "__qualname__", "")])


def _of_tensors(edit: Edit) -> bool:
    """Whether an edit's effect is told by tensors and by a rule without a memory."""
    if isinstance(edit, Gain):
        return isinstance(edit.factor, Tensor) and edit.rows is None
    return isinstance(edit, Mass | Bias | Shift | Disperse) or (isinstance(edit, Reweight) and edit.headwise)


class StandIn:
    """What stands in for a layer's forward. A graph knows it by identity, so that one serves all attachments.

    stage: that of the attachment.
    """

    stage: Stage


@dataclass
class Graphs:
    """The compiled passes of one model, the buffers that they read, and what stands in for its layers in them."""

    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    stand_ins: dict[nn.Module, StandIn] = field(default_factory=dict)
    buffers: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, or the model from a file, has none yet."""
        return Graphs, ()

    def function(
        self, model: nn.Module, plan: Plan, aboard: bool, config: Any, original: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The model's forward, compiled with this configuration for plans of this kind, with a branch's rows or without."""
        options = config.to_dict()
        key = f"{_kind(plan)} {aboard} {options}"
        if key not in self.functions:
            in_place = {module: module.__dict__.get("forward") for module in model.modules()}
            self.stand_ins |= {module: one for module, one in in_place.items() if isinstance(one, StandIn)}
            self.functions[key] = torch.compile(_apart(original), **options)
        return self.functions[key]

    def laid_out(self, plan: Plan, stage: Stage, cache: Any, count: int) -> dict[int, LayerPlan]:
        """The plan of a pass of `count` tokens, its tensors in buffers along the keys of each layer of the cache."""
        return {layer: self._layer(layer, edits, stage, cache, count) for layer, edits in plan.items()}

    def _layer(self, layer: int, edits: LayerPlan, stage: Stage, cache: Any, count: int) -> LayerPlan:
        keys, _ = compat.held(cache.layers[layer])  # type: ignore[misc]
        total, device = keys.shape[2], keys.device
        known = stage.keys(count, total)

        def keep(value: Tensor, *place: Any) -> Tensor:
            return self._buffer((layer, *place), value.to(device))

        def along(value: Tensor, dim: int, *place: Any) -> Tensor:
            value = value.movedim(dim, -1)[..., known.prompt]
            return keep(nn.functional.pad(value, (0, total - value.shape[-1])).movedim(-1, dim), *place)

        def rule(given: Any, *place: Any) -> Any:
            if not isinstance(given, Rule):
                return given
            fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}  # type: ignore[arg-type]
            return replace(
                given,  # type: ignore[type-var]
                **{
                    name: keep(one, *place, name) if isinstance(one, Tensor) else rule(one, *place, name)
                    for name, one in fields.items()
                },
            )

        def lay(number: int, edit: Edit) -> Edit:
            place = type(edit).__name__, number
            if isinstance(edit, Mass | Reweight) and edit.rows is not None:
                edit = replace(edit, rows=replace(edit.rows, active=keep(edit.rows.active, *place, "rows")))
            if isinstance(edit, Gain):
                return Gain(keep(edit.factor, *place))  # type: ignore[arg-type]
            if isinstance(edit, Shift):
                return Shift(keep(edit.offset, *place))
            if isinstance(edit, Disperse):
                return Disperse(keep(edit.heads, *place))
            if isinstance(edit, Bias):
                return Bias(along(edit.bias, -1, *place))
            if isinstance(edit, Mass):
                groups = _Given(along(edit.groups(), 1, *place, "groups"))
                basis = None if edit.basis is None else _Given(along(edit.basis(), 1, *place, "basis"))
                return replace(edit, groups=groups, basis=basis, idle=None, rule=rule(edit.rule, *place))
            assert isinstance(edit, Reweight)
            known_of = _Given(tuple(along(t, 1, *place, i) for i, t in enumerate(edit.along())))
            return replace(edit, along=known_of, change=rule(edit.change, *place))

        laid = LayerPlan.of([lay(number, edit) for number, edit in enumerate(edits.edits)])
        return replace(laid, answer=keep(torch.as_tensor(known.answer), "answer"))

    def _buffer(self, place: tuple[Any, ...], value: Tensor) -> Tensor:
        held = self.buffers.get((*place, value.shape, value.dtype, value.device))
        if held is None:
            held = value.clone(memory_format=torch.contiguous_format)
            torch._dynamo.mark_static_address(held)
            self.buffers[(*place, value.shape, value.dtype, value.device)] = held
        else:
            held.copy_(value)
        return held


@dataclass(frozen=True)
class _Given:
    """A function that returns what it was made with."""

    value: Any

    def __call__(self) -> Any:
        return self.value


def graphs_of(model: nn.Module) -> Graphs:
    """The model's graphs; they outlive attachments, which come and go around single calls."""
    return model.__dict__.setdefault(GRAPHS, Graphs())


def stand_ins(model: nn.Module) -> Mapping[nn.Module, StandIn]:
    """What stood in for layers when the model was compiled, for the next attachment to put in place again."""
    graphs = model.__dict__.get(GRAPHS)
    return {} if graphs is None else graphs.stand_ins


def _apart(original: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own, by which torch counts how often it was compiled."""

    def step(**kwargs: Any) -> Any:
        return original(**kwargs)

    code = step.__code__.replace(co_name=f"step_{next(_NUMBERS)}")
    return types.FunctionType(code, step.__globals__, code.co_name, None, step.__closure__)
