"""`sightline report`: folders read back, put together, shown escaped in one page; damage is named, nothing is hidden."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sightline.benchmarks.public.captions import ChairBenchmark
from sightline.benchmarks.public.chair import LAST_POSITION, Vocabulary
from sightline.benchmarks.public.object_questions import Entry, PopeBenchmark
from sightline.benchmarks.report import folders
from sightline.benchmarks.report import page as report
from sightline.benchmarks.report.cards import PLAIN, RIGHT, WRONG, pieces
from sightline.benchmarks.report.charts import LETTER, positions, tradeoff
from sightline.benchmarks.report.pictures import SIDES, show
from sightline.benchmarks.runner.evaluate import ANSWERS, merge
from sightline.benchmarks.runner.run import Run
from sightline.benchmarks.runner.store import Store, StoreError
from sightline.cli import main as cli
from sightline.common.errors import DataError, SightlineError
from sightline.common.files import write_json
from sightline.common.readers import Notes
from sightline.models.samples import Sample

WORDS = ["dog", "cat", "bus", "fork"]
HOSTILE = "</script><script>alert(1)</script> & 'dog' \u2028 <img src=x> <!-- </script "
Made = Callable[..., Path]


def captions(number: int = 3, picture: Path | None = None) -> ChairBenchmark:
    images = [picture or Image.new("RGB", (60, 40), (20 * n, 90, 90)) for n in range(number)]
    samples = [Sample(f"scene-{n}", "Describe.", image) for n, image in enumerate(images)]
    return ChairBenchmark(samples, Notes(), [{"dog"}] * number, Vocabulary(WORDS))


def evaluated(
    out: Path,
    replies: dict[str, Sequence[str]],
    *,
    benchmark: Any = None,
    model: str | None = "m1",
    data: str | None = None,
    maps: dict[str, Any] | None = None,
) -> Path:
    """A folder as an evaluation leaves it, from given replies."""
    bench = benchmark or captions(len(next(iter(replies.values()))))
    runs = [
        Run(name, {"methods": [{name: {}}]}, {bench.name: list(said)}, {bench.name: [1.0]})
        for name, said in replies.items()
    ]
    runs[0].config = {}
    runs[-1].head_maps = {key: np.asarray(grid) for key, grid in (maps or {}).items()}
    hashes = {"data": data or bench.data_hash()} | ({} if model is None else {"model": model})
    calibrations = {"c1": {"model": "tiny", "head_tables": {"visual_heads.scores": [[0.25, 0.75]]}}} if maps else {}
    merge(bench, runs, out, hashes, bench.notes, settings={"seed": 0}, calibrations=calibrations)
    return out


class Reader(HTMLParser):
    """What a browser would fetch, the JSON in the page, and whether tags close."""

    VOID = frozenset({"meta", "img", "input", "br", "line", "circle", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self.policy = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        assert not [name for name in known if name.startswith("on")]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if known.get("http-equiv"):
            self.policy = known["content"] or ""
        if tag == "script":
            self.scripts.append((known.get("id"), ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def json(self, name: str) -> Any:
        return json.loads(dict(self.scripts)[name])


def shown(paths: Sequence[Path], out: Path, **options: Any) -> tuple[report.Report, Reader]:
    made = report.write(paths, out, report.Options(**options))
    return made, Reader((out / "report.html").read_text("utf-8"))


def text(said: dict[str, Any]) -> str:
    return "".join(piece for _, piece in said["text"])


def test_marks_hallucinations_and_shows_the_picture(tmp_path: Path) -> None:
    said = {"plain": ["A dog and a fork.", "A cat.", ""], "vhr": ["A dog.", "A cat.", "Dogs!"]}
    _, page = shown([evaluated(tmp_path / "a", said)], tmp_path / "out")
    data, sources = page.json("samples-0"), page.json("pictures")
    assert data["runs"] == ["plain", "vhr"]
    first, second, third = data["samples"]
    assert first["said"][0]["text"] == [
        [PLAIN, "A "], [RIGHT, "dog"], [PLAIN, " and a "], [WRONG, "fork"], [PLAIN, "."],
    ]  # fmt: skip
    assert (first["truth"], first["said"][0]["more"], second["said"][0]["more"]) == (
        "dog",
        "missed: nothing",
        "missed: dog",
    )
    assert second["said"][1] == 0  # what an earlier run said is not said again
    assert third["said"][0]["text"] == []
    assert third["said"][1]["text"] == [[RIGHT, "Dogs"], [PLAIN, "!"]]
    picture = Image.open(io.BytesIO(base64.b64decode(sources[second["picture"]].partition("base64,")[2])))
    assert picture.size == (60, 40)
    assert picture.convert("RGB").getpixel((5, 5)) == (20, 90, 90)
    assert "All were asked: “Describe.”" in page.text


def test_nothing_from_outside_and_everything_escaped(tmp_path: Path) -> None:
    bench = captions(1)
    bench.notes.add(HOSTILE)
    folder = evaluated(tmp_path / "a<b>", {"plain": [HOSTILE], "<i>run": ["A dog."]}, benchmark=bench)
    result = json.loads((folder / "result.json").read_text())
    write_json(folder / "result.json", result | {"label": HOSTILE, "about": HOSTILE, "command": HOSTILE})
    made, page = shown([folder], tmp_path / "out")
    assert [name for name, _ in page.scripts] == ["pictures", "samples-0", None]  # no script came from a reply
    assert page.links == []
    assert text(page.json("samples-0")["samples"][0]["said"][0]) == HOSTILE
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert "default-src 'none'" in page.policy
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert not re.search(r"https?:|@import|url\(|innerHTML", html)
    for name in ("pictures", "samples-0"):  # nothing in the JSON can look like a tag
        assert json.loads(re.findall(rf'id="{name}">([^<]*)</script>', html)[0]) == page.json(name)
    for name, where in (("style", "style-src"), ("script", "script-src")):  # the browser takes these, and no others
        block = re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)
        assert len(block) == 1
        digest = base64.b64encode(hashlib.sha256(block[0].encode()).digest()).decode()
        assert f"{where} 'sha256-{digest}'" in page.policy
    assert "<" not in re.sub(r"`[^`]*`", "", made.markdown())


def test_scores_differences_and_maps(tmp_path: Path) -> None:
    said = {"plain": ["A fork."] * 6 + ["A dog."] * 3, "vhr": ["A dog."] * 9}
    made, page = shown([evaluated(tmp_path / "a", said, maps={"vhr": [[0.0, 1.0]]})], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<td>66.7<small>" in html
    assert '<td class="good">-66.7<small>' in html
    assert "vhr: heads that vhr chose" in page.text
    assert "tiny: visual_heads.scores" in page.text
    for part in (page.text, made.markdown()):
        assert all(word in part for word in ("CHAIR_I", "torch", "sightline", "m1"))
    entry = made.result["sections"][0]["runs"][1]
    assert entry["differences"]["chair"]["i"]["value"] == pytest.approx(-2 / 3)
    assert (entry["against"], entry["chair"]["n"]) == ("plain", 9)


def test_the_head_says_what_was_found_and_colours_only_what_was(tmp_path: Path) -> None:
    said = {"plain": ["A fork, a dog."] * 9, "<b>same": ["A fork, a dog."] * 9, "dogs": ["A dog."] * 9}
    folder = evaluated(tmp_path / "a", said)
    made, page = shown([folder], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    head = html[html.index("<header>") : html.index("</header>")]
    lowered = "dogs lowers CHAIR_I by 50.0 points at equal recall; the interval excludes 0."
    alike = "&lt;b&gt;same could not be told from plain in CHAIR_I at equal recall; the interval includes 0."
    assert f'<li class="good">{lowered}</li>' in head
    assert f'<li class="open">{alike}</li>' in head
    assert lowered in made.markdown()
    assert "chair, n = 9" in page.text
    _, page = shown([evaluated(tmp_path / "b", {**said, "dogs": said["plain"]})], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "None of the 2 runs could be told from plain" in page.text
    assert not re.search(r'class="[^"]*\b(good|bad)\b', html)


def test_recall_against_chair_is_drawn_beside_the_cut_captions(tmp_path: Path) -> None:
    said = {"plain": ["A dog, a fork, a cat."] * 4, "short": ["A dog."] * 4, "bad": ["A fork, a dog."] * 4}
    made, page = shown([evaluated(tmp_path / "a", said)], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "CHAIR_I and recall: below the line is better" in page.text
    assert html.count('class="curve"') == 2  # between three cuts
    assert "short: recall 100.0 %, CHAIR_I 0.0 %" in page.text
    changes = {entry["name"]: entry["differences"]["chair"] for entry in made.result["sections"][0]["runs"]}
    assert changes["short"]["equal"]["value"] == pytest.approx(0)  # stopping early gives as well
    assert changes["short"]["i"]["value"] == pytest.approx(-2 / 3)  # which CHAIR takes for a gain
    assert changes["bad"]["equal"]["value"] == pytest.approx(1 / 2)
    assert "equal" not in changes["plain"]
    for part in (made.markdown(), page.text):
        assert "CHAIR_I at equal recall" in part
        assert "+50.0" in part


def test_folders_about_the_same_data_stand_side_by_side(tmp_path: Path) -> None:
    plain = ["A fork.", "A dog."]
    one = evaluated(tmp_path / "one", {"plain": plain, "vhr": ["A dog.", "A dog."], "mine": ["A bus.", "A cat."]})
    two = evaluated(tmp_path / "two", {"plain": plain, "var": ["A cat.", "A dog."], "mine": ["A bus.", ""]})
    other = evaluated(tmp_path / "other", {"plain": ["A fork.", "A cat.", "A dog."]})
    made, page = shown([one, two, other], tmp_path / "out")
    assert [(section.n, len(section.folders)) for section in made.sections] == [(2, 2), (3, 1)]
    runs = made.sections[0].runs
    assert [entry["name"] for entry in runs] == ["plain", "vhr", "mine (one)", "var", "mine (two)"]  # plain once
    assert [entry["against"] for entry in runs] == [None, "plain", "plain", "plain", "plain"]
    assert runs[3]["differences"]["chair"]["s"]["value"] == 0.0
    sample = page.json("samples-0")["samples"][0]
    assert [text(sample["said"][n]) for n in (0, 1, 2, 3)] == ["A fork.", "A dog.", "A bus.", "A cat."]
    assert sample["said"][4] == 2
    assert len(page.json("samples-1")["samples"]) == 3


def test_other_models_keep_their_own_plain(tmp_path: Path) -> None:
    one = evaluated(tmp_path / "one", {"plain": ["A fork."], "vhr": ["A dog."]})
    two = evaluated(tmp_path / "two", {"plain": ["A dog."], "vhr": ["A dog."]}, model="m2")
    made, _ = shown([one, two], tmp_path / "out")
    runs = {entry["name"]: entry for entry in made.sections[0].runs}
    assert {name: entry["against"] for name, entry in runs.items()} == {
        "plain (one)": None, "vhr (one)": "plain (one)", "plain (two)": None, "vhr (two)": "plain (two)",
    }  # fmt: skip
    assert runs["vhr (one)"]["differences"]["chair"]["s"]["value"] == -1.0
    assert runs["vhr (two)"]["differences"]["chair"]["s"]["value"] == 0.0
    assert any("different models" in note for note in made.sections[0].notes)


def test_a_folder_of_folders(tmp_path: Path) -> None:
    evaluated(tmp_path / "all" / "b", {"plain": ["A dog."]})
    evaluated(tmp_path / "all" / "a", {"plain": ["A dog.", "A bus."]})
    (tmp_path / "all" / "empty").mkdir()
    assert [folder.name for folder in folders.read([tmp_path / "all"])] == ["a", "b"]


def test_names_of_folders_are_as_long_as_needed(tmp_path: Path) -> None:
    paths = [evaluated(tmp_path / place / "out", {"plain": ["A dog."]}) for place in ("x", "y")]
    assert [folder.name for folder in folders.read(paths)] == ["x/out", "y/out"]


def test_questions_show_what_is_wrong(tmp_path: Path) -> None:
    asked = [Entry("here", n, "a.png", f"Is there a {name}?", name == "dog") for n, name in enumerate(("dog", "cat"))]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    bench = PopeBenchmark.merged({"random": asked, "popular": asked[:1]}, {"a.png": tmp_path / "a.png"}, Notes())
    folder = evaluated(tmp_path / "p", {"plain": ["Yes.", "Yes."], "vhr": ["Yes", "No."]}, benchmark=bench)
    made, page = shown([folder], tmp_path / "out")
    samples = page.json("samples-0")["samples"]
    assert [one["said"][0]["text"][0][0] for one in samples] == [RIGHT, WRONG]
    assert samples[1]["said"][1]["text"] == [[RIGHT, "No."]]
    assert (samples[1]["ask"], samples[1]["truth"], samples[1]["picture"]) == ("Is there a cat?", "no", 0)
    assert len(page.json("pictures")) == 1  # a picture that many questions share is there once
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert html.count('class="split"') == 6  # random, popular and their mean, in two tables
    assert "accuracy, random (higher is better)" in html
    assert "| mean | vhr |" in made.markdown()
    assert "pope, n = 1–2 a split" in page.text


def test_answers_from_elsewhere_stand_alone(tmp_path: Path) -> None:
    one = evaluated(tmp_path / "one", {"plain": ["A fork."], "vhr": ["A dog."]})
    said = evaluated(tmp_path / "said", {ANSWERS: ["A bus."]}, model=None)
    made, _ = shown([one, said], tmp_path / "out")
    assert [entry["name"] for entry in made.sections[0].runs] == ["plain", "vhr", "answers"]
    assert made.sections[0].notes == ["compared with none, as first runs of their folders: answers"]


def unfinished(out: Path, name: str, done: int, *, of: int | None = 4) -> None:
    known = {"benchmark": "chair"} | ({} if of is None else {"samples": of})
    with Store(out / name, known) as store:
        store.append({"id": str(n), "reply": "A dog."} for n in range(done))


def test_an_interrupted_folder_is_told(tmp_path: Path) -> None:
    unfinished(tmp_path / "a", "vhr", 1)
    unfinished(tmp_path / "a", "plain", 3)
    with (tmp_path / "a" / "plain" / "rank-0.jsonl").open("ab") as file:
        file.write(b'{"id": "3", "re')
    made, page = shown([tmp_path / "a"], tmp_path / "out")
    assert made.sections == []
    assert [(one.run, one.done, one.of) for one in made.folders[0].unfinished] == [("plain", 3, 4), ("vhr", 1, 4)]
    for part in (page.text, made.markdown()):
        assert "a: plain is not finished: 3 of 4 samples of chair are done" in part
    assert made.result["folders"][0]["unfinished"][1] == {"run": "vhr", "done": 1, "of": 4, "benchmark": "chair"}


def test_a_run_that_was_added_and_is_not_finished_is_told_beside_the_others(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "a", {"plain": ["A dog."], "vhr": ["A dog."]})
    unfinished(folder, "vhr", 1, of=1)
    unfinished(folder, "var", 0, of=None)
    made, page = shown([folder], tmp_path / "out")
    assert [one.run for one in made.folders[0].unfinished] == ["var"]
    assert "var is not finished: 0 of unknown samples" in page.text
    assert len(made.sections[0].runs) == 2


def test_a_harness_has_its_own_tables(tmp_path: Path) -> None:
    result = {
        "engine": "lmms-eval",
        "version": "0.7.3",
        "tasks": {"pope_local": {"plain": {"acc": 0.5}, "vhr": {"acc": 0.75}}},
    }
    result |= {
        "configs": {"vhr": {"methods": ["vhr"]}},
        "command": "sightline eval",
        "versions": {},
        "hashes": {"model": "m"},
    }
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "result.json", result)
    made, page = shown([tmp_path / "a"], tmp_path / "out")
    assert "pope_local (lmms-eval 0.7.3)" in page.text
    assert "| vhr | 0.7500 |" in made.markdown()


def test_pieces_are_the_text() -> None:
    vocabulary = Vocabulary(["dog", "hot dog"])
    caption = 'Dogs < a "hot dog" & dogma'
    mentions = [vars(one) | {"hallucinated": one.name == "dog"} for one in vocabulary.mentions(caption)]
    found = pieces(caption, mentions)
    assert found == [[WRONG, "Dogs"], [PLAIN, ' < a "'], [RIGHT, "hot dog"], [PLAIN, '" & dogma']]
    assert pieces("", []) == []
    for start, end in ((0, 99), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="characters"):
            pieces(caption, [{"start": start, "end": end, "hallucinated": True}])


def noise(path: Path, side: int, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_pictures_shrink_to_fit_and_the_rest_is_told(tmp_path: Path) -> None:
    files = [noise(tmp_path / f"{n}.jpg", 400, n) for n in range(6)]
    sides = []
    for limit in (10_000_000, 200_000):
        notes = Notes()
        sources = show(files, tmp_path, notes, limit=limit)
        assert None not in sources
        assert not notes
        assert sum(map(len, sources)) <= limit
        sides.append(max(Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))).size))
    assert sides[0] == SIDES[0] > sides[1] >= SIDES[-1]
    notes = Notes()
    sources = show(files, tmp_path, notes, limit=20_000)
    assert 0 < sources.count(None) < 6
    assert sum(len(one or "") for one in sources) <= 20_000
    (line,) = notes
    assert "the page holds 0.02 MB" in line
    assert notes[line] == sources.count(None)


def test_pictures_that_are_gone_or_broken_are_told(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("no picture")
    good = noise(tmp_path / "good #1.jpg", 30, 0)
    files = [tmp_path / "gone.jpg", tmp_path / "broken.jpg", good]
    notes = Notes()
    sources = show(files, tmp_path, notes, limit=10**6)
    assert [one is None for one in sources] == [True, True, False]
    assert sum(notes.values()) == 2
    assert show(files, tmp_path / "page", Notes(), mode="link", limit=0) == [
        None,
        "../broken.jpg",
        "../good%20%231.jpg",
    ]
    assert show(files, tmp_path, Notes(), mode="none", limit=0) == [None] * 3


def test_pictures_that_moved_are_found(tmp_path: Path) -> None:
    picture = noise(tmp_path / "here.jpg", 20, 0)
    folder = evaluated(tmp_path / "a", {"plain": ["A dog."]}, benchmark=captions(1, picture))
    (tmp_path / "there").mkdir()
    picture.rename(tmp_path / "there" / "here.jpg")
    _, page = shown([folder], tmp_path / "out")
    assert page.json("pictures") == [None]
    assert "a picture is not where it was: give --images DIR" in page.text
    _, page = shown([folder], tmp_path / "out", images=tmp_path / "there")
    assert page.json("pictures")[0].startswith("data:image/")
    _, page = shown([folder], tmp_path / "out", images=tmp_path / "there", pictures="link")
    assert page.json("pictures") == ["../there/here.jpg"]
    assert "img-src data: 'self' file:" in page.policy


def damage(folder: Path, name: str, change: Callable[[str], str]) -> None:
    path = folder / name
    path.write_text(change(path.read_text("utf-8")), "utf-8")


def without(key: str) -> Callable[[str], str]:
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


def mangled(**change: Any) -> Callable[[str], str]:
    def apply(text: str) -> str:
        first, *others = text.splitlines()
        return "\n".join([json.dumps(json.loads(first) | change), *others])

    return apply


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("result.json", lambda text: text[: len(text) // 2], r"result.json, line \d+: not JSON"),
        ("result.json", lambda text: "[]", "result.json: expected a JSON object"),
        ("result.json", without("hashes"), "result.json: 'hashes': Field required; not a result of sightline"),
        ("result.json", lambda text: text.replace('"time_ratio"', '"x"'), "run 0 has no 'time_ratio'"),
        ("result.json", lambda text: text.replace('"benchmark": "chair"', '"benchmark": "chiar"'), "did you mean 'chair'"),
        ("result.json", lambda text: json.dumps(json.loads(text) | {"runs": []}), "scores of no benchmark"),
        ("samples.jsonl", lambda text: text[:-20], r"samples.jsonl, line 2: not JSON"),
        ("samples.jsonl", lambda text: text.splitlines()[0], r"samples.jsonl, line 1: the file ends, but result.json has 2"),
        ("samples.jsonl", mangled(runs={}), r"samples.jsonl, line 1: not a sample with a reply of each run \(plain, vhr\)"),
        ("samples.jsonl", mangled(runs={"plain": {"mentions": 3}, "vhr": {}}), "samples.jsonl: sample 'scene-0' is damaged"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, file: str, change: Callable[[str], str], message: str) -> None:
    folder = evaluated(tmp_path / "a", {"plain": ["A dog.", "A cat."], "vhr": ["A dog.", "A cat."]})
    damage(folder, file, change)
    with pytest.raises(SightlineError, match=message) as caught:
        report.write([folder], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one = evaluated(tmp_path / "one", {"plain": ["A dog."]}, data="d")
    two = evaluated(tmp_path / "two", {"plain": ["A dog."]}, data="d")
    damage(two, "samples.jsonl", mangled(truth={"objects": ["cat"]}))
    with pytest.raises(DataError, match=r"two/samples.jsonl, line 1: sample 'scene-0' is another one than in .*one"):
        report.write([one, two], tmp_path / "out")
    with pytest.raises(DataError, match="is given twice"):
        report.write([one, tmp_path / "two" / ".." / "one"], tmp_path / "out")
    unfinished(tmp_path / "part", "plain", 2)
    damage(tmp_path / "part" / "plain", "rank-0.jsonl", lambda text: "{\n" + text)
    with pytest.raises(StoreError, match=r"rank-0.jsonl, line 1: damaged"):
        report.write([tmp_path / "part"], tmp_path / "out")


def test_samples_that_were_deleted_are_told(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "a", {"plain": ["A dog."]})
    (folder / "samples.jsonl").unlink()
    made, page = shown([folder], tmp_path / "out")
    assert "no samples.jsonl: the replies are not shown" in page.text
    assert made.sections[0].runs[0]["chair"]["n"] == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluated(tmp_path / "a", {"plain": ["A fork.", "A cat."], "vhr": ["A dog.", "A cat."]})
    unfinished(folder, "var", 1, of=2)
    asked = ["report", str(folder), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")]
    assert cli.main(asked) == 0
    printed = capsys.readouterr().out
    assert "CHAIR_I" in printed
    assert "var is not finished: 1 of 2" in printed
    result = json.loads((tmp_path / "r.json").read_text())
    assert {"sections", "folders", "command", "versions", "hashes"} <= set(result)
    assert [entry["name"] for entry in result["sections"][0]["runs"]] == ["plain", "vhr"]
    assert (tmp_path / "out" / "report.md").read_text().startswith("# Results")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_a_browser_draws_a_page_of_samples(tmp_path: Path) -> None:
    said = {"plain": [HOSTILE, *["A dog and a fork."] * 24], "vhr": ["A cat.", *["A dog."] * 24]}
    shown([evaluated(tmp_path / "a", said)], tmp_path / "out")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    page = f"file://{tmp_path / 'out' / 'report.html'}"
    drawn = subprocess.run([BROWSER, *flags, "--dump-dom", page], capture_output=True, text=True, timeout=120).stdout
    cards = re.findall('<article class="card">.*?</article>', drawn, re.DOTALL)
    assert len(cards) == 12
    assert "1 to 12 of 25" in drawn
    for chip in ("all 25", "helped 24", "harmed 1", "unchanged 0"):
        assert f">{chip}</span>" in drawn
    first = re.sub(r"\s+", " ", cards[0])
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; '</span><b>dog</b>" in first
    assert "<mark>cat</mark>" in first
    assert 'src="data:image/' in first
    assert "harmed: 0 → 1 marked" in first
    assert cards[1].count("<mark>") == 1
    assert "helped: 1 → 0 marked" in cards[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DIR"),
        (["missing"], "no folder missing"),
        (["empty"], "empty holds no results"),
        (["empty", "--pictures", "some"], "--pictures"),
        (["empty", "--out", "file"], "file"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert cli.main(["report", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_five_thousand_captions_stay_small(tmp_path: Path) -> None:
    number = 5000
    said = {"plain": ["A dog and a fork."] * number, "vhr": [f"A dog and cat {n}." for n in range(number)]}
    picture = noise(tmp_path / "p.jpg", 64, 0)
    folder = evaluated(tmp_path / "a", said, benchmark=captions(number, picture))
    _, page = shown([folder], tmp_path / "out")
    assert len(page.json("samples-0")["samples"]) == number
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert len(html) < 3_000_000
    drawn = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert drawn.count("<") < 2000  # the browser starts with the tables only


NARROW = 400 - 2 * 14 - 2 * 16 - 2
"""What a phone of 400 pixels leaves of a chart's card."""


