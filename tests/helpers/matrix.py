"""What of a product of cases `make test` runs; the rest carries the marker `matrix` and runs in `make test-all`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest


def covering(cases: Sequence[tuple[str, str]]) -> list[Any]:
    """(family, setup) pairs, marked `matrix` but for a few that have every setup and every family at least once.

    A setup takes the family that was taken least so far; a family that is left over takes the last setup that it has.
    """
    kept: list[tuple[str, str]] = []
    taken: Counter[str] = Counter()
    for setup in dict.fromkeys(setup for _, setup in cases):
        family = min((one for one, other in cases if other == setup), key=lambda one: taken[one])
        taken[family] += 1
        kept.append((family, setup))
    for family in dict.fromkeys(family for family, _ in cases):
        if not taken[family]:
            kept.append([case for case in cases if case[0] == family][-1])
    return [pytest.param(*case, id="-".join(case), marks=() if case in kept else pytest.mark.matrix) for case in cases]
