"""vLLM's model classes with a plan inside: factors on head outputs, and the copy that a decoder contrasts with.

From the first layer that differs, each layer runs over twice the rows: the model's, then the copy's. Attention alone is
done apart (`attention.py`), in two of vLLM's layers which share its block table; a request stays one sequence, so that
batching, chunked prompts and preemption need nothing of their own. Behind the last layer a row's two hidden states lie
beside each other, until the logits of both become one score.

A copy that sees other pictures gets its own features of them, [n, 2 hidden] from vLLM's encoder cache, and one that sees
none is hidden their keys and moved forward by as many positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.models.utils import extract_layer_index

from ..common.errors import UnsupportedModelError
from ..plugin.branches.decoder import DECODERS
from .attention import EditedAttention
from .plan import ServedPlan
from .rows import BESIDE, PLAIN, SEEING, TEXT, PassRows, read_beside
from .slices import of_rank

PREFIX = "Sightline"
KEY = "sightline"  # of vLLM's additional_config


def _decoder_layers(model: nn.Module) -> Iterator[tuple[int, nn.Module, nn.Module | None, nn.Module, Attention]]:
    """Of each text layer its number, the layer, the position embedding beside the layers, and attention's holder and self."""
    named = dict(model.named_modules())
    for name, module in list(named.items()):
        if isinstance(module, Attention):
            holder, _, attribute = name.rpartition(".")
            if attribute != "attn":
                continue
            layer = holder.rpartition(".")[0]
            rotary = named.get(f"{layer.rsplit('.', 2)[0]}.rotary_emb")
            yield extract_layer_index(module.layer_name), named[layer], rotary, named[holder], module


class _Doubled:
    """Before a layer: positions for both kinds of rows, and before the first that differs, the hidden states twice.

    rotary: makes position embeddings, of a model of transformers.
    """

    def __init__(self, first: bool, rows: PassRows, rotary: nn.Module | None):
        self.first, self.rows, self.rotary = first, rows, rotary
        pictures = None if rows.plan.copied is None else rows.plan.copied.pictures
        self.redrawn, self.blind = pictures == "redrawn", pictures == "none"

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if "position_embeddings" in kwargs:  # a layer of transformers: hidden states [1, T, hidden] and keywords
            hidden, kwargs = args[0], dict(kwargs)
            mine = theirs = kwargs["position_embeddings"]
            positions = kwargs.get("position_ids")
            if self.blind:
                assert self.rotary is not None
                assert positions is not None
                theirs = self.rotary(hidden, self._moved(positions))
            kwargs["position_embeddings"] = tuple(torch.cat(pair, -2) for pair in zip(mine, theirs, strict=True))
            if positions is not None:
                kwargs["position_ids"] = torch.cat([positions, self._moved(positions)], -1)
            return ((self._both(hidden, 1), *args[1:]) if self.first else args), kwargs
        positions, hidden, residual = args  # a layer of vLLM's own: [.., T], [T, hidden], [T, hidden] or None
        if self.first:
            hidden, residual = self._both(hidden, 0), None if residual is None else torch.cat([residual, residual])
        return (torch.cat([positions, self._moved(positions)], -1), hidden, residual), kwargs

    def _moved(self, positions: Tensor) -> Tensor:
        """Where the copy's rows stand: without the tokens that it does not read."""
        return positions - self.rows.skipped[: positions.shape[-1]] if self.blind else positions

    def _both(self, hidden: Tensor, dim: int) -> Tensor:
        if not self.redrawn:
            return torch.cat([hidden, hidden], dim)
        other = self.rows.redrawn[: hidden.shape[dim]].to(hidden)
        return torch.cat([hidden, other.view(hidden.shape)], dim)


