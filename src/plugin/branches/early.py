"""Earlier layers of the same pass, read out as if they were the last: what DoLa and DeCo choose from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..core.edits import Edit, InputProbe
from ..core.layout import Step
from ..core.method import ModelFacts
from .decoder import Contrast


class EarlyContrast(Contrast):
    """A contrast that takes one of some layers for each token, by the state that enters it.

    chosen: index of the layer taken in the last pass [B, T].
    """

    def __init__(self, layers: Sequence[int], facts: ModelFacts):
        self.layers, self._readout = layers, facts.readout
        self.chosen: Tensor | None = None
        self._states: dict[int, Tensor] = {}  # hidden state [B, q, hidden] that enters each layer, of the last pass

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        return {layer: [InputProbe(partial(self._states.__setitem__, layer))] for layer in self.layers}

    def readouts(self, like: Tensor, norm: bool) -> Iterator[Tensor]:
        """The logits of each layer in the rows and the type of `like` [B, T, V]; norm: through the final norm."""
        for state in self._states.values():
            yield self._readout(state[:, -like.shape[1] :], norm).to(like)
        self._states.clear()

    def report(self) -> dict[str, Any]:
        """layers: the layer taken for each row of the last pass [B][T]."""
        if self.chosen is None:
            return {}
        return {"layers": [[self.layers[i] for i in row] for row in self.chosen.tolist()]}
