"""How a branch rides along in a pass of the model: as an extra position, or as extra rows.

From the first layer that differs, each layer runs once over the model's part and the branch's; between the layers, and
outside the model, only the model's is seen. Linear maps and norms work on both together, which is what a second pass
would pay for again; attention alone is done apart, because the two look at different keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.attention import Call, LayerPlan, Stage, edit_queries, edited_attention, explicit_attention
from ..core.compat import sdpa_attention_forward
from ..core.layout import Step
from .cache import Pair

if TYPE_CHECKING:
    from .fork import Fork

SEEING = "full_text_row_masked_out_mask"  # which rows see an image [B, 1, q, 1]
STATES = "cross_attention_states"  # the images that a cross-attention layer reads


class Rider:
    """A branch aboard one pass: its part of every tensor lies behind the model's, along one dimension of it."""

    along: ClassVar[int]  # of hidden states [B, q, hidden] and logits
    along_heads: ClassVar[int]  # of queries, keys and values [B, H, q, d]

    def __init__(self, fork: Fork, step: Step):
        self.fork, self.step = fork, step
        self._hidden: Tensor | None = None  # the branch's, between two layers
        self._left: Tensor | None = None  # the model's, as the last layer left it
        self._fresh: dict[int, Pair] = {}  # the branch's new keys and values, until its attention runs
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[Any, ...], Tensor | None] = {}

    # ---- its dimension -----------------------------------------------------------------------------------------------

    def alike(self, tensor: Tensor, dim: int) -> Tensor:
        """What of a tensor of the model's stands for the branch's part, which begins as that."""
        raise NotImplementedError

    def own(self, size: int) -> int:
        """How much of a dimension of `size` is the model's; logits may hold fewer positions than the pass."""
        raise NotImplementedError

    def turned(self, table: Tensor) -> Tensor:
        """Cosines or sines [.., B or 1, q, d] for both parts; the branch's tokens have the model's positions."""
        raise NotImplementedError

    @property
    def branch_step(self) -> Step:
        """The pass in the eyes of the branch's own edits."""
        return self.step

    def split(self, tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The model's part and the branch's."""
        size = self.own(tensor.shape[dim])
        return tensor.narrow(dim, 0, size), tensor.narrow(dim, size, tensor.shape[dim] - size)

    def model_part(self, hidden: Tensor) -> Tensor:
        """The model's part of a hidden state that may hold both."""
        raise NotImplementedError

    # ---- between the layers ------------------------------------------------------------------------------------------

    @contextmanager
    def aboard(self, layers: Sequence[nn.Module], stage: Stage) -> Iterator[None]:
        """Ride in the pass inside."""
        first = self.fork.branch.first
        with ExitStack() as hooks:
            for index, layer in enumerate(layers[first:], first):
                if self.fork.left_out(index):
                    hooks.callback(layer.register_forward_hook(self._stay).remove)
                    continue
                hooks.callback(layer.register_forward_pre_hook(self._board, with_kwargs=True).remove)
                if layer is not layers[-1]:
                    hooks.callback(layer.register_forward_hook(self._leave).remove)
            stage.rider = self
            try:
                yield
            finally:
                stage.rider = None
                self._hidden = self._left = None
                self._fresh.clear()
                self._rotary.clear()

    def _board(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before a layer: put the branch's hidden state beside the model's."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._hidden is None or self._left is None:
            branch = self.alike(hidden, self.along)
        else:
            branch = self._hidden.to(hidden.device)
            if hidden is not self._left:  # what the model adds between two layers (deepstack features) is for both
                branch = branch + self.alike(hidden - self._left.to(hidden.device), self.along)
        joined = torch.cat([hidden, branch], dim=self.along)
        kwargs = {**kwargs, **self._over_image(kwargs)}
        if "position_embeddings" in kwargs:
            kwargs["position_embeddings"] = tuple(map(self._join_rotary, kwargs["position_embeddings"]))
        if args:
            return (joined, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": joined}

    def _over_image(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a layer that reads the image by cross-attention, for both parts."""
        seeing = kwargs.get(SEEING)
        return {} if seeing is None else {SEEING: self._both(seeing, self.along_heads)}

    def _both(self, tensor: Tensor, dim: int) -> Tensor:
        return torch.cat([tensor, self.alike(tensor, dim)], dim=dim)

    def _join_rotary(self, table: Tensor) -> Tensor:
        if id(table) not in self._rotary:
            self._rotary[id(table)] = (table, self.turned(table))
        return self._rotary[id(table)][1]

    def _stay(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Behind a layer that the branch leaves out: its hidden state is what it was."""
        self._left = output[0] if isinstance(output, tuple) else output

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Behind a layer: the model goes on with its own hidden state."""
        hidden = output[0] if isinstance(output, tuple) else output
        self._left, self._hidden = self.split(hidden, self.along)
        return (self._left, *output[1:]) if isinstance(output, tuple) else self._left

    # ---- attention ---------------------------------------------------------------------------------------------------

    def rides(self, layer: int) -> bool:
        """Whether the layer's tensors hold the branch's part too."""
        return layer >= self.fork.branch.first and not self.fork.left_out(layer)

    def take(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """Take the branch's part out of new keys and values; returns the model's."""
        if not self.rides(layer):
            return key, value
        (key, fresh), (value, fresh_values) = self.split(key, self.along_heads), self.split(value, self.along_heads)
        if layer not in self.fork.across:  # those of an image are all the model's
            self._fresh[layer] = fresh, fresh_values
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
        """Head outputs of both parts; `key`, `value` and `mask` are the model's, as its cache returned them."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        mine, theirs = self.split(query, self.along_heads)
        if layer in self.fork.across:
            base = attend(None, stage, module, mine, key, value, mask, **kwargs)
            images = self.fork.cache.prompt.get(layer) or (key, value)
            seen = None if mask is None else self._seen_of_image(mask)
            branch = attend(None, stage, module, theirs, *images, seen, **kwargs)
            return torch.cat([base, branch], dim=self.along)
        base = attend(stage.plan.get(layer), stage, module, mine, key, value, mask, **kwargs)
        # Asked for only now: a method may have decided in this very layer what it does to both (VHR's heads).
        plan = self.fork.plan(layer, self.branch_step, stage.shard)
        branch = self._branch(plan, stage, module, theirs, key, value, mask, self._fresh.pop(layer), **kwargs)
        return torch.cat([base, branch], dim=self.along)

    def _seen_of_image(self, mask: Tensor) -> Tensor:
        """Which of the image the branch's rows see, from what the model's do [B, 1, q, K]."""
        return mask

    def _branch(
        self,
        plan: LayerPlan | None,
        stage: Stage,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        fresh: Pair,
        **kwargs: Any,
    ) -> Tensor:
        """The branch's head outputs, over its prompt and what has grown behind it."""
        fork, step, layer = self.fork, self.step, int(module.layer_idx)  # type: ignore[arg-type]
        window, scaling = kwargs.get("sliding_window"), kwargs.get("scaling")
        dropped = 0 if window is None else max(0, step.start + step.count - key.shape[2])
        prompt, grown = fork.cache.share(layer, key, value, dropped, window), fork.cache.grow(layer, fresh)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        held, behind, count = prompt[0].shape[2], grown[0].shape[2], query.shape[2]
        start = fork.cache.length - held
        case = held, behind, window, query.device
        if case not in self._masks:
            seen = fork.cache.visible(held, behind, count, window, query.device)
            self._masks[case] = self._seen(seen, mask, held + behind)
        call = Call(
            query=query if plan is None else edit_queries(plan, query, getattr(module, "scaling", scale) / scale),
            pieces=(prompt, grown),
            mask=self._masks[case],
            scale=scale,
            causal=False,
            keys=slice(start, max(start, fork.layout.length)) if fork.branch.carries else slice(0, 0),
        )
        return explicit_attention(plan or LayerPlan(), call)

    def _seen(self, seen: Tensor | None, mask: Tensor | None, total: int) -> Tensor | None:
        """Which of its `total` keys the branch's rows see: `seen`, where the order of the tokens says it."""
        return seen


class ExtraPosition(Rider):
    """The last prompt token once more, as one more position of every row: a branch that differs from there on."""

    along, along_heads = 1, 2

    def alike(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.narrow(dim, tensor.shape[dim] - 1, 1)

    def own(self, size: int) -> int:
        return size - 1

    def turned(self, table: Tensor) -> Tensor:
        return torch.cat([table, table[..., -1:, :]], dim=-2)

    @property
    def branch_step(self) -> Step:
        return Step(self.step.layout, self.step.layout.length - 1, 1)

    def model_part(self, hidden: Tensor) -> Tensor:
        return hidden[:, : self.step.count]

    def take(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        return (key, value) if layer in self.fork.across else super().take(layer, key, value)

    def _seen_of_image(self, mask: Tensor) -> Tensor:
        return mask[:, :, -1:]


class ExtraRows(Rider):
    """As many rows more as the branch has, for each of its copies, those of the first copy first."""

    along, along_heads = 0, 0

    def alike(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor if self.fork.copies == 1 else torch.cat([tensor] * self.fork.copies, dim=dim)

    def own(self, size: int) -> int:
        return self.fork.layout.batch

    def turned(self, table: Tensor) -> Tensor:
        same_for_all = table.ndim < 3 or table.shape[-3] == 1
        return table if same_for_all else self._both(table, -3)

    def model_part(self, hidden: Tensor) -> Tensor:
        return hidden[: self.fork.layout.batch]

    def _seen(self, seen: Tensor | None, mask: Tensor | None, total: int) -> Tensor | None:
        """Behind a prompt that it reads beside the model it sees what the model does, image tokens both ways included."""
        if self.fork.branch.prompt != "beside" or not self.step.reading or seen is None or mask is None:
            return seen
        mask = mask if mask.dtype == torch.bool else mask == 0
        return nn.functional.pad(mask[..., :total], (max(0, total - mask.shape[-1]), 0))

    def _over_image(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        states = kwargs.get(STATES)
        return super()._over_image(kwargs) | ({} if states is None else {STATES: self._both(states, 0)})

    def _branch(
        self,
        plan: LayerPlan | None,
        stage: Stage,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        fresh: Pair,
        **kwargs: Any,
    ) -> Tensor:
        if self.step.start:
            return super()._branch(plan, stage, module, query, key, value, mask, fresh, **kwargs)
        self.fork.cache.prompt[module.layer_idx] = fresh  # type: ignore[index]
        seen = None if mask is None else mask[..., : fresh[0].shape[2]]
        return attend(plan, stage, module, query, *fresh, seen, **kwargs)


def attend(
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
