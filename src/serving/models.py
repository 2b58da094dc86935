"""vLLM's model classes with a plan inside: factors on head outputs, and the copy that a decoder contrasts with.

From the first layer that differs, each layer runs over twice the rows: the model's, then the copy's. Attention alone is
done apart, in two of vLLM's layers which share its block table; a request stays one sequence, so that batching, chunked
prompts and preemption need nothing of their own. Behind the last layer a row's two hidden states lie beside each other,
until the logits of both become one score.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.models.utils import extract_layer_index

from ..common.errors import UnsupportedModelError
from ..plugin.branches.decoder import DECODERS
from .plan import Copy, Plan
from .rows import PLAIN, SEEING, TEXT, Rows
from .slices import of_rank

PREFIX = "Sightline"
KEY = "sightline"  # of vLLM's additional_config
BESIDE = "_copy"  # behind the name of a layer that holds the copy's keys and values


class EditedAttention(nn.Module):
    """vLLM's attention of a layer, its head outputs scaled, and the copy's attention beside it if the layer has one.

    gains: factors [3, H] by the kind of row; None for none. marks: the copy's heads [H] (`Copy.heads`). H heads are of
    this process.
    """

    gains: Tensor | None
    marks: Tensor | None

    def __init__(self, base: Attention, rows: Rows, gains: Tensor | None, marks: Tensor | None, copied: Copy | None):
        super().__init__()
        self.base, self.rows = base, rows
        # What vLLM reads off an attention layer.
        self.layer_name, self.impl = base.layer_name, base.impl
        self.num_heads, self.num_kv_heads, self.head_size = base.num_heads, base.num_kv_heads, base.head_size
        self.register_buffer("gains", gains, persistent=False)
        self.register_buffer("marks", None if marks is None or not marks.any() else marks, persistent=False)
        self.change = None if copied is None else copied.change
        self.beside = None if copied is None else _attention_beside(base)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.beside is None:
            return self._scaled(self.base(query, key, value))
        count = query.shape[0] // 2
        theirs = query[count:]
        changed = self._changed(count)
        if changed is not None and self.change == "disperse":
            theirs = torch.where(changed, 0, theirs)
        mine = self._scaled(self.base(query[:count], key[:count], value[:count]))
        other = self._scaled(self.beside(theirs.contiguous(), key[count:].contiguous(), value[count:].contiguous()))
        if changed is not None and self.change == "silence":
            other = torch.where(changed, 0, other)
        elif changed is not None and self.change == "add":
            assert self.marks is not None
            factors = self.marks.repeat_interleave(self.head_size).to(mine)
            other = torch.where(changed, other + mine * factors, other)
        return torch.cat([mine, other])

    def _scaled(self, output: Tensor) -> Tensor:
        if self.gains is None:
            return output
        factors = self.gains[self.rows.kind[: output.shape[0]]].to(output)
        return (output.view(-1, self.num_heads, self.head_size) * factors[..., None]).view(output.shape)

    def _changed(self, count: int) -> Tensor | None:
        """Which numbers of the copy's rows belong to heads that differ [count, H * d]; None for none."""
        if self.marks is None:
            return None
        heads = (self.marks != 0).repeat_interleave(self.head_size)
        return self.rows.changed[:count, None] & heads


def _attention_beside(base: Attention) -> Attention:
    """A layer of the same shape, with keys and values of its own."""
    for name, present in (
        ("attention sinks", base.has_sink),
        ("capped attention logits", bool(getattr(base.impl, "logits_soft_cap", None))),
        ("linear attention biases", getattr(base.impl, "alibi_slopes", None) is not None),
        ("shared keys", base.kv_sharing_target_layer_name is not None),
    ):
        if present:
            raise UnsupportedModelError(
                f"layer {base.layer_name} has {name}, which the copy of a decoder is not proven with: serve it with methods"
                " alone, or generate with transformers"
            )
    return Attention(
        base.num_heads,
        base.head_size,
        base.impl.scale,
        num_kv_heads=base.num_kv_heads,
        cache_config=get_current_vllm_config().cache_config,
        per_layer_sliding_window=base.sliding_window,
        prefix=base.layer_name + BESIDE,
    )


def _decoder_layers(model: nn.Module) -> Iterator[tuple[int, nn.Module, nn.Module, Attention]]:
    """Of each text layer its number, the layer, the module that holds its attention, and that."""
    named = dict(model.named_modules())
    for name, module in list(named.items()):
        if isinstance(module, Attention):
            holder, _, attribute = name.rpartition(".")
            if attribute != "attn":
                continue
            layer = holder.rpartition(".")[0]
            yield extract_layer_index(module.layer_name), named[layer], named[holder], module


