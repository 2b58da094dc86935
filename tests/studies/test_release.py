"""The version is the same wherever it stands, and what a release tries is the README's own snippet."""

from __future__ import annotations

import pytest
from sightline import __version__

from studies import release


def test_version_is_one() -> None:
    assert release.contradictions([f"v{__version__}"]) == []


def test_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "__version__", "9.9.9")
    found = release.contradictions(["v1.0.0"])
    assert [one.split()[0] for one in found] == ["CHANGELOG.md", "CITATION.cff", "this"]


def test_snippet_is_complete() -> None:
    source, shown = release.first_snippet()
    assert 'load_model("embedded")' in source
    assert shown.startswith("there: ")
