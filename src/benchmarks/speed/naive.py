"""DeCoRe as one writes it without a branch engine: two models' worth of passes, two caches. What `bench` compares with.

The prompt but its last token is read once, its cache is copied, and each step then runs the model twice: plain on one
cache, with the masked heads' queries zeroed by hooks on the other. This is how the release decodes, on the same
transformers, the same sdpa and the same machine as the plugin.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...common.errors import ConfigError
from ...plugin.core.compat import CACHE
from ...plugin.core.families import find_family


def check(config: Any) -> None:
    """Raises ConfigError for a configuration that this loop cannot carry out."""
    name, settings = config.decoder or ("no decoder", config)
    if config.methods or name != "decore" or settings.mask != "query" or settings.alpha == "entropy_gain":
        raise ConfigError(f"naive: runs decore alone, with mask query, not {name}: write --methods decore,naive:decore")


@torch.no_grad()
def decode(
    model: Any,
    inputs: Mapping[str, Tensor],
    heads: Sequence[tuple[int, int]],
    settings: Any,
    new_tokens: int,
    tick: Callable[[Tensor], object],
) -> Tensor:
    """Greedy decoding of text prompts [B, n] without padding; `tick` is called with the ids after every token."""
    ids = inputs["input_ids"]
    cache = DynamicCache(config=model.config.get_text_config())
    model(input_ids=ids[:, :-1], **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    masked_cache = copy.deepcopy(cache)
    for _ in range(new_tokens):
        last = ids[:, -1:]
        base = model(input_ids=last, **{CACHE: cache}, use_cache=True).logits[:, -1].float().log_softmax(-1)
        with _queries_zeroed(model, heads):
            weak = model(input_ids=last, **{CACHE: masked_cache}, use_cache=True).logits[:, -1]
        strength: float | Tensor = settings.alpha
        if isinstance(strength, str):
            strength = -(base.exp() * base).sum(-1, keepdim=True)
        scores = (1 + strength) * base - strength * weak.float().log_softmax(-1)
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        tick(ids)
    return ids


@contextmanager
def _queries_zeroed(model: nn.Module, heads: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Zero the given heads' queries: a query of zero stays zero under the rotary embedding."""
    family = find_family(model)
    size = model.config.get_text_config().head_dim  # type: ignore[operator, union-attr]
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)

    def zero(chosen: list[int]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output.view(*output.shape[:-1], -1, size)[..., chosen, :] = 0
            return output

        return hook

    layers = family.layers(model)
    with ExitStack() as hooks:
        for layer, chosen in by_layer.items():
            attention: Any = family.attention(layers[layer])
            hooks.callback(attention.q_proj.register_forward_hook(zero(chosen)).remove)
        yield
