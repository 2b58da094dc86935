"""The examples run and print what they are for; the notebooks print what stands in them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from sightline.plugin.core.registry import METHODS

from .snippets import ROOT

EXAMPLES = ROOT / "docs/examples"
Capture = pytest.CaptureFixture[str]


def _run(name: str, capsys: Capture) -> list[str]:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_all_are_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(files) == 7
    assert all(f"[{name}]({name})" in listed for name in files)


def test_caption(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["caption.py"])
    plain, vhr = _run("caption.py", capsys)
    assert plain.endswith("a bird.")
    assert "bird" not in vhr


def test_pope_on_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pope_on_photos.py"])
    runpy.run_path(str(EXAMPLES / "pope_on_photos.py"), run_name="__main__")
    result = json.loads((tmp_path / "pope-out/result.json").read_text())
    assert [run["name"] for run in result["runs"]] == ["plain", "vhr"]
    assert (tmp_path / "report-out/report.html").is_file()


def test_chat_in_a_thread(capsys: Capture) -> None:
    first, second = _run("chat_in_a_thread.py", capsys)
    assert first == "Is there a boat in the image? Yes."
    assert second == "Is there a giraffe in the image? No."


def test_decore_on_text(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["decore_on_text.py"])
    plain, decore = _run("decore_on_text.py", capsys)
    assert "Venus" not in plain
    assert "Venus" in decore


def test_own_method(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.known()
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))
    left, changed = _run("own_method.py", capsys)
    assert left.endswith("a person. There is also a boat and a bird.")
    assert "bird" not in changed


@pytest.mark.parametrize("name", ["first_caption.ipynb", "where_it_looks.ipynb"])
def test_notebooks(name: str, capsys: Capture) -> None:
    """Every cell in order, in one namespace, as a kernel runs them."""
    space: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), space)
            shown = "".join(line for output in cell["outputs"] for line in output["text"])
            assert capsys.readouterr().out == shown
