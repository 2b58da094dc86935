"""The command line: exit statuses, one clear line for a mistake, no tracebacks, results in files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sightline.benchmarks import demo as demos
from sightline.cli import main as cli

from tests.helpers.shell import Capture, fails
from tests.helpers.standin import Model, suite, testbed  # noqa: F401  (fixtures)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], ["frobnicate", "--help"]),
        (["demo", "--scenes", "0"], ["--scenes"]),
        (["demo", "--scenes", "many"], ["--scenes"]),
        (["demo", "--sceens", "3"], ["--sceens"]),
        (["demo", "--suite", "missing.yaml"], ["missing.yaml", "No such file"]),
        (["demo", "--json", "/dev/null/x.json"], ["/dev/null/x.json", "another place"]),
        (["bench"], ["--methods"]),
        (["bench", "--methods", ","], ["nothing to measure"]),
        (["bench", "--methods", "missing.yaml"], ["missing.yaml"]),
        (["bench", "--methods", "vhr", "--model", "llava-shape", "--dtype", "int3"], ["int3", "float16"]),
        (["generate", "embedded"], ["--prompt"]),
        (["generate", "embedded", "--prompt", "x", "--image", "missing.png"], ["missing.png", "--image"]),
        (["methods", "nope"], ["nope", "vhr"]),
        (["show"], ["FILE"]),
        (["show", "missing.yaml"], ["missing.yaml"]),
    ],
)
def test_mistakes(
    arguments: list[str], words: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = fails(arguments, capsys)
    assert [word for word in words if word.lower() not in line.lower()] == []


def test_unreadable_image(capsys: Capture, tmp_path: Path) -> None:
    bad = tmp_path / "notes.png"
    bad.write_text("not a picture")
    assert "notes.png" in fails(["generate", "embedded", "--prompt", "x", "--image", str(bad)], capsys)
    assert "image" in fails(["generate", "embedded", "--prompt", "x", "--image", str(tmp_path)], capsys)


def test_configuration_is_read_before_the_model(capsys: Capture, tmp_path: Path, picture: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("methods: [{vrh: {}}]")
    ask = ["generate", "no/such/model", "--prompt", "x", "--image", picture, "--config"]
    line = fails([*ask, str(config)], capsys)
    assert "vrh" in line
    assert "c.yaml" in line
    assert "unknown method" in fails([*ask, "vrh"], capsys)


def test_no_such_model(capsys: Capture, tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = fails(["generate", str(tmp_path), "--prompt", "x", "--image", picture], capsys)
    assert "config.json" in line


def test_our_fault_is_one_line_and_a_file(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(demos, "demo", broken)
    monkeypatch.delenv("SIGHTLINE_DEBUG", raising=False)
    line = fails(["demo", "--out", str(tmp_path)], capsys, status=1)
    assert "two lines" in line
    file = Path(line.split("traceback in ")[1].split(" (or")[0])
    assert "RuntimeError" in file.read_text()
    file.unlink()
    monkeypatch.setenv("SIGHTLINE_DEBUG", "1")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demos, "demo", stopped)
    assert (
        fails(["demo", "--out", str(tmp_path)], capsys, status=130)
        == "error: interrupted; nothing is kept yet: run the same command again\n"
    )


def test_demo_writes_report_and_json(
    testbed: Model,  # noqa: F811
    suite: Path,  # noqa: F811
    tmp_path: Path,
    capsys: Capture,
) -> None:
    json_file = tmp_path / "r.json"
    out = tmp_path / "out"
    arguments = ["demo", "--scenes", "4", "--suite", str(suite), "--out", str(out), "--json", str(json_file)]
    assert cli.main(arguments) == 0
    assert [entry["name"] for entry in json.loads(json_file.read_text())["runs"]] == ["plain", "wild", "mild"]
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    shown = capsys.readouterr().out
    assert "CHAIR_I" in shown
    assert str(json_file) in shown


def test_methods_lists_every_setting(capsys: Capture, tmp_path: Path) -> None:
    assert cli.main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("vhr", "var", "gift"))
    assert cli.main(["methods", "vhr", "--json", str(tmp_path / "m.json")]) == 0
    (vhr,) = json.loads((tmp_path / "m.json").read_text())
    alpha = next(item for item in vhr["settings"] if item["name"] == "alpha")
    assert alpha == {
        "name": "alpha",
        "type": "number >= 0",
        "default": 2.0,
        "description": "factor on the chosen heads' output",
    }


def test_show_draws_the_head_map(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "schema: 1\nmodel: m\narchitecture: llava\nlayers: 2\nheads: 3\n"
        "visual_heads: {layers: [1], scores: [[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]]}\n"
    )
    assert cli.main(["show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "architecture: llava" in shown
    assert "visual_heads.scores" in shown
    assert "    0    ▒▒██  max 1 at head 2" in shown
    assert "scores: [[" not in shown


def test_help_and_version(capsys: Capture) -> None:
    for arguments in ([], ["--help"], ["demo", "-h"], ["--version"]):
        assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("demo", "generate", "calibrate", "tune", "bench", "methods", "show"))


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from sightline.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "sightline", "show"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: show needs a calibration file")
    assert done.stderr.count("\n") == 1