def test_charts_fit_a_narrow_screen_and_can_be_read() -> None:
    rates = {"recall": 0.7, "i": 0.2}
    between = {"recall": (0.6, 0.75), "i": (0.15, 0.3)}
    runs = [(f"run {number} with a name that is long", rates, between, "open") for number in range(4)]
    rows = [{"position": place, "i": 0.1 * place, "n": 9} for place in range(1, LAST_POSITION + 1)]
    drawn = [
        tradeoff("recall", [{"recall": 0.1 * k, "i": 0.02 * k, "beyond": False} for k in range(1, 10)], runs),
        positions("places", [(name, rows) for name, *_ in runs[:2]], LAST_POSITION),
    ]
    style = (report.TEMPLATES / "report.css").read_text("utf-8")
    narrow = style[style.index("(max-width: 480px)") :]
    size, tick = (int(found) for found in re.findall(r"svg\.roomy text[^{]*{\s*font-size: (\d+)px", narrow)[:2])
    for chart in drawn:
        shrunk = min(1.0, NARROW / chart.width)
        assert chart.roomy
        assert min(size, tick) * shrunk > 11
        for one in chart.shapes:
            if one.tag == "text":
                ends = one.attributes["x"], one.attributes["x"] + LETTER * len(one.text)
                if one.attributes["text-anchor"] == "start":
                    assert ends[1] <= chart.width, one.text
    assert "min-width: 440px" not in style


