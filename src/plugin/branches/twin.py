"""The branch engine: a weakened copy of the model as extra rows of the model's own forward pass.

A `Branch` says how the copy differs; a `Twin` carries it through one prompt batch. From the first layer that differs,
each layer runs once over the base's rows and the twin's; between the layers, and outside the model, only the base's are
seen. Linear maps and norms work on both together, which is what a second pass would pay for again; attention alone is
done apart, because the two look at different keys. The caller's cache holds the base's rows and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..core.attention import Call, LayerPlan, Stage, edit_queries, edited_attention, explicit_attention
from ..core.edits import Edit, InputProbe, OutputProbe, WeightProbe
from ..core.layout import Layout, Step
from ..core.shards import Shard
from .branch import Branch, Edits
from .positions import Positions

SEEING, STATES = (
    "full_text_row_masked_out_mask",
    "cross_attention_states",
)  # which rows see an image [B, 1, q, 1]; images
PROBES = (InputProbe, WeightProbe, OutputProbe)


class Twin:
    """A branch on one prompt batch: its keys and values, and how its rows board and leave the layers of a pass.

    It has B rows for each copy of the branch, N in all, those of the first copy first.
    """

    def __init__(
        self, branch: Branch, layout: Layout, carried: Callable[[Step], Sequence[Edits]], across: frozenset[int]
    ):
        self.branch, self.layout, self._carried = branch, layout, carried
        self._across = across  # layers that read the image by cross-attention
        shared = branch.prompt == "shared"
        self.valid = layout.valid[:, :-1] if shared else layout.valid  # which keys of its prompt are no padding [N, p]
        self.copies = max(1, len(branch.prompts))
        self.logits: Tensor | None = None  # of its rows in the last pass [N, T, V]
        self._kept: dict[int, tuple[Tensor, Tensor] | None] = {}  # its prompt's keys and values; None: the base's
        self.grown: dict[int, tuple[Tensor, Tensor]] = {}  # those of its own tokens behind
        self._fresh: dict[int, tuple[Tensor, Tensor]] = {}  # those of the pass under way
        self._decode_plan: dict[int, LayerPlan | None] = {}
        self._positions: Positions | None = None  # of the base's prompt, where the twin has one of its own

    # ---- the pass ----------------------------------------------------------------------------------------------------

    def rides_in(self, step: Step) -> bool:
        """Whether its rows are part of this pass of the base."""
        if not step.reading or self.branch.prompt == "beside":
            return True
        return self.branch.prompt == "shared" and step.start + step.count == self.layout.length

    def ride(
        self, original: Callable[..., Any], kwargs: Mapping[str, Any], stage: Stage, decoder: nn.Module, step: Step
    ) -> Any:
        """Run a pass of the base with the twin's rows aboard. Returns the base's output; `logits` are the twin's."""
        self._begin(step)
        cache = kwargs.get("past_key_values")
        forked = ForkedCache(DynamicCache(config=decoder.config) if cache is None else cache, self)  # type: ignore[arg-type]
        kept = kwargs.get("logits_to_keep")
        if self._tokens and isinstance(kept, int) and kept:
            kwargs = {**kwargs, "logits_to_keep": kept + 1}  # the twin's token stands behind the base's
        with self._aboard(list(decoder.layers), stage):  # type: ignore[arg-type]
            output = original(**{**kwargs, "past_key_values": forked, "use_cache": True, "return_dict": True})
        logits, self.logits = self._split(output.logits, 1 if self._tokens else 0)
        wanted = cache is not None or kwargs.get("use_cache") is not False
        base: dict[str, Any] = {"logits": logits, "past_key_values": forked.base if wanted else None}
        if output.get("hidden_states") is not None:
            base["hidden_states"] = tuple(self._split_if_joined(h) for h in output.hidden_states)
        return type(output)(**{**output, **base})  # built anew: an output keeps what is set to None

    def _begin(self, step: Step) -> None:
        self._step = step
        if step.start == 0 and self.branch.prompt == "beside":
            self.valid = self.layout.valid[:, : step.count]  # a prompt read in two parts: the rest is grown
        # The last prompt token of a shared prompt is one more position; otherwise the twin has rows of its own.
        self._tokens = step.reading and self.branch.prompt == "shared"
        self._size = step.count if self._tokens else self.layout.batch
        self._hidden: Tensor | None = None
        self._left: Tensor | None = None
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    @contextmanager
    def _aboard(self, layers: Sequence[nn.Module], stage: Stage) -> Iterator[None]:
        with ExitStack() as hooks:
            for index, layer in enumerate(layers[self.branch.first :], self.branch.first):
                if self._stays(index):
                    hooks.callback(layer.register_forward_hook(self._stay).remove)
                    continue
                hooks.callback(layer.register_forward_pre_hook(self._board, with_kwargs=True).remove)
                if layer is not layers[-1]:
                    hooks.callback(layer.register_forward_hook(self._leave).remove)
            stage.fork = self
            try:
                yield
            finally:
                stage.fork = None
                self._hidden = self._left = None
                self._fresh.clear()
                self._rotary.clear()

    def _board(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before a layer: put the twin's hidden state beside the base's."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._hidden is None or self._left is None:
            twin = self._twin_of(hidden)
        else:
            twin = self._hidden.to(hidden.device)
            if hidden is not self._left:  # what the model adds between two layers (deepstack features) is for both
                twin = twin + self._twin_of(hidden - self._left.to(hidden.device))
        joined = torch.cat([hidden, twin], dim=1 if self._tokens else 0)
        if "position_embeddings" in kwargs:
            kwargs = {**kwargs, "position_embeddings": tuple(map(self._join_rotary, kwargs["position_embeddings"]))}
        seeing, states = kwargs.get(SEEING), kwargs.get(STATES)
        if seeing is not None:
            more = seeing[:, :, -1:] if self._tokens else self._copied(seeing, 0)
            kwargs = {**kwargs, SEEING: torch.cat([seeing, more], dim=2 if self._tokens else 0)}
        if states is not None and not self._tokens:
            kwargs = {**kwargs, STATES: torch.cat([states, self._copied(states, 0)])}
        if args:
            return (joined, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": joined}

    def _stay(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Behind a layer that reads the image, for a twin without one: its hidden state is what it was."""
        self._left = output[0] if isinstance(output, tuple) else output

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Behind a layer: the model goes on with the base's hidden state."""
        hidden = output[0] if isinstance(output, tuple) else output
        self._left, self._hidden = self._split(hidden, 1 if self._tokens else 0)
        return (self._left, *output[1:]) if isinstance(output, tuple) else self._left

    def _twin_of(self, hidden: Tensor) -> Tensor:
        """What stands in the base's hidden state for the twin's rows."""
        return hidden[:, -1:] if self._tokens else self._copied(hidden, 0)

    def _copied(self, tensor: Tensor, dim: int) -> Tensor:
        """The base's rows, which lie along `dim`, for each copy."""
        return tensor if self.copies == 1 else torch.cat([tensor] * self.copies, dim=dim)

    def _join_rotary(self, table: Tensor) -> Tensor:
        """Cosines or sines [.., B or 1, q, d] for both; the twin's tokens have the base's positions."""
        if id(table) not in self._rotary:
            if self._tokens:
                joined = torch.cat([table, table[..., -1:, :]], dim=-2)
            else:
                alike = table.ndim < 3 or table.shape[-3] == 1
                joined = table if alike else torch.cat([table, self._copied(table, -3)], dim=-3)
            self._rotary[id(table)] = (table, joined)
        return self._rotary[id(table)][1]

    def _split(self, tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The base's part and the twin's, which follows it; logits may hold fewer positions than the pass."""
        size = tensor.shape[dim] - 1 if self._tokens else self._size
        return tensor.narrow(dim, 0, size), tensor.narrow(dim, size, tensor.shape[dim] - size)

    def _split_if_joined(self, hidden: Tensor) -> Tensor:
        dim = 1 if self._tokens else 0
        return hidden.narrow(dim, 0, self._size) if hidden.shape[dim] > self._size else hidden

    # ---- attention ---------------------------------------------------------------------------------------------------

    def rides(self, layer: int) -> bool:
        return layer >= self.branch.first and not self._stays(layer)

    def _stays(self, layer: int) -> bool:
        """Whether the layer reads an image, and the twin's own prompt has none: the model leaves it out then."""
        return layer in self._across and not self.branch.carries and layer not in self._kept

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take the twin's part of new keys and values out; returns the base's. Those of an image are all the base's."""
        if layer in self._across:
            return (key, value) if self._tokens else (self._split(key, 0)[0], self._split(value, 0)[0])
        dim = 2 if self._tokens else 0
        (key, theirs), (value, their_values) = self._split(key, dim), self._split(value, dim)
        self._fresh[layer] = theirs, their_values
        return key, value

    def attend(
        self,
        stage: Stage,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """Head outputs of the base and the twin; `key`, `value` and `mask` are the base's, as its cache returned them."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        mine, theirs = self._split(query, 2 if self._tokens else 0)
        if layer in self._across:
            base = _attend(None, stage, module, mine, key, value, mask, **kwargs)
            seen = mask if mask is None or not self._tokens else mask[:, :, -1:]
            twin = _attend(None, stage, module, theirs, *(self._kept.get(layer) or (key, value)), seen, **kwargs)
            return torch.cat([base, twin], dim=1 if self._tokens else 0)
        plan = stage.plan.get(layer)
        base = _attend(plan, stage, module, mine, key, value, mask, **kwargs)
        # Asked for only now: a method may have decided in this very layer what it does to both (VHR's heads).
        plan = self._plan(layer, stage.shard)
        fresh = self._fresh.pop(layer)
        if self._step.start == 0 and not self._tokens:
            self._kept[layer] = fresh
            seen = None if mask is None else mask[..., : fresh[0].shape[2]]
            twin = _attend(plan, stage, module, theirs, *fresh, seen, **kwargs)
        else:
            window = kwargs.get("sliding_window")
            prompt = self._prompt(layer, key, value, window)
            grown = fresh
            if layer in self.grown:
                grown = tuple(torch.cat([old, new], dim=2) for old, new in zip(self.grown[layer], fresh, strict=True))  # type: ignore[assignment]
            self.grown[layer] = grown
            scaling = kwargs.get("scaling")
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            start = self.valid.shape[1] - prompt[0].shape[2]
            call = Call(
                query=theirs if plan is None else edit_queries(plan, theirs, getattr(module, "scaling", scale) / scale),
                pieces=(prompt, grown),
                mask=self._visible(prompt[0], grown[0], theirs.shape[2], window),
                scale=scale,
                causal=False,
                keys=slice(start, max(start, self.layout.length)) if self.branch.carries else slice(0, 0),
            )
            twin = explicit_attention(plan or LayerPlan(), call)
        return torch.cat([base, twin], dim=1 if self._tokens else 0)

    def _plan(self, layer: int, shard: Shard | None) -> LayerPlan | None:
        """The twin's edits of a layer: those of the methods, if it carries them, and its own."""
        if not self._step.reading and layer in self._decode_plan:
            return self._decode_plan[layer]
        step = Step(self.layout, self.layout.length - 1, 1) if self._tokens else self._step
        carried = self._carried(step) if self.branch.carries else ()
        edits: list[Edit] = [e for plan in carried for e in plan.get(layer, ()) if not isinstance(e, PROBES)]
        edits += self.branch.edits(step).get(layer, ())
        plan = LayerPlan.of(edits).on(shard) if edits else None
        if not step.reading:
            self._decode_plan[layer] = plan
        return plan

    def _prompt(self, layer: int, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the twin's prompt; those of a shared prompt are the base's, all but the last token."""
        kept = self._kept.get(layer)
        if kept is not None:
            return kept
        length = self.layout.length - 1
        if window is not None:  # the base's cache will drop them, so the twin keeps what its window can see
            length -= max(0, self._step.start + self._step.count - key.shape[2])
            low = max(0, length - window + 1)
            self._kept[layer] = key[:, :, low:length].clone(), value[:, :, low:length].clone()
            return self._kept[layer]  # type: ignore[return-value]
        return key[:, :, :length], value[:, :, :length]

    def _visible(self, prompt: Tensor, grown: Tensor, count: int, window: int | None) -> Tensor | None:
        """Which keys the twin's `count` newest tokens see [B, 1, count, K]; None where all do."""
        held, behind = prompt.shape[2], grown.shape[2]
        if count == 1 and self._padless and (window is None or held + behind <= window):
            return None
        case = (held, behind, window, prompt.device)
        if case not in self._masks:
            length, device = self.valid.shape[1], prompt.device
            keys = torch.arange(length - held, length + behind, device=device)
            queries = torch.arange(length + behind - count, length + behind, device=device)[:, None]
            visible = (keys <= queries)[None]
            if window is not None:
                visible = visible & (queries - keys < window)
            valid = self.valid[:, length - held :].to(device)
            valid = torch.cat([valid, valid.new_ones(len(valid), behind)], dim=1)
            self._masks[case] = (visible & valid[:, None])[:, None]
        return self._masks[case]

    @cached_property
    def _padless(self) -> bool:
        return bool(self.valid.all())

    # ---- a prompt of its own -----------------------------------------------------------------------------------------

    def noting_positions(self, decoder: nn.Module) -> AbstractContextManager[None]:
        """Note where the base's prompt ends, if the twin reads a prompt of its own."""
        if self.branch.carries:
            return nullcontext()
        self._positions = Positions(decoder)
        return self._positions.noted()

    def read(self, original: Callable[..., Any], kwargs: dict[str, Any], decoder: nn.Module, model: nn.Module) -> None:
        """Read its copies' prompts, each in a pass; the caller stages its edits."""
        assert self._positions is not None
        masks, logits, caches = [], [], []
        for rewrite in self.branch.prompts:
            cache = DynamicCache(config=decoder.config)  # type: ignore[arg-type]
            own = rewrite(kwargs)
            own |= {"past_key_values": cache, "use_cache": True, "return_dict": True}
            if "logits_to_keep" in inspect.signature(original).parameters:
                own["logits_to_keep"] = 1
            with self._positions.ended_alike(), _unchanged(model, "rope_deltas"):
                output = original(**own)
            masks.append(own["attention_mask"].bool())
            logits.append(output.logits[:, -1:])
            caches.append(cache.layers)
        self.valid, self.logits = _below(masks, 1), torch.cat(logits)
        for number, layers in enumerate(zip(*caches, strict=True)):
            if all(layer.is_initialized for layer in layers):  # one that reads an image has nothing where there is none
                keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
                self._kept[number] = _below(keys, 2), _below(values, 2)

    # ---- its life ----------------------------------------------------------------------------------------------------

    def select(self, rows: Tensor) -> None:
        """Take these rows of its keys and values, for each copy, as a beam search does with the base's."""
        rows = torch.cat([rows + copy * self.layout.batch for copy in range(self.copies)])
        for store in (self._kept, self.grown):
            for layer, pair in store.items():
                if pair is not None:
                    store[layer] = tuple(t.index_select(0, rows.to(t.device)) for t in pair)  # type: ignore[assignment]

    def clear(self) -> None:
        self._kept.clear()
        self.grown.clear()
        self.logits = None


class ForkedCache(Cache):
    """The caller's cache as the model sees it while a twin is aboard: it keeps the base's rows, the twin its own."""

    def __init__(self, base: Any, twin: Twin):
        self.__dict__.update(base.__dict__)  # the same layers, so that lengths and masks are the base's
        self.base, self.twin = base, twin

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.twin.rides(layer_idx):
            key_states, value_states = self.twin.store(layer_idx, key_states, value_states)
        return self.base.update(key_states, value_states, layer_idx, *args, **kwargs)


def _attend(
    plan: LayerPlan | None,
    stage: Stage,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """Attention over one cache, with edits or without: head outputs [B, q, H, d]."""
    if plan is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    return edited_attention(plan, stage, module, query, key, value, mask, **kwargs)


@contextmanager
def _unchanged(model: nn.Module, attribute: str) -> Iterator[None]:
    """Bring back what a forward pass notes on the model about the prompt it read (Qwen's rope offsets)."""
    noted = [(m, m.__dict__[attribute]) for m in model.modules() if attribute in m.__dict__]
    try:
        yield
    finally:
        for module, value in noted:
            setattr(module, attribute, value)


def _below(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Batches one below the other; what is shorter along `dim` is filled up with zeros in front."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[dim] for part in parts)
    after = [0, 0] * (parts[0].ndim - dim - 1)
    return torch.cat([nn.functional.pad(part, [*after, width - part.shape[dim], 0]) for part in parts])
