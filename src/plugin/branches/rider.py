"""How a branch rides along in a pass of the model: as an extra position, or as extra rows.

From the first layer that differs, each layer runs once over the model's part and the branch's; between the layers, and
outside the model, only the model's is seen. Linear maps and norms work on both together, which is what a second pass
would pay for again; attention alone is done apart, because the two look at different keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...common.errors import UnsupportedModelError
from ..core.attention import (
    LayerPlan,
    Stage,
    edit_queries,
    edited_attention,
    explicit_attention,
    plain_attention,
)
from ..core.edits import Keys
from ..core.explicit import Call
from ..core.extras import Extras
from ..core.layout import Step
from .cache import Pair

if TYPE_CHECKING:
    from .fork import Fork

MASK = "mask"  # what is called so speaks of the model's keys: the branch has masks of its own
ROTARY = ("position_embeddings", "freqs_cis")  # how the names of cosines and sines begin
SEEING = "full_text_row_masked_out_mask"  # which rows see an image [B, 1, q, 1]
STATES = "cross_attention_states"  # the images that a cross-attention layer reads


class Rider:
    """A branch aboard one pass: its part of every tensor lies behind the model's, along one dimension of it."""

    along: ClassVar[int]  # of hidden states [B, q, hidden] and logits
    along_heads: ClassVar[int]  # of queries, keys and values [B, H, q, d]

    def __init__(self, fork: Fork, step: Step, windows: Mapping[int, int]):
        """windows: how many keys the sliding layers of the model's cache keep."""
        self.fork, self.step, self.windows = fork, step, windows
        self._hidden: Tensor | None = None  # the branch's, between two layers
        self._left: Tensor | None = None  # the model's, as the last layer left it
        self._fresh: dict[int, Pair] = {}  # the branch's new keys and values, until its attention runs
        self._joined: dict[int, tuple[int, list[int]]] = {}  # how many keys are the model's, how many each piece's
        self._sources: dict[int, int] = {}  # by where the keys lie: the layer that they are of
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
                self._sources.clear()
                self._joined.clear()
                self._rotary.clear()

    def _board(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before a layer: put the branch's hidden state beside the model's, and all else that tells of tokens."""
        names = list(inspect.signature(module.forward).parameters)
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden = kwargs.pop(names[0])
        along = self.along + hidden.ndim - 3  # Gemma 3n carries several versions of it, one below the other
        if self._hidden is None or self._left is None:
            branch = self.alike(hidden, along)
        else:
            branch = self._hidden.to(hidden.device)
            if hidden is not self._left:  # what the model adds between two layers (deepstack features) is for both
                branch = branch + self.alike(hidden - self._left.to(hidden.device), along)
        rotary = {name: self._rotated(kwargs.pop(name)) for name in [*kwargs] if name.startswith(ROTARY)}
        tokens = hidden.shape[-3:-1]
        both = {name: one if MASK in name else self._beside(one, tokens) for name, one in kwargs.items()}
        joined = torch.cat([hidden, branch], dim=along)
        rest = {**both, **rotary, **self._over_image(kwargs)}
        # transformers collects hidden states from a layer's first positional argument, so one that was stays one.
        return ((joined,), rest) if args else ((), {names[0]: joined, **rest})

    def _beside(self, given: Any, tokens: torch.Size) -> Any:
        """An argument of a layer for both parts, where it has something for each of the pass's tokens [B, q]."""
        if isinstance(given, Tensor) and given.ndim < 4 and given.shape[:2] == tokens:
            return self._both(given, self.along)
        if isinstance(given, Tensor) and given.ndim == 4 and given.shape[::2] == tokens:
            return self._both(given, self.along_heads)
        return given

    def _rotated(self, tables: Any) -> Any:
        """Position embeddings for both parts: cosines and sines, or some for each kind of layer."""
        if tables is None:
            return None
        if isinstance(tables, dict):
            return {kind: self._rotated(one) for kind, one in tables.items()}
        return tuple(map(self._join_rotary, tables)) if isinstance(tables, tuple | list) else self._join_rotary(tables)

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
        self._left, self._hidden = self.split(hidden, self.along + hidden.ndim - 3)
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
        kwargs, own = self._told(kwargs, query.shape[self.along_heads])
        window = own["sliding_window"] = self._window(layer, kwargs.get("sliding_window"))
        if layer in self._joined:
            (key, value), pieces = self._parted(layer, key, value)
        else:
            pieces = self._pieces(layer, key, value, self._new(layer, key), window)
        base = attend(stage.plan.get(layer), stage, module, mine, key, value, mask, **kwargs)
        # Asked for only now: a method may have decided in this very layer what it does to both (VHR's heads).
        plan = self.fork.plan(layer, self.branch_step, stage.part(layer), query.device)
        branch = self._branch(plan, stage, module, theirs, pieces, mask, **own)
        return torch.cat([base, branch], dim=self.along)

    def _window(self, layer: int, told: int | None) -> int | None:
        """How many keys a row of the layer sees: what its attention is told, or what its cache keeps.

        Raises UnsupportedModelError where that is not what the model sees (Moshi's mask has no window).
        """
        kept = self.windows.get(layer)
        if told is None and kept is not None and self.step.start == 0 and self.step.count > kept:
            raise UnsupportedModelError(
                f"layer {layer} keeps the last {kept} keys and its attention is told of no window, so that a copy beside the"
                f" model cannot tell what it sees of a prompt of {self.step.count} tokens: use a shorter prompt, a method, or"
                " a decoder that looks at the model alone (dola)"
            )
        return kept if told is None else told

    def _told(self, kwargs: dict[str, Any], size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What attention is told by keyword, for the model's rows and for the branch's: biases and sinks by row are parted."""
        both = {
            name: self.split(one, self.along_heads)
            for name, one in kwargs.items()
            if isinstance(one, Tensor) and one.ndim == 4 and one.shape[self.along_heads] == size
        }
        mine, theirs = ({name: pair[i] for name, pair in both.items()} for i in (0, 1))
        return {**kwargs, **mine}, {**kwargs, **theirs}

    def _new(self, layer: int, key: Tensor) -> Pair:
        """The branch's new keys and values of a layer whose keys are `key`: its own, or of the layer that it shares with.

        Raises UnsupportedModelError where the model makes keys of what its cache holds.
        """
        source = layer if layer in self._fresh else self._sources.get(key.data_ptr(), layer)
        self._sources[key.data_ptr()] = source
        if source in self.fork.cache.prompt:
            self.fork.cache.prompt.setdefault(layer, self.fork.cache.prompt[source])
        fresh = self._fresh.get(source)
        if fresh is None or (fresh[0].shape[1], fresh[0].shape[3]) != (key.shape[1], key.shape[3]):
            raise UnsupportedModelError(
                f"layer {layer} makes its keys of something else that its cache holds, which a copy beside the model cannot"
                " follow: use a method, or a decoder that looks at the model alone (dola)"
            )
        return fresh

    def _seen_of_image(self, mask: Tensor) -> Tensor:
        """Which of the image the branch's rows see, from what the model's do [B, 1, q, K]."""
        return mask

    def _pieces(self, layer: int, key: Tensor, value: Tensor, fresh: Pair, window: int | None) -> list[Pair]:
        """The branch's keys and values of a layer: those of its prompt, and those that have grown behind it."""
        cache, step = self.fork.cache, self.step
        dropped = 0 if window is None else max(0, step.start + step.count - key.shape[2])
        return [cache.share(layer, key, value, dropped, window), cache.grow(layer, fresh)]

    def _branch(
        self,
        plan: LayerPlan | None,
        stage: Stage,
        module: nn.Module,
        query: Tensor,
        pieces: list[Pair],
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """The branch's head outputs, over its prompt and what has grown behind it."""
        fork, window, scaling = self.fork, kwargs.get("sliding_window"), kwargs.get("scaling")
        prompt, grown = pieces
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        held, behind, count = prompt[0].shape[2], grown[0].shape[2], query.shape[2]
        start, length = fork.cache.length - held, fork.layout.length
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
            keys=Keys(slice(start, max(start, length)), length - start)
            if fork.branch.carries
            else Keys(slice(0, 0), 0),
            extras=Extras.of(kwargs),
        )
        return explicit_attention(plan or LayerPlan(), call)

    def _seen(self, seen: Tensor | None, mask: Tensor | None, total: int) -> Tensor | None:
        """Which of its `total` keys the branch's rows see: `seen`, where the order of the tokens says it."""
        return seen

    # ---- keys that are made of what the cache holds --------------------------------------------------------------------

    def whole(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """What the model goes on with behind its cache.

        Its own keys and values; or, where it makes keys of what the cache holds (the latents of MLA), those of both parts,
        which `attend` parts again.
        """
        if not self.fork.latent or not self.rides(layer) or layer in self.fork.across:
            return key, value
        pieces = self._pieces(layer, key, value, self._fresh[layer], None)
        self._joined[layer] = key.shape[2], [piece[0].shape[2] for piece in pieces]
        return self._join(key, [piece[0] for piece in pieces]), self._join(value, [piece[1] for piece in pieces])

    def _join(self, model: Tensor, pieces: list[Tensor]) -> Tensor:
        """The model's part, and behind it what of the branch's is not part of that."""
        raise NotImplementedError

    def _parted(self, layer: int, key: Tensor, value: Tensor) -> tuple[Pair, list[Pair]]:
        """The model's keys and values, and the pieces of the branch's, from what was made of both."""
        raise NotImplementedError


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
        return plain_attention(module)(module, query, key, value, mask, **kwargs)[0]
    return edited_attention(plan, stage, module, query, key, value, mask, **kwargs)
