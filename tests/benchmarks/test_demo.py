"""The runner, the demo and the report, on a stand-in for the testbed whose replies are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sightline
from sightline.benchmarks import demo as demos
from sightline.benchmarks.public.pope import SPLITS
from sightline.benchmarks.report import page as report
from sightline.benchmarks.runner.run import calls, results, run
from sightline.benchmarks.runner.tasks import scene_tasks
from sightline.common.errors import ConfigError, SightlineError
from sightline.common.files import read_suite, write_text

from tests.helpers.standin import SCENES, Model, Processor, attach


def test_runner_interleaves_and_scores(testbed: Model) -> None:
    processor = Processor(testbed)
    tasks = scene_tasks(processor, SCENES, seed=0)
    tasks[0].batch, tasks[1].batch = 5, 50
    configs = {"wild": {"methods": [{"wild": {}}]}, "mild": {"methods": [{"mild": {}}]}}
    told: list[str] = []
    runs = run(testbed, processor, tasks, configs, attach=attach, advance=told.append)
    assert [item.name for item in runs] == ["plain", "wild", "mild"]
    assert len(told) == calls(tasks, configs)
    captions = testbed.calls[1:10]  # the first call warms up; then each batch under every setting
    assert captions == [(mode, rows) for rows in (5, 5, 2) for mode in (None, "wild", "mild")]
    assert runs[0].replies == runs[1].replies
    assert runs[2].head_maps["mild"].tolist() == [[0.0, pytest.approx(1.0)], [pytest.approx(0.5), 0.0]]
    assert runs[1].head_maps == {}
    plain, _, mild = results(runs, tasks)
    assert (plain["chair"]["s"], plain["chair"]["i"], plain["chair"]["recall"]) == (1.0, pytest.approx(1 / 3), 1.0)
    assert (mild["chair"]["s"], mild["chair"]["recall"]) == (0.0, 1.0)
    assert plain["pope"]["adversarial"]["accuracy"] == 0.75  # yes to the fork, one of two absent objects
    assert mild["pope"]["adversarial"] | {"exact": 0} == mild["pope"]["adversarial"] | {"accuracy": 1.0, "exact": 0}
    assert mild["differences"]["chair"]["s"] == {"value": -1.0, "interval": (-1.0, -1.0)}
    assert mild["pope"]["random"]["n"] == 4 * len(SCENES)
    assert mild["pope"]["random"]["exact"] == 0.5


def test_shared_questions_are_asked_once(testbed: Model) -> None:
    _, questions = scene_tasks(Processor(testbed), SCENES)
    asked = [one for split in SPLITS for one in questions.questions[split]]
    assert len(questions.requests()) == len(set(asked)) < len(asked)


def test_demo_result_keeps_the_contract(testbed: Model, suite: Path, tmp_path: Path) -> None:
    measured = demos.demo(scenes=6, suite=suite)
    assert testbed.testbed.asked == ["test"]  # type: ignore[attr-defined]
    written = demos.save(measured, tmp_path / "out", tmp_path / "deep" / "result.json")
    assert [path.name for path in written] == [
        "report.html",
        "report.md",
        "samples.jsonl",
        "result.json",
        "result.json",
    ]
    result = json.loads((tmp_path / "deep" / "result.json").read_text())
    assert {"runs", "command", "versions", "hashes"} <= set(result)
    assert result["label"] == "embedded testbed model, generated scenes"
    assert [entry["name"] for entry in result["runs"]] == ["plain", "wild", "mild"]
    for entry in result["runs"]:
        assert {"name", "config", "chair", "pope", "time_ratio", "intervals"} <= set(entry)
        assert {"s", "i", "recall", "words", "n"} <= set(entry["chair"])
        assert set(entry["pope"]) == set(SPLITS)
        for split in SPLITS:
            keys = {"accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed", "n"}
            assert keys <= set(entry["pope"][split])
            low, high = entry["intervals"]["pope"][split]["f1"]
            assert 0 <= low <= high <= 1
    assert result["runs"][0]["time_ratio"] == 1.0
    assert result["runs"][2]["config"] == {"methods": [{"mild": {"alpha": 2}}]}
    assert set(result["hashes"]) == {"model", "scenes", "suite", "calibration"}
    assert not list((tmp_path / "out").glob(".*"))  # no temporary files left


def test_tables_print(testbed: Model, suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    for table in demos.tables(demos.demo(scenes=4, suite=suite).result):
        Console(width=140).print(table)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("plain", "mild", "CHAIR_I", "adversarial", "embedded testbed model"))


def test_the_folder_is_one_that_reports_are_made_of(testbed: Model, suite: Path, tmp_path: Path) -> None:
    measured = demos.demo(scenes=4, suite=suite)
    demos.save(measured, tmp_path / "a", None)
    made = report.write([tmp_path / "a"], tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_text() == (tmp_path / "a" / "report.html").read_text()
    captions, questions = made.sections
    assert (captions.benchmark, captions.n, questions.benchmark) == ("chair", 4, "pope")
    assert [entry["name"] for entry in captions.runs] == ["plain", "wild", "mild"]
    assert [len(one.samples) for one in made.sections] == [4, 0]
    wrong = [[m["name"] for m in row["runs"]["plain"]["mentions"] if m["hallucinated"]] for row in captions.samples]
    assert wrong == [["fork"]] * 4
    assert captions.samples[1]["runs"]["mild"]["reply"].startswith("A <b>photo</b> & a ")
    shown = (tmp_path / "a" / "report.html").read_text()
    assert "<b>photo" not in shown
    assert all(word in shown for word in (demos.LABEL, "mild: heads that mild chose", "4 scenes of the test split"))
    assert "layer 0, head 1: 1" in shown  # the head map of mild


def test_report_of_plain_alone(testbed: Model, tmp_path: Path) -> None:
    empty = tmp_path / "suite.yaml"
    empty.write_text("wild: {methods: [{wild: {}}]}")
    measured = demos.demo(scenes=2, suite=empty)
    measured.result["runs"], measured.runs = measured.result["runs"][:1], measured.runs[:1]
    demos.save(measured, tmp_path, None)
    assert "Change against" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping of run name"),
        ("", "expected a mapping of run name"),
        ("a: 3", "a: expected a configuration"),
        ("plain: {methods: []}", "rename that run"),
        ("a: [", "is not YAML"),
    ],
)
def test_suite_mistakes_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_suite("demo.yaml", path)
    assert "s.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_suite_parses() -> None:
    for config in read_suite("demo.yaml").values():
        parsed = sightline.Config.load(config)
        assert parsed.methods or parsed.decoder


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(SightlineError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]
