"""`sightline calibrate` as a whole: what is kept, continued, halved, merged and refused; and what is shown of files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
from accelerate import dispatch_model
from sightline import Calibration, CalibrationError, ConfigError, SightlineError
from sightline.benchmarks.demo import demo
from sightline.cli import main as cli
from sightline.common.files import write_text
from sightline.common.readers import Notes
from sightline.models.loading import load_model
from sightline.models.observe import Batch
from sightline.plugin.calibration.files import FOLDER, calibration_hash, own_file
from sightline.plugin.calibration.sections import RetrievalHeads, SourcedSection
from sightline.plugin.core.host import Host
from sightline.profiling import calibrate as module
from sightline.profiling import profiles
from sightline.profiling.calibrate import calibrate, section_of
from sightline.profiling.data.examples import examples
from sightline.profiling.job import Job, Partial
from sightline.profiling.probes.replies import measure_replies
from sightline.profiling.showing import compare, maps

from tests.helpers import tiny
from tests.helpers.engine import assert_message
from tests.helpers.profiling_stub import Processor, job, shown


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's files."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "own"))
    return tmp_path / "own"


# --- adding up -------------------------------------------------------------------------------------------------------


def count(batch: Batch) -> Mapping[str, torch.Tensor]:
    """Numbers that tell which examples were added up, and how often."""
    return {"sum": torch.tensor([10.0 ** int(one.id) for one in batch.examples]).double().sum()}


@pytest.fixture
def processor() -> Processor:
    return Processor(tiny.get("llama"))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_every_example_is_added_once(processor: Processor, tmp_path: Path, batch: int) -> None:
    work = job(processor, tmp_path, count=7, batch=batch)
    assert float(work.total("x", count)["sum"]) == 1111111
    assert work.samples == 7


@pytest.mark.parametrize("stopped_at", [0, 2, 5])
def test_an_interrupted_run_continues_where_it_stopped(processor: Processor, tmp_path: Path, stopped_at: int) -> None:
    path, looked = tmp_path / "f.partial", []

    def begin(resume: bool) -> Job:
        kept = Partial(path, {"model": "m"}, resume=resume)
        return Job(
            processor.case.model, processor, shown(processor, 6), Host(processor.case.model).facts(None), kept, batch=1
        )

    def stop(batch: Batch) -> Mapping[str, torch.Tensor]:
        if int(batch.examples[0].id) == stopped_at:
            raise KeyboardInterrupt
        return count(batch)

    work = begin(resume=False)
    assert float(work.total("done", count)["sum"]) == 111111
    with pytest.raises(KeyboardInterrupt):
        work.total("x", stop)
    work.partial.save()

    def look(batch: Batch) -> Mapping[str, torch.Tensor]:
        looked.append(int(batch.examples[0].id))
        return count(batch)

    again = begin(resume=True)
    assert float(again.total("done", look)["sum"]) == 111111
    assert looked == []
    assert float(again.total("x", look)["sum"]) == 111111
    assert looked == list(range(stopped_at, 6))


def test_memory_that_runs_out_halves_the_batch(processor: Processor, tmp_path: Path) -> None:
    said: list[str] = []
    work = job(processor, tmp_path, count=7, batch=6, say=said.append)

    def hungry(batch: Batch) -> Mapping[str, torch.Tensor]:
        if len(batch.examples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return count(batch)

    assert float(work.total("x", hungry)["sum"]) == 1111111
    assert [line.split("continuing with ")[1] for line in said] == ["3", "1"]

    def starving(batch: Batch) -> Mapping[str, torch.Tensor]:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(SightlineError, match="one example at a time"):
        work.total("y", starving)

    def broken(batch: Batch) -> Mapping[str, torch.Tensor]:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        work.total("z", broken)


def test_what_was_left_behind_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "f.partial"
    kept = Partial(path, {"model": "m", "seed": 0}, resume=False)
    kept.put("a/b", {"sum": torch.ones(2)}, 3)
    kept.save()
    assert Partial(path, {"model": "m", "seed": 0}, resume=True).get("a/b")[1] == 3
    assert Partial(path, {"model": "m", "seed": 0}, resume=False).done == {}
    with pytest.raises(SightlineError, match="seed 0, not 1") as caught:
        Partial(path, {"model": "m", "seed": 1}, resume=True)
    assert_message(caught.value, "--resume")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SightlineError, match="damaged"):
        Partial(path, {"model": "m", "seed": 0}, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["f.partial"]


# --- the embedded model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return load_model("embedded")


FOUND = [
    "sinks",
    "gaze",
    "visual-heads",
    "replies",
    "gate-thresholds",
    "image-heads",
    "concept-heads",
    "inducing-heads",
]  # of the embedded model


def test_reply_lengths_are_those_of_plain_greedy_answers(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    shown = examples("testbed", 3, seed=0, sees=True, notes=Notes())
    lengths = []
    for example in shown:
        inputs = Batch(model, processor, [example]).inputs
        ids = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        lengths.append(int((ids != processor.tokenizer.eos_token_id).sum()))
    host = Host(model)
    work = Job(model, processor, shown, host.facts(None), Partial(tmp_path / "f.partial", {}, resume=False), batch=2)
    assert measure_replies(work).tokens == pytest.approx(sum(lengths) / 3, abs=0.006)


def test_calibrate_makes_a_file_that_is_found_and_used(embedded: tuple[Any, Any], own_folder: Path) -> None:
    model, processor = embedded
    measured = calibrate(model, processor, samples=4, batch=4, command="sightline calibrate embedded")
    assert measured.path == own_file(model)
    assert re.fullmatch(r"testbed-[0-9a-f]{12}\.yaml", measured.path.name)
    assert list(measured.sections) == FOUND
    assert "none of" in measured.skipped["retrieval-heads"]
    assert "name none" in measured.skipped["ocr-heads"]
    file = Calibration.load(measured.path)
    assert file == measured.calibration == Calibration.load("auto", model)
    kept = file.facts().keys() - {section_of(name) for name in FOUND}  # of the shipped file, made by another command
    assert kept == {"grounding"}
    for name, fact in file.facts().items():
        assert fact.source is not None
        if name in kept:
            continue
        assert fact.source.command == "sightline calibrate embedded"
        assert fact.source.samples == (8 if name == "inducing_heads" else 4)  # of a picture: one thing there, one not
        assert fact.source.seconds is not None
    assert list(own_folder.iterdir()) == [measured.path]
    config = {"methods": ["var", {"vhr": {"static": True}}, "gift"]}
    with sightline.attach(model, config, processor=processor) as plug:
        layers = plug._runner.methods["gift"].saliency_layers  # type: ignore[attr-defined]
        assert list(layers) == file.gaze.saliency_layers  # type: ignore[union-attr]


def test_the_demo_uses_the_file_that_was_measured(embedded: tuple[Any, Any], own_folder: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("static: {methods: [{vhr: {static: true, alpha: 4}}]}")
    before = demo(scenes=1, suite=suite).result
    assert before["calibration"] == "shipped for sightline/testbed"
    assert before["hashes"]["calibration"] == calibration_hash(Calibration.load("auto", embedded[0]))
    file = Calibration.load("auto", embedded[0])
    calibrate(*embedded, profiles=["visual-heads"], samples=2)
    after = demo(scenes=1, suite=suite).result
    own = own_file(embedded[0])
    assert after["calibration"] == str(own)
    fresh = Calibration.load(own)
    assert after["hashes"]["calibration"] == calibration_hash(fresh) != before["hashes"]["calibration"]
    assert fresh.visual_heads is not None
    assert file.visual_heads is not None
    fewest = [[0.0] * 8 for _ in range(8)]
    fewest[7][7] = 1.0  # a file by which VHR takes one head only
    heads = fresh.visual_heads.model_copy(update={"chosen": fewest, "layers": [7]})
    write_text(own, fresh.model_copy(update={"visual_heads": heads}).dump())
    maps_of = [run["runs"][1]["head_maps"]["vhr"] for run in (after, demo(scenes=1, suite=suite).result)]
    assert maps_of[1] == fewest
    assert maps_of[0] != fewest


def test_two_runs_of_one_seed_are_the_same_file(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    found = []
    for name, batch in (("a", 3), ("b", 2)):
        calibrate(model, processor, profiles=["sinks", "gaze"], samples=3, batch=batch, out=tmp_path / f"{name}.yaml")
        found.append(Calibration.load(tmp_path / f"{name}.yaml"))
    assert found[0].sink is not None
    assert found[1].sink is not None
    assert found[0].sink.dims == found[1].sink.dims
    assert found[0].sink.tau == found[1].sink.tau
    assert found[0].gaze is not None
    assert found[1].gaze is not None
    assert found[0].gaze.enhanced_layers == found[1].gaze.enhanced_layers


def test_interrupted_and_resumed(embedded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = embedded
    out, said = tmp_path / "m.yaml", []
    options: dict[str, Any] = {"profiles": ["sinks", "visual-heads"], "samples": 4, "batch": 1, "out": out}
    whole = calibrate(model, processor, **{**options, "out": tmp_path / "whole.yaml"}).calibration
    read, passes = Batch.forward, []

    def forward(batch: Batch) -> None:
        passes.append(1)
        if len(passes) == 11:  # in the second profile
            raise KeyboardInterrupt
        read(batch)

    monkeypatch.setattr(Batch, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, processor, **options, say=said.append)
    assert [path.name for path in tmp_path.glob("m.yaml*")] == ["m.yaml.partial"]
    assert "--resume" in said[-1]
    passes.clear()
    resumed = calibrate(model, processor, **options, resume=True)
    assert len(passes) == 6  # two passes over the last three examples
    assert [path.name for path in tmp_path.glob("m.yaml*")] == ["m.yaml"]
    assert resumed.calibration.sink is not None
    assert whole.sink is not None
    assert resumed.calibration.sink.dims == whole.sink.dims
    assert resumed.calibration.visual_heads is not None
    assert whole.visual_heads is not None
    assert resumed.calibration.visual_heads.scores == whole.visual_heads.scores


def test_sections_that_are_not_measured_stay(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    out = tmp_path / "m.yaml"
    out.write_text(
        "schema: 1\nmodel: mine\narchitecture: llava\nlayers: 8\nheads: 8\nsource: {kind: published, reference: paper}\n"
        "gaze: {saliency_layers: [1], enhanced_layers: [2], alpha: 3, source: their table}\n"
        "sink: {dims: [0], tau: 20, source: their table}\n"
    )
    calibrate(model, processor, profiles=["sinks"], samples=2, out=out, command="measuring")
    file = Calibration.load(out)
    assert file.model == "mine"
    assert file.gaze is not None
    assert file.gaze.source is not None
    assert (file.gaze.alpha, file.gaze.source.kind, file.gaze.source.reference) == (3, "published", "their table")
    assert file.source is not None
    assert file.source.kind == "published"
    assert file.sink is not None
    assert file.sink.source is not None
    assert (file.sink.source.kind, file.sink.source.command, file.sink.source.samples) == ("measured", "measuring", 2)
    assert file.sink.source.versions


def test_two_runs_on_one_file(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    """The second is refused before it measures, and the file has what the first one wrote."""
    out, tried = tmp_path / "c.yaml", []

    def second(line: str) -> None:
        if not tried:
            with pytest.raises(SightlineError, match=r"c\.yaml is in use by another process") as caught:
                calibrate(*embedded, profiles=["replies"], samples=2, out=out)
            tried.append(caught.value)

    calibrate(*embedded, profiles=["replies"], samples=2, out=out, advance=lambda name, done, total: second(name))
    assert tried
    assert Calibration.load(out).replies is not None
    assert [path.name for path in tmp_path.iterdir() if path.name != "own"] == ["c.yaml"]


def test_a_file_for_another_model_is_refused_and_kept(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    out = tmp_path / "m.yaml"
    text = "schema: 2\nmodel: m\narchitecture: llava\nlayers: 4\nheads: 8\n"
    out.write_text(text)
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, processor, profiles=["sinks"], samples=2, out=out)
    assert_message(caught.value, "layer count 4", "8")
    assert out.read_text() == text


def test_a_profile_that_was_named_must_succeed(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    with pytest.raises(CalibrationError, match="name none"):
        calibrate(model, processor, profiles=["ocr-heads"], samples=2, out=tmp_path / "m.yaml")
    assert not (tmp_path / "m.yaml").exists()
    with pytest.raises(ConfigError, match="did you mean 'sinks'"):
        calibrate(model, processor, profiles=["sink"], out=tmp_path / "m.yaml")


def test_nothing_measured_writes_nothing(
    embedded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Job) -> SourcedSection:
        raise CalibrationError("no luck")

    monkeypatch.setattr(
        profiles, "PROFILES", {name: profiles.Profile(one.section, fails) for name, one in profiles.PROFILES.items()}
    )
    monkeypatch.setattr(module, "PROFILES", profiles.PROFILES)
    with pytest.raises(CalibrationError, match="nothing could be measured: sinks: no luck"):
        calibrate(*embedded, samples=1, out=tmp_path / "m.yaml")
    assert not (tmp_path / "m.yaml").exists()


def test_profiles_suit_the_model() -> None:
    of_text = ["sinks", "retrieval-heads", "inducing-heads", "conflict-heads", "premise-heads"]
    assert profiles.chosen(["all"], sees=False) == of_text
    assert profiles.chosen(["all"], sees=True)[0] == "sinks"
    assert profiles.chosen(["image-heads", "sinks"], sees=True) == ["sinks", "image-heads"]
    with pytest.raises(ConfigError, match="pictures"):
        profiles.chosen(["gaze"], sees=False)
    assert {profile.section for profile in profiles.PROFILES.values()} <= set(Calibration.model_fields)


def test_the_shell_names_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "--help"]) == 0
    shown_text = "".join(capsys.readouterr().out.split())  # lines are broken behind hyphens
    assert [name for name in profiles.PROFILES if name not in shown_text] == []


# --- public head scores ----------------------------------------------------------------------------------------------


def public(folder: Path, layers: int, heads: int) -> Path:
    path = folder / "scores.json"
    path.write_text(json.dumps({f"{i}-{h}": [i / 10, h / 10] for i in range(layers) for h in range(heads)}))
    return path


def test_import_of_public_scores(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    measured = calibrate(model, processor, profiles=[], imported=public(tmp_path, 8, 8), out=tmp_path / "m.yaml")
    heads = Calibration.load(tmp_path / "m.yaml").retrieval_heads
    assert heads is not None
    assert heads.scores[3][5] == pytest.approx(0.4)
    assert heads.source is not None
    assert heads.source.kind == "published"
    assert measured.result()["measured"][0]["section"] == "retrieval_heads"
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, processor, profiles=[], imported=public(tmp_path, 7, 8), out=tmp_path / "n.yaml")
    assert_message(caught.value, "7 layers of 8 heads", "8 layers of 8 heads")
    assert not (tmp_path / "n.yaml").exists()


def test_retrieval_heads_are_tried_shortly_first(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that finds no needle is not asked two hundred times."""
    asked: list[dict[str, Any]] = []

    def found(work: Job, **how: Any) -> RetrievalHeads:
        asked.append(how)
        return RetrievalHeads(scores=[[0.5] * tiny.HEADS] * tiny.LAYERS)

    monkeypatch.setattr(profiles.retrieval, "measure", found)
    section = profiles.PROFILES["retrieval-heads"].measure(job(processor, tmp_path))
    assert isinstance(section, RetrievalHeads)
    assert section.scores[1][2] == 0.5
    assert [how.get("depths") for how in asked] == [1, None]
    assert len({how.get("stage") for how in asked}) == 2  # or the short runs would pass for the whole

    def lost(work: Job, **how: Any) -> RetrievalHeads:
        asked.append(how)
        raise CalibrationError("none of 10 needle runs passed")

    asked.clear()
    monkeypatch.setattr(profiles.retrieval, "measure", lost)
    with pytest.raises(CalibrationError, match="none of 10"):
        profiles.PROFILES["retrieval-heads"].measure(job(processor, tmp_path))
    assert len(asked) == 1


