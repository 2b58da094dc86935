"""Fixtures of all tests: one thread, and no failure that spreads to the tests after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sightline

from tests.helpers import tiny
from tests.helpers.engine import SHARED


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Threads only cost on models of this size, the more the busier the machine."""
    with tiny.one_thread():
        yield


@pytest.fixture(autouse=True)
def _detach_what_a_failed_test_left() -> Iterator[None]:
    """One failure must not spread to the tests after it."""
    yield
    for case in SHARED.values():
        sightline.unwrap(case.model)
        host = case.model.__dict__.get("_sightline_host")
        for plug in list(host.plugs) if host is not None else ():
            plug.detach()
