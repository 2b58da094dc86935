"""The two ways in which a branch rides along: as one more position of every row, or as more rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.attention import LayerPlan, Stage
from ..core.layout import Step
from .cache import Pair, below
from .rider import STATES, Rider, attend


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

    def _join(self, model: Tensor, pieces: list[Tensor]) -> Tensor:
        return torch.cat([model, pieces[1]], dim=2)  # the prompt's are the model's own

    def _parted(self, layer: int, key: Tensor, value: Tensor) -> tuple[Pair, list[Pair]]:
        total, (held, _) = self._joined[layer]
        prompt, grown = (key[:, :, :held], value[:, :, :held]), (key[:, :, total:], value[:, :, total:])
        return (key[:, :, :total], value[:, :, :total]), [prompt, grown]


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

    def _pieces(self, layer: int, key: Tensor, value: Tensor, fresh: Pair, window: int | None) -> list[Pair]:
        if self.step.start:
            return super()._pieces(layer, key, value, fresh, window)
        self.fork.cache.prompt[layer] = fresh
        return [fresh]

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
        if self.step.start:
            return super()._branch(plan, stage, module, query, pieces, mask, **kwargs)
        (fresh,) = pieces
        seen = None if mask is None else mask[..., : fresh[0].shape[2]]
        return attend(plan, stage, module, query, *fresh, seen, **kwargs)

    def _join(self, model: Tensor, pieces: list[Tensor]) -> Tensor:
        return below([model, torch.cat(pieces, dim=2)], 2)

    def _parted(self, layer: int, key: Tensor, value: Tensor) -> tuple[Pair, list[Pair]]:
        total, sizes = self._joined[layer]
        rows, behind = self.fork.layout.batch, key.shape[2] - sum(sizes)
        keys, values = (t[rows:, :, behind:].split(sizes, dim=2) for t in (key, value))
        own = key[:rows, :, key.shape[2] - total :], value[:rows, :, key.shape[2] - total :]
        return own, list(zip(keys, values, strict=True))
