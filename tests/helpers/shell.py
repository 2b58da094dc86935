"""Running the shell in this process."""

from __future__ import annotations

import pytest
from sightline.cli import main as cli

from tests.helpers.standin import Model, suite, testbed  # noqa: F401  (fixtures)

Capture = pytest.CaptureFixture[str]


def fails(arguments: list[str], capsys: Capture, *, status: int = 2) -> str:
    """Run, expect the status and exactly one line on standard error, and return it."""
    assert cli.main(arguments) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err