class _Doubled:
    """Before a layer: positions for both kinds of rows, and before the first that differs, the hidden states twice."""

    def __init__(self, first: bool):
        self.first = first

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if "position_embeddings" in kwargs:  # a layer of transformers: hidden states [1, T, hidden] and keywords
            kwargs = dict(kwargs)
            kwargs["position_embeddings"] = tuple(_twice(one, -2) for one in kwargs["position_embeddings"])
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = _twice(kwargs["position_ids"], -1)
            return ((_twice(args[0], 1), *args[1:]) if self.first else args), kwargs
        positions, hidden, residual = args  # a layer of vLLM's own: [.., T], [T, hidden], [T, hidden] or None
        if self.first:
            hidden, residual = _twice(hidden, 0), None if residual is None else _twice(residual, 0)
        return (_twice(positions, -1), hidden, residual), kwargs


def _twice(tensor: Tensor, dim: int) -> Tensor:
    return torch.cat([tensor, tensor], dim)


def install(model: nn.Module, plan: Plan, size: int) -> Rows:
    """Put a plan into a model that vLLM has just built; `size`: the most rows of a pass.

    Raises UnsupportedModelError where its layers or heads are not those of the plan.
    """
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    rows = Rows(plan, size)
    found = sorted(_decoder_layers(model), key=lambda one: one[0])
    if [number for number, *_ in found] != list(range(plan.layers)) or any(
        attention.num_heads * ranks != plan.heads for *_, attention in found
    ):
        shape = f"{len(found)} layers of {found[0][3].num_heads * ranks if found else 0} heads"
        raise UnsupportedModelError(
            f"vLLM runs '{plan.model}' as {type(model).__name__} with {shape}, and the plan is for {plan.layers} layers of"
            f" {plan.heads}: use model_impl='transformers', or generate with transformers"
        )
    gains = torch.stack([plan.table((), 1.0), plan.table(plan.gains, 1.0), plan.table(plan.seen, 1.0)], dim=1)
    assert (PLAIN, TEXT, SEEING) == (0, 1, 2)
    copied = plan.copied
    marks = None if copied is None else of_rank(plan.table(copied.heads, 0.0), rank, ranks)
    for number, layer, holder, attention in found:
        own = of_rank(gains[number], rank, ranks)
        rides = copied is not None and number >= copied.first
        if rides:
            assert copied is not None
            layer.register_forward_pre_hook(_Doubled(number == copied.first), with_kwargs=True)
        if rides or bool((own != 1).any()):
            holder.attn = EditedAttention(
                attention,
                rows,
                own if bool((own != 1).any()) else None,
                marks[number] if rides and marks is not None else None,
                copied if rides else None,
            )
    return rows


@cache
def served(base: type[nn.Module]) -> type[nn.Module]:
    """The class of models like `base` that carry the plan in vLLM's `additional_config`."""

    class Served(base):  # type: ignore[misc, valid-type]
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.plan = Plan.model_validate(vllm_config.additional_config[KEY]["plan"])
            size = vllm_config.scheduler_config.max_num_batched_tokens
            graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
            self.sightline_rows = install(self, self.plan, max(size, graphs))
            if self.plan.copied is not None:
                decoder = DECODERS.find(self.plan.copied.decoder)
                self._combined, self._settings = decoder.combined, decoder.config(**self.plan.copied.settings)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            hidden = super().forward(*args, **kwargs)
            if self.plan.copied is None:
                return hidden
            mine, other = hidden.chunk(2)
            mitigated = (self.sightline_rows.kind[: len(mine), None] != PLAIN).to(hidden)
            return torch.cat([mine, other, mitigated], dim=-1)

        def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
            if self.plan.copied is None:
                return super().compute_logits(hidden_states, *args, **kwargs)
            size = hidden_states.shape[-1] // 2
            both = torch.cat([hidden_states[:, :size], hidden_states[:, size : 2 * size]])
            logits = super().compute_logits(both, *args, **kwargs)
            if logits is None:  # another process has them all
                return None
            base, weak = logits.float().chunk(2)
            return torch.where(hidden_states[:, -1:] > 0, self._combined(self._settings, base, weak), base)

    Served.__name__ = Served.__qualname__ = PREFIX + base.__name__
    Served.__module__ = __name__
    return Served


def __getattr__(name: str) -> Any:
    """`SightlineX` for every model class X of vLLM's: it looks them up by name, in processes of its own."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    known = ModelRegistry.models.get(name.removeprefix(PREFIX))
    if known is None:
        raise AttributeError(f"vLLM has no model class {name.removeprefix(PREFIX)!r}")
    return served(known.load_model_cls())