# --- showing ---------------------------------------------------------------------------------------------------------


def file(scores: list[list[float]], **more: Any) -> Calibration:
    shape = {"model": "m", "architecture": "llama", "layers": len(scores), "heads": len(scores[0])}
    return Calibration.load({**shape, "retrieval_heads": {"scores": scores}, **more})


def test_alike_counts_shared_heads_and_ranks() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 30, (5, 8), generator=generator).double() for _ in range(2))
    found = compare.alike(first.tolist(), second.tolist())
    best = [set(grid.flatten().argsort(descending=True, stable=True)[:4].tolist()) for grid in (first, second)]
    assert {layer * 8 + head for layer, head in found.shared} == best[0] & best[1]
    assert found.overlap == len(best[0] & best[1]) / 4
    ranks = []
    for grid in (first, second):  # the mean rank of equal values, by counting
        flat = grid.flatten()
        ranks.append(torch.stack([(flat < x).sum() + ((flat == x).sum() + 1) / 2 for x in flat]))
    assert found.rank == pytest.approx(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    assert compare.alike(first.tolist(), first.tolist()).overlap == 1.0
    assert compare.alike([[1.0, 1.0]], [[0.0, 1.0]]).rank is None


def test_compare_names_what_differs() -> None:
    first = file([[0.1, 0.9], [0.2, 0.3]], sink={"dims": [1], "tau": 2.0})
    second = file(
        [[0.1, 0.8], [0.4, 0.3]],
        sink={"dims": [1], "tau": 3.0},
        gaze={"saliency_layers": [0], "enhanced_layers": [1], "alpha": 1},
    )
    result = compare.compare(first, second)
    values = {row["name"]: (row["first"], row["second"], row["same"]) for row in result["values"]}
    assert values["sink.dims"] == ([1], [1], True)
    assert values["sink.tau"] == (2.0, 3.0, False)
    assert values["gaze.alpha"] == (None, 1.0, False)
    (table,) = result["tables"]
    assert (table["table"], table["shared"]) == ("retrieval_heads.scores", [(0, 1)])
    with pytest.raises(CalibrationError) as caught:
        compare.compare(first, file([[0.1, 0.2, 0.3]]))
    assert_message(caught.value, "2 layers of 2", "1 of 3")


def test_head_map_shades_by_value() -> None:
    text = maps.head_map([[0.0, 1.0], [0.5, 0.25]]).plain.splitlines()
    assert text[1].startswith("    0    ██  max 1 at head 1")
    assert text[2].startswith("    1  ▒▒░░  max 0.5 at head 0")
    assert "scale 0 .. 0" in maps.head_map([[0.0, 0.0]]).plain
    assert maps.head_map([[0.0] * 64]).plain.splitlines()[1] == "    0  " + " " * 64 + "  max 0 at head 0"
    assert maps.head_map([]).plain


def test_summary_in_a_few_words() -> None:
    shown_file = file([[0.1, 0.9], [0.2, 0.3]], gaze={"saliency_layers": [0], "enhanced_layers": [0, 1], "alpha": 2})
    assert maps.summary(shown_file.retrieval_heads).startswith("top 0-1 (0.9), 1-1 (0.3)")  # type: ignore[arg-type]
    assert maps.summary(shown_file.gaze) == "saliency layers 0; enhanced layers 0, 1; alpha 2.0"  # type: ignore[arg-type]
    worded = file(
        [[0.1, 0.9], [0.2, 0.3]], word_heads={"scores": [[0.1, 0.2], [0.7, 0.3]], "words": ["ox", "cat", "elk"]}
    )
    assert maps.summary(worded.word_heads) == "words ox, cat, elk; top 1-0 (0.7), 1-1 (0.3), 0-1 (0.2)"  # type: ignore[arg-type]
    turned = file([[0.1, 0.9], [0.2, 0.3]], first_token={"gains": [[1.0, 0.25], [1.0, 0.25]]})
    assert maps.summary(turned.first_token) == "factor 0.25 for 2 of 4 heads"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "calibration").glob("*.yaml")), ids=lambda path: path.stem
)
def test_summary_of_every_shipped_section(path: Path) -> None:
    known = Calibration.load(path)
    facts = [fact for _, fact in known if isinstance(fact, SourcedSection)]
    assert facts
    assert all(maps.summary(fact) for fact in facts)


