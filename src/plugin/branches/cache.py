"""What a branch remembers of one prompt batch: its own keys and values, beside those that the caller's cache holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

Pair = tuple[Tensor, Tensor]  # keys and values [N, Hkv, K, d]


class BranchCache:
    """Keys and values of a branch that has N rows.

    prompt: those of its prompt, by layer; a layer that is not in it shares the model's.
    grown: those of its tokens behind the prompt, by layer.
    """

    def __init__(self, valid: Tensor, length: int):
        """valid: which positions are no padding [N, any]; those beyond are none. length: positions of the prompt."""
        self.prompt: dict[int, Pair] = {}
        self.grown: dict[int, Pair] = {}
        self._room: dict[int, Pair] = {}  # what the grown ones lie at the beginning of
        self.begin(valid, length)

    def begin(self, valid: Tensor, length: int) -> None:
        """Its prompt has `length` positions, of which `valid` are no padding."""
        self.valid, self.length = valid, length
        self._padless = bool(valid.all())

    def grow(self, layer: int, fresh: Pair) -> Pair:
        """Add the newest tokens' keys and values of a layer; returns all that lie behind the prompt."""
        old = self.grown.get(layer)
        if old is not None:
            pairs = zip(old, fresh, self._room.get(layer, (None, None)), strict=True)
            grown, room = zip(*(_appended(*pair) for pair in pairs), strict=True)
            fresh, self._room[layer] = grown, room
        self.grown[layer] = fresh
        return fresh

    def settle(self, valid: Tensor, length: int) -> None:
        """Its prompt goes on behind what has grown: that is part of the prompt from now on."""
        for layer, new in self.grown.items():
            old = self.prompt[layer]
            self.prompt[layer] = torch.cat([old[0], new[0]], dim=2), torch.cat([old[1], new[1]], dim=2)
        self.grown.clear()
        self._room.clear()
        self.begin(valid, length)

    def share(self, layer: int, keys: Tensor, values: Tensor, dropped: int, window: int | None) -> Pair:
        """The prompt's keys and values of a layer, from the model's, whose cache has dropped the oldest `dropped`."""
        kept = self.prompt.get(layer)
        if kept is not None:
            return kept
        length = self.length - dropped
        if window is None:
            return keys[:, :, :length], values[:, :, :length]
        low = max(0, length - window + 1)  # the model's cache will drop them: keep what the window can see
        self.prompt[layer] = keys[:, :, low:length].clone(), values[:, :, low:length].clone()
        return self.prompt[layer]

    def visible(self, held: int, behind: int, count: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which of `held` prompt keys and `behind` grown ones the `count` newest tokens see [N, 1, count, K].

        None where all see all.
        """
        if count == 1 and self._padless and (window is None or held + behind <= window):
            return None
        first, stop = self.length - held, self.length + behind
        keys = torch.arange(first, stop, device=device)
        queries = torch.arange(stop - count, stop, device=device)[:, None]
        seen = (keys <= queries)[None]
        if window is not None:
            seen = seen & (queries - keys < window)
        valid = self.valid[:, first:stop].to(device)
        valid = torch.cat([valid, valid.new_ones(len(valid), stop - first - valid.shape[1])], dim=1)
        return (seen & valid[:, None])[:, None]

    def select(self, rows: Tensor) -> None:
        """Take these of its rows, as a beam search does with the model's."""
        for store in (self.prompt, self.grown):
            for layer, (keys, values) in store.items():
                store[layer] = (
                    keys.index_select(0, rows.to(keys.device)),
                    values.index_select(0, rows.to(values.device)),
                )

    def clear(self) -> None:
        """Let go of all keys and values."""
        for store in (self.prompt, self.grown, self._room):
            store.clear()


def _appended(held: Tensor, fresh: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
    """Held keys or values with fresh ones behind them, and the room that both lie in, made twice as large when it is full.

    Positions behind `held` may have been written by tokens that were taken back; nobody reads them.
    """
    length, total = held.shape[2], held.shape[2] + fresh.shape[2]
    if held.requires_grad or fresh.requires_grad:  # a graph keeps what it saw
        return torch.cat([held, fresh], dim=2), fresh
    if room is None or room.shape[2] < total or room.data_ptr() != held.data_ptr():
        room = held.new_empty(*held.shape[:2], 2 * total, held.shape[3])
        room[:, :, :length] = held
    room[:, :, length:total] = fresh
    return room[:, :, :total], room


def below(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Batches one below the other; what is shorter along `dim` is filled up with zeros in front."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[dim] for part in parts)
    after = [0, 0] * (parts[0].ndim - dim - 1)
    return torch.cat([torch.nn.functional.pad(part, [*after, width - part.shape[dim], 0]) for part in parts])


class TappedCache(Cache):
    """A cache as the model sees it while `tap` takes a part of what is written to each layer, and hands on the rest.

    told: what the model gets in the place of what the layer then holds.
    """

    def __init__(
        self,
        base: Any,
        tap: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
        told: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] = lambda layer, keys, values: (keys, values),
    ):
        self.__dict__.update(base.__dict__)  # the same layers, so that lengths and masks are the base's
        self.base, self.tap, self.told = base, tap, told

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        key_states, value_states = self.tap(layer_idx, key_states, value_states)
        return self.told(layer_idx, *self.base.update(key_states, value_states, layer_idx, *args, **kwargs))
