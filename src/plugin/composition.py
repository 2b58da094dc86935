"""How methods compose: which exclude each other, and between which the order of the list matters.

A layer's edits act in the order of `PLACES`, whatever the list says: queries first, then the attention that they lead
to, then the head outputs. Two methods of different places therefore commute. Within one place they act in the order of
the list: additions to queries, and biases on logits, come to the same sum either way; explicit weights, and gains that
are chosen by the outputs they meet, depend on what stood before. Biases and weights are one place in this respect:
explicit weights are computed from the biased logits, or biased behind, as the list says.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import get_args

from ..common.errors import ConfigError
from .core.method import Method, Place, Registered

PLACES: tuple[Place, ...] = get_args(Place)
_ATTENTION = {"logits", "weights"}
_SUMS = {"queries", "logits"}  # edits that add up, in any order


def order_matters(first: type[Method], second: type[Method]) -> bool:
    """Whether the order of two methods in the list can change the result."""
    places = {first.acts, second.acts}
    return (len(places) == 1 or places == _ATTENTION) and not (len(places) == 1 and places <= _SUMS)


def exclusion(first: type[Registered], second: type[Registered]) -> str | None:
    """Why two cannot go together; None where they can."""
    return first.excludes.get(second.name) or second.excludes.get(first.name)


def check(chosen: Iterable[type[Registered]], where: str) -> None:
    """Raises ConfigError where two of the chosen methods, or a method and the decoder, exclude each other."""
    for first, second in combinations(chosen, 2):
        reason = exclusion(first, second)
        if reason is not None:
            raise ConfigError(
                f"{where}: '{first.name}' and '{second.name}' cannot go together: {reason}; leave one of them out"
            )
