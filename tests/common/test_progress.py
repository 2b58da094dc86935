"""Progress where nobody sees a bar: a line now and then."""

from __future__ import annotations

import time

import pytest
from sightline.common import progress


def test_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.progress_bar() as bar:
        job = bar.add_task("plain", total=None)
        for number in range(300):
            now[0] += 1
            bar.update(job, advance=1, total=300, description="vhr" if number % 2 else "plain")
        bar.reset(job, description="sinks", completed=5, total=10)
    lines = capsys.readouterr().err.splitlines()
    assert 8 <= len(lines) <= 300 / progress.EVERY
    assert lines[0] == "plain: 31 of 300 done, 31 s so far" or lines[0] == "vhr: 30 of 300 done, 30 s so far"
    assert lines[-1].endswith("5 min so far")


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar() as bar:
        job = bar.add_task("plain", total=2)
        bar.update(job, advance=1)
    assert capsys.readouterr().err == ""
