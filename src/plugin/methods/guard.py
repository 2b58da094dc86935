"""A guard for boosts that can run away: behind a reply much longer than the plain model's, the boost is off.

Boosts that grow with the logit (PAI, PAINT) can lengthen captions many times over before they break down, and a longer
or a broken caption must not pass for a better one. The guard lets the rest of such a reply to the plain model, which knows
when to stop. Plain's length is measured: `sightline calibrate MODEL --profile replies`. Ours, not published.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..core.edits import Keys, own_key
from ..core.method import ModelFacts, Settings


class GuardSettings(Settings):
    guard: float | None = Field(
        2.0, gt=0, description="no boost behind a reply of so many times the plain model's mean length; null: no guard"
    )
    plain_tokens: float | None = Field(
        None,
        gt=0,
        description="that mean length; default: the calibration's `replies`, without which nothing is guarded",
    )


class ReplyGuard:
    """How many tokens of a reply a method may boost. limit: None where there is none."""

    def __init__(self, settings: GuardSettings, facts: ModelFacts):
        plain = settings.plain_tokens
        if plain is None and facts.calibration is not None and facts.calibration.replies is not None:
            plain = facts.calibration.replies.tokens
        self.limit = None if settings.guard is None or plain is None else settings.guard * plain

    def within(self, logits: Tensor, keys: Keys) -> Tensor | bool:
        """Which rows may be boosted [B, 1, R, 1]; a row at the prompt's end decides about the reply's first token.

        logits: masked [B, H, R, K], whose columns stand for `keys`.
        """
        if self.limit is None:
            return True
        return own_key(logits) - keys.answer + 1 < self.limit
