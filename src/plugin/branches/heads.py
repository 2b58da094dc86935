"""Which heads a branch loses: from a calibration's scores, from a list, or by chance as a control."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Strict
from torch import Tensor

from ...common.errors import CalibrationError, ConfigError
from ..core.edits import Disperse, Edit, Gain
from ..core.method import ModelFacts

Head = Annotated[tuple[int, int], Strict(False)]  # (layer, query head); YAML writes it as a list


def best_heads(scores: Sequence[Sequence[float]], count: int, facts: ModelFacts, what: str) -> tuple[Head, ...]:
    """The `count` heads with the highest scores [layer][head], ties in the order of the heads.

    Raises CalibrationError where more heads are asked for than the model has, ConfigError for none.
    """
    _check_count(count, facts, what)
    ranked = sorted(
        ((layer, head) for layer in facts.own(range(facts.layers)) for head in range(facts.heads)),
        key=lambda pair: -scores[pair[0]][pair[1]],
    )
    return tuple(ranked[:count])


def random_heads(count: int, excluded: Sequence[Head], seed: int, facts: ModelFacts, what: str) -> tuple[Head, ...]:
    """As many heads by chance, none of them among `excluded`: the control that a head choice has to beat."""
    _check_count(count, facts, what)
    rest = [
        (layer, head)
        for layer in facts.own(range(facts.layers))
        for head in range(facts.heads)
        if (layer, head) not in set(excluded)
    ]
    if count > len(rest):
        raise CalibrationError(
            f"{what}: {count} random heads outside the chosen ones were asked for, but '{facts.name}' has only {len(rest)}"
            " left: ask for fewer"
        )
    return tuple(sorted(random.Random(seed).sample(rest, count)))


def masks(heads: Sequence[Head], facts: ModelFacts) -> dict[int, Tensor]:
    """Masks [1, H] by layer."""
    by_layer: dict[int, Tensor] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, torch.zeros(1, facts.heads, dtype=torch.bool))[0, head] = True
    return dict(sorted(by_layer.items()))


def marked(heads: Sequence[Head], facts: ModelFacts) -> Tensor:
    """1 for each of the heads, 0 for the others: [layers, H]."""
    table = torch.zeros(facts.layers, facts.heads)
    for layer, head in heads:
        table[layer, head] = 1
    return table


def dispersed(heads: Sequence[Head], facts: ModelFacts) -> dict[int, list[Edit]]:
    """Edits that make the heads look everywhere alike (their query is zero)."""
    return {layer: [Disperse(mask)] for layer, mask in masks(heads, facts).items()}


def silenced(heads: Sequence[Head], facts: ModelFacts) -> dict[int, list[Edit]]:
    """Edits that make the heads' output zero."""
    return {layer: [Gain((~mask).float())] for layer, mask in masks(heads, facts).items()}


def _check_count(count: int, facts: ModelFacts, what: str) -> None:
    layers = len(facts.own(range(facts.layers)))
    if count > layers * facts.heads:
        raise CalibrationError(
            f"{what}: {count} heads were asked for, but '{facts.name}' has {layers * facts.heads}"
            f" ({layers} layers of {facts.heads}): ask for fewer"
        )
    if count < 1:
        raise ConfigError(f"{what}: without any head the branch equals the model: give at least one")
