"""A plain eager run with an edit made the naive way: the model file's own eager weights, changed, times the values.

`Naive` is an attention function for transformers. It asks the eager function of the file that the attention class stands in
for its weights, and changes them by the formula of the edit. Nothing of the package is used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "naive_reference"


@dataclass
class Naive:
    """What is changed: `gain` [B, H] by layer on head outputs, `bias` [B, n] on prompt keys, `change` on weights, or the

    `blind` heads by layer, whose query is zero in the rows from `since` on. `start` is the position of the pass's first row,
    which `running` keeps.
    """

    gain: dict[int, Tensor] = field(default_factory=dict)
    bias: Tensor | None = None
    change: Callable[[Tensor, int, int, Tensor], Tensor] | None = None  # weights, start, offset, sinks' share
    blind: dict[int, list[int]] = field(default_factory=dict)
    since: int = 0
    layers: frozenset[int] = frozenset()
    start: int = 0

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        layer: int = getattr(module, "layer_idx", -1)  # an attention over other things than tokens has none
        eager, mask = _eager(module), attention_mask
        if layer not in self.layers:
            return eager(module, query, key, value, mask, **kwargs)
        count, total = query.shape[2], key.shape[2]
        offset = max(0, self.start + count - total)
        if self.blind.get(layer):
            query = query.clone()
            query[:, self.blind[layer], max(0, self.since - self.start) :] = 0
        if mask is None:
            mask = torch.zeros(1, 1, count, total)
            if count > 1 and kwargs.get("is_causal", getattr(module, "is_causal", True)):
                mask = mask.masked_fill(torch.ones(count, total).triu(1).bool(), torch.finfo(query.dtype).min)
        if self.bias is not None:
            bias = self.bias[:, offset : offset + total]
            mask = mask + nn.functional.pad(bias, (0, total - bias.shape[1]))[:, None, None]
        output, weights = eager(module, query, key, value, mask, **kwargs)
        if self.change is not None:
            if weights is None or weights.shape[-1] != total:
                raise NotImplementedError("the model file's eager function gives no weights")
            values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
            # Some files scale the output by what a sink leaves, and return weights without it.
            bare = torch.matmul(weights, values).transpose(1, 2)
            share = (output * bare).sum(-1, keepdim=True) / bare.square().sum(-1, keepdim=True).clamp(min=1e-30)
            weights = weights * share.transpose(1, 2)
            weights = self.change(weights, self.start, offset, 1 - weights.sum(-1, keepdim=True))
            output = torch.matmul(weights, values).transpose(1, 2).contiguous()
        if layer in self.gain:
            output = output * self.gain[layer][:, None, :, None]
        return output, None


def _eager(module: nn.Module) -> Callable[..., Any]:
    files = [sys.modules[kind.__module__] for kind in type(module).__mro__]
    return next(file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward"))


@contextlib.contextmanager
def running(model: Any, generator: Any, naive: Naive) -> Iterator[None]:
    """The text decoder runs on `naive` inside; passes of `generator` tell it where they start."""
    AttentionInterface.register(NAME, naive)
    AttentionMaskInterface.register(NAME, eager_mask)
    text = model.config.get_text_config(decoder=True)
    before = text._attn_implementation

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        naive.start = 0 if cache is None else int(cache.get_seq_length())

    hook = generator.register_forward_pre_hook(begin, with_kwargs=True)
    text._attn_implementation_internal = NAME
    try:
        yield
    finally:
        text._attn_implementation_internal = before
        hook.remove()
