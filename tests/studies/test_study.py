"""The study's page: sets of scenes taken together."""

from __future__ import annotations

import numpy as np
import pytest

from studies.pages.choice import Z, together


def change(value: float, error: float) -> dict[str, object]:
    return {"value": value, "interval": (value - Z * error, value + Z * error)}


def test_sets_taken_together_are_as_sure_as_their_weighted_mean() -> None:
    """Against draws: of all weighted means of two measurements, the one by inverse variance spreads least, and so much."""
    errors = np.array([0.5, 1.5])
    draws = np.random.default_rng(0).normal([-2.0, 1.0], errors, (200_000, 2))
    shares = np.linspace(0, 1, 101)
    spread = [(draws @ [share, 1 - share]).std() for share in shares]
    best = int(np.argmin(spread))
    both = together([change(-2.0, 0.5), change(1.0, 1.5)])
    assert both["value"] == pytest.approx(-2.0 * shares[best] + 1.0 * (1 - shares[best]), abs=0.05)
    assert both["interval"][1] - both["value"] == pytest.approx(Z * spread[best], rel=0.01)
    assert both["value"] - both["interval"][0] == pytest.approx(Z * spread[best], rel=0.01)


def test_one_set_stays_as_it_was_measured() -> None:
    one = {"value": -2.0, "interval": (-5.0, 0.5)}  # a bootstrap interval need not be symmetric
    assert together([one]) == one
