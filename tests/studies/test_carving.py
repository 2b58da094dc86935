"""The page of CARVE holds what its file says."""

import json
from pathlib import Path

from studies.carving import page

RESULTS = Path(__file__).parents[2] / "eval/results"


def test_the_page_is_that_of_its_file() -> None:
    made = page(json.loads((RESULTS / "carve.json").read_text(encoding="utf-8")))
    written = (RESULTS / "carve.md").read_text(encoding="utf-8")
    lines = [line for line in made.splitlines() if line.startswith("|")]
    assert len(lines) > 50
    assert any("McNemar" in line for line in lines)
    assert [line for line in lines if line not in written] == []
