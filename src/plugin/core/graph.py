"""Passes that keep a graph from some layer on, so that a decoder can take gradients of their logits.

`generate` runs without gradients; they are switched on behind the layers below, whose outputs then are constants, and
off again with the pass. What a caller keeps of it, its cache above all, holds values and no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import UnsupportedModelError
from . import compat


def obstacle(model: nn.Module) -> str | None:
    """Why no gradients can be taken through a model, with the mend; None if they can."""
    method = compat.quantised(model)
    narrow = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype.itemsize < 2}
    if narrow or method is not None:
        kind = ", ".join(sorted(narrow)) or f"quantised ({method})"
        return f"its weights are {kind}, whose kernels give none: load it in bfloat16, float16 or float32"
    if compat.processes(model) > 1:
        return (
            "it is spread over processes by its heads (tensor parallel), which they do not cross: use device_map='auto'"
        )
    if compat.compiled(model):
        return "it is compiled, which fixes the graph beforehand: attach to the model as it was before torch.compile"
    return None


def keeping_graph(original: Callable[..., Any], kwargs: Mapping[str, Any], layer: nn.Module) -> Any:
    """A forward pass whose logits, in float32, have a graph down to what enters `layer`. All else of the output has none."""
    if torch.is_inference_mode_enabled():
        raise UnsupportedModelError(
            "gradients are needed and torch.inference_mode is on, which forbids them: use torch.no_grad instead"
        )
    cache = kwargs.get(compat.CACHE)
    if compat.quantised_cache(cache):
        raise UnsupportedModelError(
            "gradients are needed and a quantised cache gives none: leave cache_implementation='quantized' out"
        )

    def switch_on(module: nn.Module, args: tuple[Any, ...]) -> None:
        torch.set_grad_enabled(True)

    with torch.no_grad():
        hook = layer.register_forward_pre_hook(switch_on)
        try:
            output = original(**kwargs)
            logits = output.logits.float()
        finally:
            hook.remove()
            compat.cut_graph(cache)
    compat.cut_graph(output.get(compat.CACHE))
    return type(output)(**{**{name: _values(value) for name, value in output.items()}, "logits": logits})


def _values(value: Any) -> Any:
    """A tensor, or tensors in a tuple, without their graph."""
    if isinstance(value, tuple):
        return tuple(map(_values, value))
    return value.detach() if isinstance(value, Tensor) else value
