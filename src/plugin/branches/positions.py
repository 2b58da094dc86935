"""Positions of prompts that must end, or go on, where another prompt ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ...common.errors import UnsupportedModelError


class Positions:
    """Where a prompt ends in the eyes of the position embedding, whatever its family makes of position ids.

    Rotary attention sees only distances, so a prompt may be moved as a whole. Learned positions (OPT) may not.
    """

    _aside = False  # a pass is under way that nobody notes

    def __init__(self, decoder: nn.Module):
        named = [(name.rpartition(".")[2], module) for name, module in decoder.named_modules()]
        self._embeddings = [module for name, module in named if name.startswith("rotary_emb")]
        self._movable = bool(self._embeddings)
        self._embeddings += [module for name, module in named if name == "embed_positions"]
        self._name = type(decoder).__name__
        if not self._embeddings:
            raise UnsupportedModelError(
                f"{self._name} has no position embedding that is known, which is needed to place tokens behind a prompt of"
                " another length: use a decoder that shares the prompt, such as decore or dola"
            )
        self._last: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """The last position that was noted [.., B or 1, 1]."""
        assert self._last is not None
        return self._last

    def noted(self) -> AbstractContextManager[None]:
        """Note the last position of the passes inside."""
        return self._hooked(self._note)

    def ended_alike(self) -> AbstractContextManager[None]:
        """Move the passes inside so that they end where the noted prompt does."""
        return self._hooked(self._end_alike)

    def continued(self) -> AbstractContextManager[None]:
        """Move the passes inside so that the first begins where the noted prompt ends, and the others as far."""
        shifts: list[Tensor] = []

        def move(positions: Tensor) -> Tensor:
            if not shifts:
                shifts.append(self._noted(positions) + 1 - positions[..., :1])
            return positions + shifts[0].to(positions.device)

        return self._hooked(move)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Passes inside go on where the noted one ended, and nobody notes them."""
        before, Positions._aside = Positions._aside, True
        try:
            with self.continued():
                yield
        finally:
            Positions._aside = before

    def _note(self, positions: Tensor) -> Tensor:
        if not Positions._aside:
            self._last = positions[..., -1:]
        return positions

    def _end_alike(self, positions: Tensor) -> Tensor:
        shift = self._noted(positions) - positions[..., -1:]
        if not self._movable and bool(shift.any()):
            raise UnsupportedModelError(
                f"{self._name} has learned positions, so a prompt of another length cannot be contrasted with this one: use"
                " a decoder that keeps the prompt's length, such as decore, dola, vcd or avisc"
            )
        return positions + shift

    def _noted(self, positions: Tensor) -> Tensor:
        return self.last.to(positions.device)

    @contextmanager
    def _hooked(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if "position_ids" in kwargs:
                return args, {**kwargs, "position_ids": change(kwargs["position_ids"])}
            return (args[0], change(args[1]), *args[2:]), kwargs

        with ExitStack() as hooks:
            for module in self._embeddings:
                # In front, so that one who notes the positions of a moved pass sees them moved.
                hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
            yield
