"""The functions that compute attention without edits: transformers' sdpa, or the eager one of a model's own file."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ...common.errors import UnsupportedModelError
from .compat import VERSION, sdpa_attention_forward

#: What models tell their attention and sdpa of this release takes no notice of: caps of logits, logits of sinks.
UNHEARD = tuple(
    name for name in ("softcap", "s_aux", "sinks") if name not in inspect.signature(sdpa_attention_forward).parameters
)


def sdpa_computes(decoder: nn.Module, attentions: Iterable[nn.Module], name: str | None) -> bool:
    """Whether sdpa computes the attention of a text decoder that was loaded with `name`: it caps no logits and has no sinks.

    A release that is silent about a cap says that it does (Gemma 2 before 5.24); it is not believed where the model was
    loaded with another function.
    """
    if name != "sdpa" and any(_tells_more(type(one)) for one in attentions):  # type: ignore[arg-type]
        return False
    return bool(getattr(decoder, "_supports_sdpa", True))


@functools.cache
def _tells_more(kind: type[nn.Module]) -> bool:
    """Whether the forward of an attention class tells its function what sdpa takes no notice of."""
    constants = getattr(getattr(inspect.unwrap(kind.forward), "__code__", None), "co_consts", ())
    return any(name in UNHEARD for one in constants for name in (one if isinstance(one, tuple) else (one,)))


def sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa. Raises UnsupportedModelError where it would take no notice of what the model tells it."""
    for name in UNHEARD:
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(
                f"sdpa of transformers {VERSION} leaves out the {name} that {type(module).__name__} tells it, so that the model"
                " computes another attention than it was trained with, attached or not: load it with"
                " attn_implementation='eager', or install a newer transformers, which does so of itself"
            )
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


@functools.cache
def own_eager(kind: type[nn.Module]) -> Callable[..., tuple[Tensor, Any]]:
    """The eager attention function of the file that an attention class, or one that it derives from, stands in."""
    files = (sys.modules.get(one.__module__) for one in kind.__mro__)
    return next(file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward"))  # type: ignore[union-attr]
