"""The runner, the demo and the report, on a stand-in for the testbed whose replies are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sightline
from sightline.benchmarks import demo as demos
from sightline.benchmarks.demo import SUITES
from sightline.benchmarks.public.captions import ChairBenchmark
from sightline.benchmarks.public.object_questions import PopeBenchmark
from sightline.benchmarks.public.pope import SPLITS
from sightline.benchmarks.report import page as report
from sightline.benchmarks.runner.run import Run, relative_time, results, run
from sightline.benchmarks.runner.tables import relative
from sightline.common.errors import ConfigError, SightlineError
from sightline.common.files import read_suite, write_text
from sightline.models.naming import EMBEDDED_SMOL
from sightline.plugin.calibration.files import shipped
from sightline.testbed.smol import NAME

from tests.helpers.standin import SCENES, Model, Processor, plans


def test_runner_interleaves_and_scores(testbed: Model) -> None:
    processor = Processor(testbed)
    benchmarks = [ChairBenchmark.of_scenes(SCENES, "describe"), PopeBenchmark.of_scenes(SCENES)]
    told: list[str] = []
    chosen = plans({"wild": {}, "mild": {}})
    runs = run(testbed, processor, benchmarks, chosen, batch={"chair": 5, "pope": 50}, advance=told.append)
    assert [item.name for item in runs] == ["plain", "wild", "mild"]
    assert told == ["plain", "wild", "mild"] * 3 + ["plain"] * 3 + ["plain", "wild", "mild"] * 2 + ["plain"] * 2
    captions = testbed.calls[1:10]  # the first call warms up; then each batch under every setting
    assert captions == [(mode, rows) for rows in (5, 5, 2) for mode in (None, "wild", "mild")]
    assert runs[0].replies == runs[1].replies
    assert runs[2].head_maps["mild"].tolist() == [[0.0, pytest.approx(1.0)], [pytest.approx(0.5), 0.0]]
    assert runs[1].head_maps == {}
    plain, _, mild = results(runs, benchmarks)
    assert (plain["chair"]["s"], plain["chair"]["i"], plain["chair"]["recall"]) == (1.0, pytest.approx(1 / 3), 1.0)
    assert (mild["chair"]["s"], mild["chair"]["recall"]) == (0.0, 1.0)
    assert plain["pope"]["adversarial"]["accuracy"] == 0.75  # yes to the fork, one of two absent objects
    assert mild["pope"]["adversarial"] | {"exact": 0} == mild["pope"]["adversarial"] | {"accuracy": 1.0, "exact": 0}
    assert mild["differences"]["chair"]["s"] == {"value": -1.0, "interval": (-1.0, -1.0)}
    assert mild["pope"]["random"]["n"] == 4 * len(SCENES)
    # Cut behind its second mention, plain names what is there and no fork: mild is no better than stopping there.
    assert mild["differences"]["chair"]["equal"] == {"value": 0.0, "interval": (0.0, 0.0)}
    assert [point["recall"] for point in plain["curves"]["chair"]] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert [point["beyond"] for point in plain["curves"]["chair"]] == [False] * 3 + [True] * 2
    # Mild says yes to half. Of those that plain says yes to, the shifted plain one takes the first ones.
    assert mild["differences"]["pope"]["adversarial"]["equal"]["value"] >= 0
    assert "equal" in mild["differences"]["pope"]["mean"]
    assert "equal" not in plain["differences"]["chair"]
    assert mild["pope"]["random"]["exact"] == 0.5
    assert {name: time["batches"] for name, time in mild["times"].items()} == {"chair": 3, "pope": 2}
    assert mild["time_ratio"] == mild["times"]["chair"]["ratio"]


def test_shared_questions_are_asked_once(testbed: Model) -> None:
    questions = PopeBenchmark.of_scenes(SCENES)
    asked = [item for split in SPLITS for item in questions.splits[split]]
    assert len(questions.samples) == len({item.sample for item in asked}) < len(asked)


def test_one_stalled_batch_does_not_move_the_time() -> None:
    """Seconds in all said 0.12 for a run that costs 1.38."""
    plain, mine = [1.0, 1.0, 30.0, 1.0, 1.0], [1.38, 1.36, 1.4, 1.38, 1.39]
    time = relative_time(mine, plain)
    assert (time["ratio"], time["low"], time["high"], time["batches"]) == (1.38, 1.36, 1.38, 5)
    bench = ChairBenchmark.of_scenes([], "describe")
    runs = [Run(name, {}, {"chair": []}, {"chair": one}) for name, one in (("plain", plain), ("mine", mine))]
    entry = results(runs, [bench])[1]
    assert relative(entry, "chair").text == "1.38"


def test_a_time_that_is_noise_is_not_quoted() -> None:
    noisy = {"time_ratio": 1.4, "times": {"chair": relative_time([1.0, 1.4, 2.6, 0.9], [1.0] * 4)}}
    assert relative(noisy, "chair").joined() == "noisy (0.97–1.70)"
    alone = {"time_ratio": 1.4, "times": {"chair": relative_time([1.4], [1.0])}}
    assert relative(alone, "chair").joined() == "1.40 (1 batch)"
    none = {"time_ratio": 0.0, "times": {"chair": relative_time([], [])}}
    assert relative(none, "chair").joined() == ""
    assert relative({"time_ratio": 1.25}, "chair").joined() == "1.25"  # a result from before


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
    assert result["runs"][2]["config"] == {"methods": [{"vhr": {"alpha": 3.0}}]}
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
    assert all(
        word in shown
        for word in (demos.LABELS["embedded"], "mild: heads that mild chose", "4 scenes of the test split")
    )
    assert "layer 0, head 1: 1" in shown  # the head map of mild


def test_report_of_plain_alone(testbed: Model, tmp_path: Path) -> None:
    empty = tmp_path / "suite.yaml"
    empty.write_text("wild: {methods: [vhr]}")
    measured = demos.demo(scenes=2, suite=empty)
    measured.result["runs"], measured.runs = measured.result["runs"][:1], measured.runs[:1]
    demos.save(measured, tmp_path, None)
    assert "Change against" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping of run name"),
        ("", "expected a mapping of run name"),
        ("a: 3", "'a': expected a configuration"),
        ("plain: {methods: []}", "rename that run"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_suite_mistakes_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_suite("demo.yaml", path)
    assert "s.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suite", SUITES.values())
def test_a_shipped_suite_parses(suite: str) -> None:
    for config in read_suite(suite).values():
        parsed = sightline.Config.load(config)
        assert parsed.methods or parsed.decoder


def test_what_the_suite_of_embedded_smol_needs_is_in_its_calibration() -> None:
    known = shipped()[NAME]
    for config in read_suite(SUITES[EMBEDDED_SMOL]).values():
        parsed = sightline.Config.load(config)
        named = [sightline.methods()[name] for name, _ in (*parsed.methods, *filter(None, [parsed.decoder]))]
        assert [section for one in named for section in one.needs if getattr(known, section, None) is None] == []


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
