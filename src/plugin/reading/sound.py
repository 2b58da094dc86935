"""Whether the scores of each pass are numbers: what a strength that is too high makes of them is said, never drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...common.errors import ScoresError


class Soundness:
    """The scores of one attachment's passes; `names` are those whose doing they are."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._best: Tensor | None = None  # of each row [B], where nobody has looked yet: the first that is no number

    def check(self, scores: Tensor | None, unseen: bool) -> None:
        """Raises ScoresError where those of a pass's last row are no numbers; -inf may forbid some tokens.

        unseen: values are not looked at in this pass. Those that are no numbers become zeros, which can be drawn from, until
        `end` says so.
        """
        if scores is None or not self.names:
            return
        best = scores[:, -1].detach().amax(-1)  # NaN, too, is what it finds
        if not unseen:
            self._look(best)
            return
        scores[:, -1].masked_fill_(~best.isfinite()[:, None], 0)
        self._best = best if self._best is None else torch.where(self._best.isfinite(), best, self._best)

    def end(self) -> None:
        """The passes of an answer have run. Raises ScoresError as above."""
        best, self._best = self._best, None
        if best is not None:
            self._look(best)

    def forget(self) -> None:
        """An answer was broken off."""
        self._best = None

    def _look(self, best: Tensor) -> None:
        if bool(best.isfinite().all()):
            return
        row = int(best.isfinite().int().argmin())
        raise ScoresError(
            f"row {row} has no finite scores under {', '.join(self.names)} ({best[row].item()} is the best of {best.dtype}):"
            " lower the strength, or load the model in a wider number type (bfloat16, float32)"
        )
