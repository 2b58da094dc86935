"""`sightline eval`: one result whatever the processes, kills and restarts, and never two runs in one folder."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
import typer
from PIL import Image
from sightline import testbed
from sightline.benchmarks.benchmark import Benchmark, DataSource
from sightline.benchmarks.public.textqa import Choosing, Means
from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.evaluate import Place, ReplySettings, evaluate, fingerprint, score_answers
from sightline.benchmarks.runner.plan import named, plans
from sightline.benchmarks.runner.run import batches, results, run
from sightline.benchmarks.runner.store import Store, StoreError
from sightline.benchmarks.runner.tables import markdown, terminal
from sightline.cli.benchmarks import command
from sightline.common.errors import ConfigError, SightlineError
from sightline.models.prompting import ask, batch_inputs
from sightline.models.samples import Sample
from typer.testing import CliRunner

ONE = ReplySettings(batch=1)


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return testbed.load()


def chair(scenes: int) -> Benchmark:
    bench = suite.read("chair", DataSource(None, scenes))
    bench.new_tokens = 9  # enough words to differ, and quick
    return bench


def replies(out: Path, name: str) -> dict[str, str]:
    """Everything that the processes of a run wrote; each sample once."""
    rows = [json.loads(line) for path in out.glob(f"{name}/rank-*.jsonl") for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["reply"] for row in rows}


def without_times(result: dict[str, Any] | None) -> list[dict[str, Any]]:
    assert result is not None
    return [{k: v for k, v in entry.items() if k not in ("seconds", "times", "time_ratio")} for entry in result["runs"]]


def test_scores_are_the_demos(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    both = [suite.read(name, DataSource(None, 2)) for name in ("chair", "pope")]
    runs = run(model, processor, both, plans(named(["vhr"]), model, processor), batch={"chair": 20, "pope": 60})
    wanted = {entry["name"]: entry for entry in results(runs, both)}
    for name in ("chair", "pope"):
        result = evaluate(suite.read(name, DataSource(None, 2)), model, processor, named(["vhr"]), tmp_path / name)
        assert result is not None
        assert [entry["name"] for entry in result["runs"]] == ["plain", "vhr"]
        for entry in result["runs"]:
            scores, same = entry[name], wanted[entry["name"]][name]
            parts = [(scores, same)] if name == "chair" else [(scores[split], same[split]) for split in same]
            for got, expected in parts:
                assert got == expected
        kept = json.loads((tmp_path / name / "result.json").read_text())
        assert kept["runs"][1][name] == json.loads(json.dumps(result["runs"][1][name]))
        assert kept["hashes"].keys() == {"model", "data", "config vhr", "calibration vhr"}


def test_processes_share_and_merge_once(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    alone = evaluate(chair(5), model, processor, named(["vhr"]), tmp_path / "alone", settings=ReplySettings(batch=2))
    shared = [
        evaluate(
            chair(5),
            model,
            processor,
            named(["vhr"]),
            tmp_path / "shared",
            settings=ReplySettings(batch=2),
            place=Place(rank, 3),
        )
        for rank in (2, 0, 1)
    ]
    assert shared[:2] == [None, None]  # the last one to finish merges
    assert without_times(shared[2]) == without_times(alone)
    assert {name: replies(tmp_path / "shared", name) for name in ("plain", "vhr")} == {
        name: replies(tmp_path / "alone", name) for name in ("plain", "vhr")
    }
    again = [
        evaluate(
            chair(5),
            model,
            processor,
            named(["vhr"]),
            tmp_path / "shared",
            settings=ReplySettings(batch=2),
            place=Place(rank, 2),
        )
        for rank in (1, 0)
    ]
    assert again[0] is None  # nothing was left to do, and it is merged: one process says so
    assert without_times(again[1]) == without_times(alone)


def test_pictures_heads_and_calibration_are_kept_for_the_report(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    bench = chair(3)
    for place in (Place(0, 2), Place(1, 2)):  # batches of 2 and 1, each by another process
        result = evaluate(
            bench, model, processor, named(["vhr"]), tmp_path, settings=ReplySettings(batch=2), place=place
        )
    assert result is not None
    wanted = 0
    for samples in (bench.samples[:2], bench.samples[2:]):
        with sightline.attach(model, "vhr", processor=processor) as plug:
            ask(model, processor, samples, bench.new_tokens)
            wanted = wanted + len(samples) / 3 * torch.tensor(plug.report()["vhr"]["head_map"])
    kept = torch.tensor(result["runs"][1]["head_maps"]["vhr"])
    assert 0 < kept.mean() < 1
    torch.testing.assert_close(kept, wanted, atol=1e-3, rtol=0)
    assert result["runs"][0]["head_maps"] == {}
    (known,) = result["calibrations"].values()
    assert len(known["head_tables"]["visual_heads.scores"]) == model.config.text_config.num_hidden_layers
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for sample, row in zip(bench.samples, rows, strict=True):
        assert isinstance(sample.image, Image.Image)
        assert Image.open(tmp_path / row["image"]).tobytes() == sample.image.convert("RGB").tobytes()


def _share(model: Any, processor: Any, out: Path, rank: int) -> None:
    torch.set_num_threads(1)
    evaluate(chair(8), model, processor, named(["vhr"]), out, settings=ONE, place=Place(rank, 2))


def test_a_killed_process_loses_and_repeats_nothing(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_share, args=(*embedded, out, rank)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    first = out / "plain" / "rank-0.jsonl"
    until = time.monotonic() + 60
    while not (first.exists() and first.read_bytes().count(b"\n") >= 2):
        assert workers[0].is_alive(), "the process ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.002)
    for worker in workers:
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
    assert workers[0].exitcode == -signal.SIGKILL
    before = {path: path.read_bytes() for path in out.glob("*/rank-*.jsonl")}
    assert sum(content.count(b"\n") for content in before.values()) < 16  # there is something left to do
    with first.open("ab") as file:
        file.write('{"id": "test-0-2", "reply": "cut off in the middle of ä'.encode()[:-1])

    result = evaluate(chair(8), *embedded, named(["vhr"]), out, settings=ONE)  # on one process now
    whole = evaluate(chair(8), *embedded, named(["vhr"]), tmp_path / "whole", settings=ONE)
    assert without_times(result) == without_times(whole)
    for name in ("plain", "vhr"):
        assert replies(out, name) == replies(tmp_path / "whole", name)
    for path, content in before.items():  # what was done is not done again
        done = content[: content.rfind(b"\n") + 1]
        assert path.read_bytes().startswith(done)


def _worker(launcher: int, rank: int) -> int | None:
    """The process of a rank, among the launcher's children."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment:
            return int(child)
    return None


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_torchrun_is_killed_and_resumed(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    asked = ["eval", "chair", "--model", "embedded", "--data", "testbed", "--limit", "8", "--batch", "1"]
    asked += ["--max-new-tokens", "9", "--threads", "1", "--out", str(tmp_path), "--json", str(tmp_path / "copy.json")]
    started = [*launch, "-m", "sightline.cli.benchmarks", *asked]
    files = [tmp_path / "plain" / f"rank-{rank}.jsonl" for rank in (0, 1)]
    with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        until = time.monotonic() + 120
        while not (files[1].exists() and files[1].read_bytes()):
            assert first.poll() is None, "the processes ended before one could be killed"
            assert time.monotonic() < until
            time.sleep(0.002)
        victim = _worker(first.pid, 1)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        assert first.wait(120) != 0
    before = [path.read_bytes() if path.exists() else b"" for path in files]
    assert sum(content.count(b"\n") for content in before) < 8
    done = subprocess.run(started, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CHAIR_S") == 1  # one table
    for path, content in zip(files, before, strict=True):  # what was done is not done again
        assert path.read_bytes().startswith(content[: content.rfind(b"\n") + 1])
    whole = evaluate(chair(8), *embedded, {}, tmp_path / "whole", settings=ONE)
    assert replies(tmp_path, "plain") == replies(tmp_path / "whole", "plain")
    assert without_times(json.loads((tmp_path / "copy.json").read_text())) == json.loads(
        json.dumps(without_times(whole))
    )


def test_no_reply_ends_before_its_least(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    for name, least in (("plain", 0), ("long", 50)):
        settings = ReplySettings(new_tokens=50, batch=1, equal=False, least=least)
        evaluate(chair(2), model, processor, {}, tmp_path / name, settings=settings)
    short, long = (replies(tmp_path / name, "plain") for name in ("plain", "long"))
    for key, reply in long.items():
        assert reply.startswith(short[key])
        assert len(processor.tokenizer(short[key], add_special_tokens=False)["input_ids"]) < 40
        assert len(processor.tokenizer(reply, add_special_tokens=False)["input_ids"]) == 50
    with pytest.raises(SightlineError, match="least"):  # another evaluation
        evaluate(chair(2), model, processor, {}, tmp_path / "plain", settings=settings)


def identity(**change: Any) -> dict[str, Any]:
    return {"benchmark": "x", "config": {"methods": [{"vhr": {}}]}, "data": "abc"} | change


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    with Store(tmp_path / "a", identity()) as store:
        store.append([{"id": "1", "reply": "yes"}])
    with Store(tmp_path / "a", identity()) as store:
        assert set(store.done()) == {"1"}
    for change, what in (
        ({"data": "abd"}, 'data ("abc", not "abd")'),
        ({"config": None}, "config"),
        ({"new": 1}, "new (null"),
    ):
        with pytest.raises(StoreError, match="was made with another") as caught:
            Store(tmp_path / "a", identity(**change))
        assert what in str(caught.value)
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"results without manifest.json"):
        Store(tmp_path / "a", identity())


def test_evaluations_refuse_each_others_folders(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    strong = {"methods": [{"vhr": {"alpha": 3.0}}]}
    evaluate(chair(1), model, processor, {"mine": next(iter(named([strong]).values()))}, tmp_path)
    weak = {"mine": next(iter(named([{"methods": [{"vhr": {"alpha": 2.0}}]}]).values()))}
    for bench, configs, settings, what in (
        (chair(1), weak, ReplySettings(), "config"),
        (chair(2), {}, ReplySettings(), "data"),
        (chair(1), {}, ReplySettings(new_tokens=3), "new_tokens"),
    ):
        with pytest.raises(StoreError, match=f"another {what}"):
            evaluate(bench, model, processor, configs, tmp_path, settings=settings)


def test_one_process_a_file(tmp_path: Path) -> None:
    with (
        Store(tmp_path, identity()),
        pytest.raises(SightlineError, match=r"rank-0.jsonl is in use by another process"),
    ):
        Store(tmp_path, identity())
    with Store(tmp_path, identity()), Store(tmp_path, identity(), rank=1):
        pass


@pytest.mark.parametrize(
    "damage", [b'{"id": "2", "rep\n', b"\n", b'{"id": 2, "reply": ""}\n', b'{"id": "2"}\n', b"\xff\n"]
)
def test_damage_is_named(tmp_path: Path, damage: bytes) -> None:
    with Store(tmp_path, identity()) as store:
        store.append([{"id": "1", "reply": "yes"}])
    with (tmp_path / "rank-0.jsonl").open("ab") as file:
        file.write(damage + b'{"id": "3", "reply": "no"}\n')
    with Store(tmp_path, identity()) as store, pytest.raises(StoreError, match=r"rank-0.jsonl, line 2: damaged"):
        store.done()


@pytest.mark.parametrize("cut", [b'{"id": "2", "rep', b'{"id": "2", "reply": "whole, but not ended"}', b"\xc3"])
def test_a_line_that_is_cut_off_is_done_again(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "rank-0.jsonl"
    with Store(tmp_path, identity()) as store:
        store.append([{"id": "1", "reply": "yes"}])
    with path.open("ab") as file:
        file.write(cut)
    with Store(tmp_path, identity(), rank=1) as other:
        assert set(other.done()) == {"1"}  # another process only looks away
    with Store(tmp_path, identity()) as store:
        assert set(store.done()) == {"1"}
        store.append([{"id": "2", "reply": "line\nend \u2028 \r"}])
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == ["1", "2"]
    with Store(tmp_path, identity()) as store:
        assert store.done()["2"]["reply"] == "line\nend \u2028 \r"


def test_batches_do_not_depend_on_the_processes() -> None:
    for seed in range(50):
        dice = random.Random(seed)
        kinds = [dice.random() < 0.3 for _ in range(dice.randrange(40))]
        size = dice.randrange(1, 7)
        cut = batches([Sample("", "", image=Path("a.png") if kind else None) for kind in kinds], size)
        assert [n for numbers in cut for n in numbers] == list(range(len(kinds)))
        assert all(len(numbers) <= size and len({kinds[n] for n in numbers}) == 1 for numbers in cut)
        for left, right in itertools.pairwise(cut):  # none is cut without a reason
            assert len(left) == size or kinds[left[-1]] != kinds[right[0]]


class Guess(Choosing):
    """Text questions: two choices and a picture here and there."""

    name = "guess"
    columns = {"right": "right"}  # noqa: RUF012
    percent = frozenset({"right"})

    @classmethod
    def read(cls, source: DataSource) -> Guess:
        raise NotImplementedError

    def score(self, replies: Sequence[Any]) -> Means:
        return Means({"right": [float(reply[0] > reply[1]) for reply in replies]})


def test_choices_are_scored_by_the_model(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    asked = ["Is there a dog?", "What can you see in this picture, and what not?"]
    bench = Guess(
        [Sample(str(n), text, choices=(" Yes", " a dog and two cats"), raw=True) for n, text in enumerate(asked)]
    )
    result = evaluate(bench, model, processor, named(["vhr"]), tmp_path)
    assert result is not None
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for text, row in zip(asked, rows, strict=True):
        for choice, logprob in zip(bench.samples[0].choices, row["runs"]["plain"]["logprobs"], strict=True):
            prompt = processor.tokenizer(text)["input_ids"]
            answer = processor.tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            naive = sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
            assert logprob == pytest.approx(naive, abs=1e-3)
        assert row["runs"]["vhr"] == row["runs"]["plain"]  # no picture: nothing for the method to do,
    assert any(
        "went to the plain model" in note and "(2 times)" in note for note in result["notes"]
    )  # and that is said


def test_replies_made_elsewhere(tmp_path: Path) -> None:
    bench = chair(3)
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"id": one.id, "caption": "A dog."}) + "\n" for one in bench.samples[::-1]))
    result = score_answers(bench, [said], tmp_path / "out")
    assert result["runs"][0]["name"] == "answers"
    truths = [bench.truth(number)["objects"] for number in range(3)]
    assert result["runs"][0]["chair"]["s"] == pytest.approx(sum("dog" not in names for names in truths) / 3)


def test_replies_of_two_tools_are_compared(tmp_path: Path) -> None:
    bench = chair(3)
    for name, reply in (("theirs", "A dog."), ("ours", "")):
        rows = (json.dumps({"id": one.id, "reply": reply}) + "\n" for one in bench.samples)
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    result = score_answers(bench, [tmp_path / "theirs.jsonl", tmp_path / "ours.jsonl"], tmp_path / "out")
    theirs, ours = result["runs"]
    assert (theirs["name"], theirs["against"], ours["name"], ours["against"]) == ("theirs", None, "ours", "theirs")
    assert ours["differences"]["chair"]["s"]["value"] == -theirs["chair"]["s"] < 0
    with pytest.raises(ConfigError, match="two runs would be called 'theirs'"):
        score_answers(bench, [tmp_path / "theirs.jsonl"] * 2, tmp_path / "out")


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"id": one.id, "reply": "A dog."}) + "\n" for one in chair(2).samples))
    asked = ["chair", "--limit", "2", "--answers", str(said), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, [*asked, "--json", str(tmp_path / "copy.json")])
    assert shown.exit_code == 0, shown.output
    assert "CHAIR_I" in shown.output
    assert json.loads((tmp_path / "copy.json").read_text()) == json.loads(
        (tmp_path / "out" / "result.json").read_text()
    )
    for wrong in (["chair"], [*asked, "--model", "embedded"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
    missing = CliRunner().invoke(app, ["chair", "--answers", str(said), "--limit", "3", "--out", str(tmp_path / "out")])
    assert "1 of 3 questions have no answer" in str(missing.exception)


def test_empty_replies_are_counted(tmp_path: Path) -> None:
    bench = chair(2)
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"id": one.id, "reply": ""}) + "\n" for one in bench.samples))
    result = score_answers(bench, [said], tmp_path / "out")
    assert "an empty reply (2 times)" in result["notes"]
    assert result["runs"][0]["chair"]["i"] == 0.0


