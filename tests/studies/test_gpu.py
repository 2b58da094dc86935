"""`python -m studies.gpu` to its end on the CPU in a tiny setting, killed in between and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.gpu import __main__ as gpu

ROOT = Path(__file__).parents[2]
STATE = "gpu-dry-run.json"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state(out: Path) -> dict[str, Any]:
    return json.loads((out / STATE).read_text())


def test_it_goes_on_where_it_was_killed_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "studies.gpu", "--out", str(tmp_path), "--device", "cpu", "--tiny"]
    process = subprocess.Popen([*command, "--minutes", "60"], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < end and not (tmp_path / STATE).exists():
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    first = state(tmp_path)["parts"]
    assert 0 < len(first) < len(gpu.parts("cpu", True))

    assert gpu.run(tmp_path, "cpu", True, 60)
    whole, told = state(tmp_path)["parts"], capsys.readouterr().out
    assert [*whole] == [*gpu.parts("cpu", True)]
    for title, part in first.items():
        assert whole[title] == part
        assert f"{title}: there" in told
    page = (tmp_path / "gpu-dry-run.md").read_text()
    assert "dry run" in page
    assert not (tmp_path / "gpu.md").exists()
    for shape in ("llava-7b-shape", "qwen2.5-vl-7b-shape", "llama-2-7b-shape"):
        assert f"### {shape} batch 1 eager" in page
        assert f"### {shape} batch 1 compiled" in page
    for row in ("naive:var", "naive:decore", "cad", "gift compiled", "| bfloat16 | gemma3 | 4 | 4 |"):
        assert row in page, row
    assert "What is not" not in page


def test_what_does_not_fit_or_fails_is_left_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not gpu.run(tmp_path, "cpu", True, 0)
    assert "Not run yet: conformance float32 llava_gqa" in (tmp_path / "gpu-dry-run.md").read_text()

    def fail() -> dict[str, Any]:
        raise RuntimeError("no kernel image\nfor this card")

    todo = {"speed of nothing": gpu.Part(fail, 1, {})}
    monkeypatch.setattr(gpu, "parts", lambda device, tiny: todo)
    assert not gpu.run(tmp_path, "cpu", True, 1)
    assert state(tmp_path)["parts"]["speed of nothing"]["error"] == "RuntimeError: no kernel image"
    assert "no kernel image" in (tmp_path / "gpu-dry-run.md").read_text()
    calls: list[int] = []

    def work() -> dict[str, Any]:
        calls.append(1)
        return {"rows": [], "passed": 0, "dtype": "float32", "family": "none"}

    monkeypatch.setattr(gpu, "parts", lambda device, tiny: {"speed of nothing": gpu.Part(work, 1, {})})
    monkeypatch.setattr(gpu, "page", lambda found, missing: "")
    assert gpu.run(tmp_path, "cpu", True, 1)
    assert gpu.run(tmp_path, "cpu", True, 1)
    assert calls == [1]  # what failed runs again, what is there does not
    monkeypatch.setattr(gpu, "source", lambda: "other code")
    assert gpu.run(tmp_path, "cpu", True, 1)
    assert calls == [1, 1]
