"""What the shell says before, while and after it works: mistakes at once, near names, how to go on."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from sightline.benchmarks import demo as demos
from sightline.benchmarks.runner import evaluate
from sightline.benchmarks.speed import bench
from sightline.cli import generate, listing
from sightline.cli import main as cli
from sightline.common.errors import NoEffectWarning, SightlineError
from sightline.common.files import locked
from sightline.models import loading, naming
from sightline.plugin.calibration.files import FOLDER
from sightline.profiling import calibrate

from tests.helpers.shell import Capture, fails


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and none of the user's calibration files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path / "own"))
    return tmp_path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loading, generate):
        monkeypatch.setattr(module, "load_model", lambda name, **_: pytest.fail(f"{name} was loaded"))
    monkeypatch.setattr(bench, "build", lambda name, **_: pytest.fail(f"{name} was loaded"))


# --- mistakes are told before a model is loaded ----------------------------------------------------------------------

EVAL = ["eval", "pope", "embedded"]
GENERATE = ["generate", "embedded", "--prompt", "x"]
MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "benchmark alone": (["eval", "popr"], ("popr", "did you mean 'pope'")),
    "benchmark": (["eval", "nope", "embedded"], ("nope", "pope")),
    "engine": (["eval", "pope", "embedded", "--engine", "foo"], ("--engine", "foo", "lmms-eval")),
    "engine and no model": (["eval", "--engine", "foo", "--tasks", "x"], ("--engine", "foo")),
    "neither model nor answers": (["eval", "pope"], ("MODEL", "--answers", "sightline eval --help")),
    "shortest reply": ([*EVAL, "--min-new-tokens", "12"], ("--min-new-tokens 12", "longest reply, 10")),
    "two models": ([*EVAL, "--model", "smollm2"], ("embedded", "smollm2")),
    "data": ([*EVAL, "--data", "nodir"], ("nodir",)),
    "config": ([*EVAL, "--config", "vrh"], ("vrh", "did you mean 'vhr'")),
    "config file": ([*EVAL, "--config", "nofile.yaml"], ("nofile.yaml",)),
    "calibration": ([*EVAL, "--config", "vhr", "--calibration", "bad.yaml"], ("bad.yaml", "not valid YAML")),
    "calibration of a config": ([*EVAL, "--config", "c.yaml"], ("bad.yaml", "not valid YAML")),
    "json": ([*EVAL, "--json", "nodir/x.json"], ("nodir/x.json", "no folder")),
    "answers": (["eval", "pope", "--answers", "nofile"], ("nofile",)),
    "generate's calibration": ([*GENERATE, "--config", "vhr", "--calibration", "bad.yaml"], ("bad.yaml",)),
    "generate's picture": ([*GENERATE, "--config", "vhr"], ("vhr", "--image")),
    "generate's map": ([*GENERATE, "--image", "x.png", "--carve", "nodir/x.png"], ("nodir",)),
    "profile": (["calibrate", "embedded", "--profile", "sink"], ("sink", "did you mean 'sinks'")),
    "calibrate's data": (["calibrate", "embedded", "--data", "nodir"], ("nodir",)),
    "calibrate's rows": (["calibrate", "embedded", "--data", "rows"], ("x.jsonl, line 1", "'image'")),
    "import": (["calibrate", "embedded", "--import", "nofile.json"], ("nofile.json",)),
    "calibrate's file": (["calibrate", "embedded", "--out", "bad.yaml"], ("bad.yaml", "not valid YAML")),
    "tune's entry": (["tune", "embedded", "--methods", "vrh"], ("vrh",)),
    "objective": (["tune", "embedded", "--methods", "vhr", "--objective", "chair"], ("chair", "did you mean")),
    "guard": (["tune", "embedded", "--methods", "vhr", "--keep", "x"], ("--keep", "x")),
    "tune's calibration": (["tune", "embedded", "--methods", "vhr", "--calibration", "bad.yaml"], ("bad.yaml",)),
    "tune's data": (["tune", "embedded", "--methods", "vhr", "--data", "nodir"], ("nodir",)),
    "bench": (["bench", "embedded", "--methods", "vrh"], ("vrh",)),
    "bench's calibration": (["bench", "--methods", "vhr", "--calibration", "bad.yaml"], ("bad.yaml",)),
    "method": (["methods", "vrh"], ("vrh", "did you mean 'vhr'")),
    "no model": (["generate", "--prompt", "x"], ("MODEL", "sightline generate --help")),
    "an option": (["generate", "embedded", "--promt", "x"], ("--promt", "sightline generate --help")),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_does_not_wait_for_the_model(name: str, here: Path, capsys: Capture) -> None:
    (here / "bad.yaml").write_text("model: [")
    (here / "c.yaml").write_text("calibration: bad.yaml\nmethods: [vhr]")
    (here / "rows").mkdir()
    (here / "rows" / "x.jsonl").write_text('{"image": 5}\n')
    before = sorted(here.rglob("*"))
    arguments, words = MISTAKES[name]
    line = fails(arguments, capsys)
    assert [word for word in words if word not in line] == []
    assert sorted(here.rglob("*")) == before, "a failed run leaves nothing"


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"), [("embeded", "embedded"), ("Embedded", "embedded"), ("smollm", "smollm2"), ("./modle", "model")]
)
def test_a_misspelt_model_offers_the_near_one(given: str, meant: str, here: Path, capsys: Capture) -> None:
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    assert f"did you mean '{meant}'" in fails(["generate", given, "--prompt", "x"], capsys)


def test_a_hub_that_is_away_costs_no_minute(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(url: str, **how: Any) -> None:
        asked.append(how["timeout"])
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", away)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here))
    (here / "models--llava-hf--llava-1.5-7b-hf").mkdir()
    started = time.monotonic()
    line = fails(["generate", "llava-hf/llava-1.5-7b", "--prompt", "x"], capsys)
    assert "did you mean 'llava-hf/llava-1.5-7b-hf'" in line
    assert "cannot be reached" in line
    assert asked == [naming.PATIENCE]
    assert time.monotonic() - started < 30
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: "/cache/config.json")
    assert naming.checkpoint("somebody/cached") == naming.Checkpoint("somebody/cached", local=True)


@pytest.mark.parametrize("name", ["a b/c", "x" * 300, "\0", "/nope/x", "~/nope", "a/b/c"])
def test_names_that_no_model_has(name: str) -> None:
    with pytest.raises(SightlineError, match="model"):
        naming.checkpoint(name)


@pytest.mark.parametrize(
    "rest",
    [
        ["generate", "--prompt", "x"],
        ["calibrate", "--profile", "sinks"],
        ["tune", "--methods", "vhr", "--samples", "2", "--report-samples", "0"],
        ["eval", "pope", "--limit", "1"],
    ],
)
def test_the_model_is_named_the_same_way_everywhere(
    rest: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, **_: Any) -> None:
        raise SightlineError(f"loading {name}")

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(generate, "load_model", load)
    command, *options = rest
    ways = [[command, *options, "--model", "mine"], [command, *options, "mine"], [*rest, "mine", "--model", "mine"]]
    assert {fails(way, capsys).strip() for way in ways} == {"error: loading mine"}


def test_bench_takes_it_too(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(name: str, *_: Any, **__: Any) -> None:
        raise SightlineError(f"measuring {name}")

    monkeypatch.setattr(bench, "bench", measured)
    for given, name in ((["mine"], "mine"), (["--model", "mine"], "mine"), ([], "embedded")):
        assert fails(["bench", "--methods", "vhr", *given], capsys) == f"error: measuring {name}\n"


def test_tasks_leave_the_first_place_to_the_model(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **_: Any) -> None:
        raise SightlineError(f"loading {name}")

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr("sightline.benchmarks.harness.offline.package_folder", lambda engine: Path())
    assert fails(["eval", "--engine", "lm-eval", "--tasks", "x", "mine"], capsys) == "error: loading mine\n"


def test_no_picture_is_said(capsys: Capture) -> None:
    assert cli.main(["generate", "embedded", "--prompt", "What is there?", "--max-new-tokens", "2"]) == 0
    assert re.search(r"note: embedded sees, but there is no picture: .*--image", capsys.readouterr().err)


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_is_not_cut(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.replace("[ARGS]...", "")
    assert "one HTML page with every caption, its hallucinated words marked, and a Markdown page." in " ".join(
        shown.split()
    )
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 90


# --- interrupts, full disks, locks -----------------------------------------------------------------------------------


def test_an_interrupted_evaluation_says_how_to_go_on(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_model", lambda name, **_: (None, None))

    def stopped(*_: Any, **__: Any) -> None:
        (here / "out" / "plain").mkdir(parents=True)
        (here / "out" / "plain" / "rank-0.jsonl").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate", stopped)
    line = fails(["eval", "pope", "embedded", "--limit", "1", "--out", "out"], capsys, status=130)
    assert line == "error: interrupted; what is done is kept in out: run the same command again to go on\n"


def test_an_interrupted_demo_says_how_to_go_on(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demos, "demo", stopped)
    line = fails(["demo"], capsys, status=130)
    assert line == "error: interrupted; nothing is kept yet: run the same command again\n"


def test_an_interrupted_calibration_says_how_to_go_on(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_model", lambda name, **_: (None, None))
    monkeypatch.setattr(calibrate, "calibrate", stopped)
    assert "--resume" in fails(["calibrate", "embedded"], capsys, status=130)


def test_a_full_disk_is_no_fault_of_ours(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str | None = None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(listing, "catalogue", full)
    line = fails(["methods"], capsys)
    assert line == "error: cannot write somewhere: No space left on device; make room and run it again\n"


def test_full_output() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sightline", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device; make room and run it again\n"


@pytest.mark.usefixtures("no_model")
def test_one_search_in_a_folder(here: Path, capsys: Capture) -> None:
    with locked(here / "out" / ".lock", "out"):
        assert "out is in use by another process" in fails(
            ["tune", "embedded", "--methods", "vhr", "--out", "out"], capsys
        )
    assert list(here.iterdir()) == []


# --- the user's own calibration --------------------------------------------------------------------------------------


def test_calibrating_says_what_changes_and_the_demo_what_it_takes(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["calibrate", "embedded", "--profile", "replies", "--samples", "1"]) == 0
    (own,) = (here / "own").iterdir()
    said = " ".join(capsys.readouterr().err.split())
    assert f"from now on attach, demo, eval, tune and generate take {own} for this model" in said
    assert "delete it" in said
    asked = ["generate", "embedded", "--prompt", "x", "--max-new-tokens", "2", "--config", "dola"]
    assert cli.main(asked) == 0
    assert f"calibration: your own file {own}" in capsys.readouterr().err
    for used in (str(own), "shipped for sightline/testbed"):
        monkeypatch.setattr(demos, "demo", lambda used=used, **_: SimpleNamespace(result={"calibration": used}))
        monkeypatch.setattr(demos, "tables", lambda result: [])
        monkeypatch.setattr(demos, "save", lambda *_: [])
        assert cli.main(["demo"]) == 0
        assert (f"calibration: your own file {own}" in capsys.readouterr().err) == (used == str(own))


def test_a_warning_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def told(*given: Any) -> None:  # pytest records warnings, and so keeps them from being written
        sys.stderr.write(warnings.formatwarning(*given[:4]))

    def answers(*_: Any, **__: Any) -> dict[str, str]:
        warnings.warn("method 'var' can do nothing", NoEffectWarning, stacklevel=1)
        return {"reply": "A dog."}

    monkeypatch.setattr(warnings, "showwarning", told)
    monkeypatch.setattr(generate, "reply", answers)
    assert cli.main(["generate", "embedded", "--prompt", "Hi"]) == 0
    assert capsys.readouterr() == ("A dog.\n", "warning: method 'var' can do nothing\n")


def test_a_picture_that_cannot_be_drawn_is_told_before_the_maps(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shipped = Path(__file__).parents[2] / "calibration/testbed.yaml"
    assert cli.main(["show", str(shipped), "--png", "heads.png"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "matplotlib" in err
