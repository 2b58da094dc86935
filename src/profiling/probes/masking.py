"""Needle tests under masked heads: what a model still finds without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...common.errors import CalibrationError
from ...plugin.branches.heads import Head
from ...plugin.core.edits import Disperse, Edit, Gain
from ..data.needles import trials
from .direct import Direct, Edits, Reader

Mode = Literal["output", "query"]


def accuracy(model: Any, tokenizer: Any, *, masked: Sequence[Head], mode: Mode = "output", **how: Any) -> float:
    """Share of trials passed with the heads `masked` masked from the last prompt token on. `how` as for `passes`."""
    return float(passes(model, tokenizer, [masked], mode=mode, **how).mean())


def passes(
    model: Any,
    tokenizer: Any,
    masks: Sequence[Sequence[Head]],
    *,
    mode: Mode = "output",
    advance: Callable[[str, int], None] | None = None,
    **how: Any,
) -> Tensor:
    """Which trials are passed under each of several sets of masked heads: 0 or 1, [masks, trials].

    A prompt is read once, plain, and continued under all sets as rows of one batch.

    Args:
        mode: `output` sets a head's output to zero, `query` its query, so that it attends to everything alike.
        advance: called with a name and the number of trials, after each.
        how: as for `needles.trials`.

    Raises:
        CalibrationError: a head that the model does not have, or what `needles.trials` refuses.
    """
    if mode not in ("output", "query"):
        raise CalibrationError(f"unknown mask mode {mode!r}: choose output or query")
    with Direct(model) as direct:
        found = trials(model, tokenizer, **how)
        edits = mask_edits(masks, direct, mode)
        reader, passed = Reader(direct, tokenizer), torch.zeros(len(masks), len(found))
        for column, trial in enumerate(found):
            reader.read(trial.ids)
            for row, answer in enumerate(reader.answer(edits, rows=len(masks))):
                passed[row, column] = float(trial.passed(answer))
            if advance is not None:
                advance("needles", len(found))
    return passed


def mask_edits(masks: Sequence[Sequence[Head]], direct: Direct, mode: Mode) -> Edits:
    """Edits that mask the heads `masks[b]` in row b."""
    facts = direct.facts
    masked = torch.zeros(facts.layers, len(masks), facts.heads, dtype=torch.bool, device=direct.model.device)
    for row, heads in enumerate(masks):
        for layer, head in facts.check_heads(heads, "masked"):
            masked[layer, row, head] = True
    edit: Callable[[Tensor], Edit] = Disperse if mode == "query" else lambda mask: Gain((~mask).float())
    return {layer: [edit(mask)] for layer, mask in enumerate(masked) if bool(mask.any())}