def test_names_in_a_plot_cover_neither_bars_nor_each_other() -> None:
    between = {"recall": (0.66, 0.74), "i": (0.17, 0.24)}
    runs = [
        ("plain", {"recall": 0.7, "i": 0.2}, between, "open"),
        ("pai", {"recall": 0.705, "i": 0.205}, between, "good"),
    ]
    chart = tradeoff("recall", [{"recall": 0.1 * k, "i": 0.02 * k, "beyond": False} for k in range(1, 10)], runs)
    lines = [one.attributes for one in chart.shapes if one.attributes["class"].startswith("reach")]
    boxes = []
    for one in chart.shapes:
        if one.attributes["class"].startswith("name"):
            width, x = LETTER * len(one.text), one.attributes["x"]
            boxes.append((x - width * (one.attributes["text-anchor"] == "end"), one.attributes["y"] - 11, width, 13))
    bars = [
        (min(b["x1"], b["x2"]), min(b["y1"], b["y2"]), abs(b["x2"] - b["x1"]), abs(b["y2"] - b["y1"])) for b in lines
    ]
    for number, box in enumerate(boxes):
        for other in [*boxes[:number], *bars]:
            apart = any(box[k] >= other[k] + other[k + 2] or other[k] >= box[k] + box[k + 2] for k in (0, 1))
            assert apart, (box, other)
