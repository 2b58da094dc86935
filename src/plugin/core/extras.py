"""What some models do to attention logits beyond scaling and masking them, as explicit weights must do it, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Extras:
    """What some models do to logits beyond scale and mask, as they tell the attention function by keyword.

    cap: logits are cap * tanh(logits / cap). bias: added to them [B or 1, H or 1, q or 1, K] (relative positions, alibi).
    sinks: the logit of one more key of each head [H], or of each row of it [B, H, q, 1], whose value is zero.
    """

    cap: float | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Extras:
        sinks = kwargs.get("s_aux")
        return cls(kwargs.get("softcap"), kwargs.get("position_bias"), kwargs.get("sinks") if sinks is None else sinks)

    @property
    def plain(self) -> bool:
        """Whether there is nothing of the kind."""
        return self.cap is None and self.bias is None and self.sinks is None

    def on(self, logits: Tensor, first: int, last: int) -> Tensor:
        """The logits of rows `first:last` of the pass [B, H, r, K], capped and biased."""
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        if self.bias is None:
            return logits
        return logits + (self.bias if self.bias.shape[2] == 1 else self.bias[:, :, first:last])

    def weights(self, logits: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The softmax of the masked logits of rows from `first` on, and the logits as edits get them [B, H, r, K], with sinks K + 1.

        The column of a sink counts as masked, because it is no token that could be looked for; its weight is there.
        """
        if self.sinks is None:
            return torch.softmax(logits, dim=-1), logits
        sinks = self.sinks.to(logits)
        by_row = sinks.ndim == 4 and sinks.shape[2] > 1
        sinks = sinks[:, :, first : first + logits.shape[2]] if by_row else sinks.reshape(-1, logits.shape[1], 1, 1)
        sinks = sinks.expand(*logits.shape[:3], 1)
        weights = torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)
        return weights, nn.functional.pad(logits, (0, 1), value=torch.finfo(logits.dtype).min)