def test_picture_of_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown_file = file([[0.1, 0.9], [0.2, 0.3]])
    target = tmp_path / "maps.png"
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        with pytest.raises(SightlineError, match="matplotlib"):
            maps.picture(shown_file, target)
    assert not target.exists()
    with pytest.raises(SightlineError, match="no layer x head table"):
        maps.picture(Calibration.load({"model": "m", "architecture": "a", "layers": 1, "heads": 1}), target)
    pytest.importorskip("matplotlib")
    from PIL import Image

    maps.picture(shown_file, target)
    with Image.open(target) as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors() or range(300)) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["maps.png"]


# --- the shell -------------------------------------------------------------------------------------------------------


def test_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], own_folder: Path) -> None:
    out, result = tmp_path / "m.yaml", tmp_path / "m.json"
    arguments = ["calibrate", "embedded", "--profile", "sinks, gaze", "--samples", "2", "--threads", "1"]
    assert cli.main([*arguments, "--out", str(out), "--json", str(result)]) == 0
    shown_text = capsys.readouterr().out
    assert "enhanced layers" in shown_text
    assert str(out) in shown_text
    assert [row["profile"] for row in json.loads(result.read_text())["measured"]] == ["sinks", "gaze"]
    assert cli.main([*arguments, "--seed", "3"]) == 0
    assert cli.main(["show", str(out), str(next(own_folder.iterdir()))]) == 0
    assert "sink.tau" in capsys.readouterr().out
    assert cli.main(["show", "--schema"]) == 0
    assert "sink" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["calibrate"], ["MODEL"]),
        (["calibrate", "embedded", "--profile", "sinkz"], ["sinkz", "sinks", "gaze"]),
        (["calibrate", "embedded", "--profile", ","], ["nothing to measure", "sinks"]),
        (["calibrate", "embedded", "--data", "nowhere"], ["nowhere", "--data"]),
        (["calibrate", "embedded", "--import", "nowhere.json"], ["nowhere.json"]),
        (["calibrate", "embedded", "--out", "/dev/null/x.yaml"], ["/dev/null/x.yaml", "another place"]),
        (["calibrate", "embedded", "--samples", "0"], ["--samples"]),
        (["calibrate", "no-such-folder/"], ["no-such-folder"]),
        (["show", "a.yaml", "b.yaml", "--png", "c.png"], ["--png", "one file"]),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert [word for word in words if word not in line] == []
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_the_stage_under_way() -> None:
    from rich.progress import TimeRemainingColumn
    from sightline.cli.profiling import _follow
    from sightline.common.progress import progress_bar

    bar = progress_bar()
    assert any(isinstance(column, TimeRemainingColumn) for column in bar.columns)
    advance = _follow(bar, bar.add_task("loading", total=None))
    for call in (("sinks", 0, 9), ("sinks", 4, 9), ("sinks", 9, 9), ("sinks", 0, 9), ("gaze", 6, 9)):
        advance(*call)
        (now,) = bar.tasks
        assert (now.description, now.completed, now.total) == call
    advance("gaze", 8, 9)
    assert len(bar.tasks[0]._progress) == 1  # the time left is reckoned from this stage alone


def test_layers_can_be_spread(own_folder: Path, tmp_path: Path) -> None:
    """With the upper layers on disk, whose weights come and go by hooks, as on the machine that holds all."""
    model, processor = load_model("embedded", device="auto")
    assert model.hf_device_map
    options: dict[str, Any] = {"profiles": ["sinks", "visual-heads"], "samples": 2}
    whole = calibrate(model, processor, **options, out=tmp_path / "whole.yaml").calibration
    model, processor = load_model("embedded")
    text = "model.language_model"
    parts = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    places = dict.fromkeys([*parts, *(f"{text}.{part}" for part in ("embed_tokens", "norm", "rotary_emb"))], "cpu")
    places |= {f"{text}.layers.{layer}": "disk" if layer > 3 else "cpu" for layer in range(8)}
    spread = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "weights")
    assert next(spread.model.language_model.layers[5].parameters()).device.type == "meta"
    found = calibrate(spread, processor, **options).calibration
    assert found.visual_heads is not None
    assert whole.visual_heads is not None
    assert found.visual_heads.scores == whole.visual_heads.scores
    assert found.sink is not None
    assert whole.sink is not None
    assert (found.sink.dims, found.sink.tau) == (whole.sink.dims, whole.sink.tau)