def install(model: nn.Module, plan: ServedPlan, size: int, hidden: int) -> PassRows:
    """Put a plan into a model that vLLM has just built; `size`: the most rows of a pass; `hidden`: numbers of a row.

    Raises UnsupportedModelError where its layers or heads are not those of the plan.
    """
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    found = sorted(_decoder_layers(model), key=lambda one: one[0])
    if [number for number, *_ in found] != list(range(plan.layers)) or any(
        attention.num_heads * ranks != plan.heads for *_, attention in found
    ):
        shape = f"{len(found)} layers of {found[0][-1].num_heads * ranks if found else 0} heads"
        raise UnsupportedModelError(
            f"vLLM runs '{plan.model}' as {type(model).__name__} with {shape}, and the plan is for {plan.layers} layers of"
            f" {plan.heads}: use model_impl='transformers', or generate with transformers"
        )
    rows = PassRows(plan, size, hidden)
    gains = torch.stack([plan.table((), 1.0), plan.table(plan.gains, 1.0), plan.table(plan.seen, 1.0)], dim=1)
    assert (PLAIN, TEXT, SEEING) == (0, 1, 2)
    raised = plan.table(plan.first, 1.0).log()
    first = torch.stack([torch.zeros_like(raised), raised, raised], dim=1)
    copied = plan.copied
    marks = None if copied is None else of_rank(plan.table(copied.heads, 0.0), rank, ranks)
    for number, layer, rotary, holder, attention in found:
        own = of_rank(gains[number], rank, ranks)
        rides = copied is not None and number >= copied.first
        scaled = bool((own != 1).any())
        if rides:
            assert copied is not None
            layer.register_forward_pre_hook(_Doubled(number == copied.first, rows, rotary), with_kwargs=True)
        if rides or scaled or plan.widened:
            holder.attn = EditedAttention(
                attention,
                rows,
                own if scaled else None,
                of_rank(first[number], rank, ranks) if plan.widened else None,
                marks[number] if rides and marks is not None else None,
                copied if rides else None,
            )
    return rows


class _Seeing:
    """Of a model that sees pictures: those of the copy, where it sees others."""

    _redraws: bool
    _redraw: Any
    _settings: Any
    sightline_rows: PassRows

    def embed_multimodal(self, **kwargs: Any) -> Any:
        model: Any = super()
        found = model.embed_multimodal(**kwargs)
        if not self._redraws:
            return found
        redrawn = model.embed_multimodal(**{**kwargs, **self._redraw(self._settings, kwargs)})
        return [torch.cat(pair, -1) for pair in zip(found, redrawn, strict=True)]  # [n, 2 hidden] of each picture

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        model: Any = super()
        embed = partial(model.embed_input_ids, input_ids)
        if not self._redraws:
            return embed(multimodal_embeddings, is_multimodal=is_multimodal)
        both = [one.chunk(2, -1) for one in multimodal_embeddings or ()]
        mine, other = (embed([one[side] for one in both], is_multimodal=is_multimodal) for side in range(2))
        self.sightline_rows.redrawn[: len(other)].copy_(other)
        return mine


@cache
def served(base: type[nn.Module]) -> type[nn.Module]:
    """The class of models like `base` that carry the plan in vLLM's `additional_config`."""

    class Served(*((_Seeing, base) if hasattr(base, "embed_multimodal") else (base,))):  # type: ignore[misc]
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.plan = ServedPlan.model_validate(vllm_config.additional_config[KEY]["plan"])
            size = vllm_config.scheduler_config.max_num_batched_tokens
            graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
            hidden = vllm_config.model_config.get_hidden_size()
            self.sightline_rows = install(self, self.plan, max(size, graphs), hidden)
            if self.plan.copied is not None:
                decoder = DECODERS.find(self.plan.copied.decoder)
                self._combined, self._redraw = decoder.combined, decoder.redraw
                self._settings = decoder.config(**self.plan.copied.settings)
            self._redraws = self.plan.copied is not None and self.plan.copied.pictures == "redrawn"

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            hidden = super().forward(*args, **kwargs)
            if self.plan.copied is None:
                return hidden
            mine, other = hidden.chunk(2)
            rows = self.sightline_rows
            return torch.cat([mine, other, rows.beside[: len(mine)].to(hidden)], dim=-1)

        def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
            if self.plan.copied is None:
                return super().compute_logits(hidden_states, *args, **kwargs)
            size = (hidden_states.shape[-1] - BESIDE) // 2
            mine, other, beside = hidden_states.split([size, size, BESIDE], -1)
            logits = super().compute_logits(torch.cat([mine, other]), *args, **kwargs)
            if logits is None:  # another process has them all
                return None
            base, weak = logits.float().chunk(2)
            contrasted, written = read_beside(beside.float())
            return torch.where(contrasted, self._combined(self._settings, base, weak, written), base)

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