def test_tables_show_every_score_and_difference(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = embedded
    bench = suite.read("pope", DataSource(None, 2))
    result = evaluate(bench, model, processor, named(["vhr"]), tmp_path)
    assert result is not None
    page = (tmp_path / "summary.md").read_text()
    assert page == markdown(result, bench)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert rows[0][:4] == ["| split", "run", "accuracy", "precision"]
    assert sum(row[0] == "| adversarial" for row in rows) == 3  # two runs, one difference
    accuracy = result["runs"][1]["pope"]["mean"]["accuracy"]
    assert any(row[:2] == ["| mean", "vhr"] and row[2].startswith(f"{100 * accuracy:.1f} (") for row in rows)
    assert any("McNemar" in row[-1] for row in rows)
    assert len(terminal(result, bench)) == 2 + len(result["notes"])


def test_a_picture_that_is_none(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(SightlineError, match=r"cannot read .*a.png as an image"):
        ask(*embedded, [Sample("1", "?", tmp_path / "a.png")], 2)
    with pytest.raises(SightlineError, match="reads text only"):
        ask(embedded[0], embedded[1].tokenizer, [Sample("1", "?", Image.new("RGB", (8, 8)))], 2)


def test_a_start_token_of_the_template_is_not_doubled(embedded: tuple[Any, Any]) -> None:
    model, processor = embedded
    start = processor.tokenizer.bos_token
    once = batch_inputs(model, processor, [Sample("1", f"{start}Is there a dog?", raw=True)])
    assert int((once["input_ids"] == processor.tokenizer.bos_token_id).sum()) == 1


def test_prompts_are_padded_on_the_left(embedded: tuple[Any, Any]) -> None:
    model, processor = embedded
    picture = Image.new("RGB", (96, 96), "white")
    inputs = batch_inputs(model, processor, [Sample("1", "Hi", picture), Sample("2", "Is there a dog here?", picture)])
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["pixel_values"].shape[0] == 2


def test_names_of_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("methods: [vhr]\n")
    assert list(named(["vhr", tmp_path / "mine.yaml"])) == ["vhr", "mine"]
    (tmp_path / "plain.yaml").write_text("methods: [vhr]\n")
    for configs in (["vhr", "vhr"], [tmp_path / "plain.yaml"]):
        with pytest.raises(ConfigError, match="two runs would be called"):
            named(configs)


def test_fingerprint_sees_a_changed_weight(embedded: tuple[Any, Any]) -> None:
    model = torch.nn.Linear(3, 2)
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.weight[1, 2] += 1e-3
    assert fingerprint(model) != before
    assert math.isfinite(int(before, 16))
