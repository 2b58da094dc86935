"""Fixtures of the benchmarks' tests."""

from tests.helpers.standin import suite, testbed

__all__ = ["suite", "testbed"]
