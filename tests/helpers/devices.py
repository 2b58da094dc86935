"""A device that this machine lacks: tensors say that they are on it, everything is computed here.

Unlike `torch.device("meta")` and fake tensors, which hold no values, this follows a prompt through code that looks at its
tokens and branches on them. What it proves is that no operation mixes devices, hence that each tensor is made where the
model is, and `Watch` counts the values that a decode step waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

NEAR, FAR = torch.device("cpu"), torch.device("cuda", 1)
Tensor = torch.Tensor

#: What needs a value of a tensor, so that the host waits for the device.
WAITS = {
    getattr(Tensor, name): name
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")
} | {torch.nonzero: "nonzero", torch.equal: "equal", Tensor.equal: "equal", torch.masked_select: "masked_select"}


class TwoDevices(TorchFunctionMode):
    """Lets tensors say that they are on a device that this machine lacks. They carry that in an attribute; everything is

    computed here, but an operation on tensors of two devices fails as it would on real ones.

    waits: while it is a counter, what the host waited for of tensors that are not on the CPU.
    """

    waits: Counter[str] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return place(args[0])
        if func == Tensor.is_cuda.__get__:
            return place(args[0]).type == "cuda"
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if self.waits is not None and _waits(func, args, kwargs) and any(place(one) != NEAR for one in given):
            self.waits[WAITS.get(func) or getattr(func, "__name__", str(func))] += 1
        if func is torch.autograd.grad:
            slopes = func(*args, **kwargs)
            return tuple(self._put(slope, place(one), []) for slope, one in zip(slopes, args[1], strict=True))
        home = kwargs.get("device")
        if func is Tensor.to:
            home = next((a for a in (*args[1:], home) if isinstance(a, str | torch.device)), None)
            if len(args) > 1 and isinstance(args[1], Tensor):
                home = place(args[1])
        elif func is Tensor.cpu:
            home = NEAR
        elif func in (Tensor.__getitem__, Tensor.__setitem__, Tensor.copy_):
            others = given[1:] if func is not Tensor.copy_ else ()  # positions may lie on the CPU
            assert all(place(other) in (NEAR, place(args[0])) for other in others), f"{func}: {list(map(place, given))}"
            home = place(args[0])
        if home is None:
            homes = {place(one) for one in given if one.ndim}  # a single number may come from the CPU
            assert len(homes) < 2, f"{func} of tensors on {homes}"
            home = homes.pop() if homes else next((there for one in given if (there := place(one)) != NEAR), NEAR)
        here = tree_map(lambda leaf: NEAR if isinstance(leaf, torch.device) else leaf, (args, kwargs))
        return tree_map(lambda leaf: self._put(leaf, torch.device(home), given), func(*here[0], **here[1]))

    @staticmethod
    def _put(leaf: Any, home: torch.device, given: list[Tensor]) -> Any:
        if not isinstance(leaf, Tensor) or place(leaf) == home:
            return leaf
        if any(leaf is one for one in given):
            leaf = leaf.view(leaf.shape)
        leaf.__dict__["place"] = home
        return leaf


def _waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the host waits for the device: for a value, or for how many places a mask marks."""
    if func in WAITS or (func is torch.where and len(args) + len(kwargs) == 1):
        return True
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        masks = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(one, Tensor) and one.dtype == torch.bool and one.ndim for one in masks)
    return func is Tensor.to and any(isinstance(a, str | torch.device) and torch.device(a) == NEAR for a in args[1:])


def place(tensor: Tensor) -> torch.device:
    """Where a tensor says it is."""
    return tensor.__dict__.get("place", NEAR)


def put(one: Any, home: torch.device = FAR) -> Any:
    """Let the weights of a module, or the tensors of a table, say that they are there; returns it."""
    held = [*one.parameters(), *one.buffers()] if isinstance(one, nn.Module) else [*one.values()]
    for tensor in held:
        tensor.__dict__["place"] = home
    return one


@contextmanager
def between(layers: Sequence[nn.Module], begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Call `begin` before the first layer of each decode step inside, and `end` behind its last."""

    def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[-2] == 1:
            begin()

    hooks = [
        layers[0].register_forward_pre_hook(first, with_kwargs=True),
        layers[-1].register_forward_hook(lambda *_: end(), always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
