"""Benchmarks by name, ours and those of other distributions."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
from sightline.benchmarks.benchmark import Benchmark, DataSource
from sightline.benchmarks.public.textqa import Choosing
from sightline.benchmarks.runner import suite
from sightline.common.errors import ConfigError


class Foreign(Choosing):
    """A benchmark of another distribution."""

    name = "foreign"

    @classmethod
    def read(cls, source: DataSource) -> Benchmark:
        raise NotImplementedError


def bring(monkeypatch: pytest.MonkeyPatch, name: str, place: str) -> None:
    monkeypatch.setitem(suite.BENCHMARKS, name, EntryPoint(name, place, suite.GROUP))


def test_another_distribution_brings_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, "foreign", f"{__name__}:Foreign")
    assert suite.find("foreign") is Foreign
    with pytest.raises(ConfigError, match=r"there are pope, chair, .*, foreign"):
        suite.find("strange")


@pytest.mark.parametrize(
    ("name", "place", "says"),
    [
        ("foreign", "nowhere.at_all:Foreign", "cannot be loaded: ModuleNotFoundError"),
        ("other", f"{__name__}:Foreign", "is no Benchmark whose name is 'other'"),
        ("bring", f"{__name__}:bring", "is no Benchmark whose name is 'bring'"),
    ],
)
def test_one_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, name: str, place: str, says: str) -> None:
    bring(monkeypatch, name, place)
    with pytest.raises(ConfigError, match=says):
        suite.find(name)
