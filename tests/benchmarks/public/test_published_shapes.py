"""Every reader on hand-made files in each shape that benchmarks are published in, and replies in each of theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sightline.benchmarks.benchmark import DataSource
from sightline.benchmarks.public import amber as amber_module
from sightline.benchmarks.public.tokens import tokens
from sightline.benchmarks.runner import suite
from sightline.common.errors import DataError
from typer.testing import CliRunner

OWN = [name for name, point in suite.BENCHMARKS.items() if point.value.startswith("sightline.")]
SETS = {"coco": "coco_pope", "aokvqa": "aokvqa_pope_seem", "gqa": "gqa_pope_seem"}
SPLITS = ("random", "popular", "adversarial")


def put(path: Path, content: Any, *, lines: bool = False, indent: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content, indent=indent)
    path.write_text(text)
    return path


def read(name: str, folder: Path, *replies: Path, **options: Any) -> Any:
    return suite.read(name, DataSource(folder, replies=replies, **options))


def question(number: int, image: str, name: str, label: str) -> dict[str, Any]:
    return {"question_id": number, "image": image, "text": f"Is there a {name} in the image?", "label": label}


def nine(folder: Path, *, lines: bool, nested: bool) -> Path:
    """Nine files as releases have them; the adversarial ones of A-OKVQA and GQA hold one question twice."""
    for kind, stem in SETS.items():
        image = "2405722.jpg" if kind == "gqa" else "COCO_val2014_000000310196.jpg"
        for split in SPLITS:
            rows = [question(1, image, "dog", "yes"), question(2, image, f"{split} {kind}", "no")]
            if split == "adversarial" and kind != "coco":
                rows.append(question(3, image, f"{split} {kind}", "no"))
            place = {"coco": "coco", "aokvqa": "seem/aokvqa", "gqa": "seem/gqa"}[kind] if nested else "."
            put(folder / place / f"{stem}_{split}.json", rows, lines=lines or kind == "coco", indent=4)
    return folder


@pytest.mark.parametrize(("lines", "nested"), [(True, False), (False, True)])
def test_pope_reads_nine_files_and_gives_their_mean(tmp_path: Path, lines: bool, nested: bool) -> None:
    folder = nine(tmp_path / "data", lines=lines, nested=nested)
    said = tmp_path / "said"
    for kind, stem in SETS.items():
        for split in SPLITS:
            rows = json.loads(json.dumps([{"answer": "Yes"}, {"answer": "No"}, {"answer": "No"}]))
            rows = rows[: 3 if split == "adversarial" and kind != "coco" else 2]
            if (kind, split) == ("gqa", "random"):
                rows[1]["answer"] = "Yes"
            put(said / f"{stem}_{split}.jsonl", rows, lines=True)
    bench = read("pope", folder, said)
    scores = bench.score(bench.answers(said))
    assert list(scores) == [
        *(f"{kind}/{split}" for kind in SETS for split in SPLITS),
        *(f"{kind}/mean" for kind in SETS),
        "mean",
    ]
    assert scores["gqa/random"].values["accuracy"] == 0.5
    assert scores["coco/mean"].values["accuracy"] == 1.0
    assert scores["gqa/mean"].values["accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert scores["mean"].values["accuracy"] == pytest.approx((8 + 0.5) / 9)
    assert scores["mean"].values["n"] == 9 * 2 + 2
    assert scores["gqa/adversarial"].values["n"] == 3  # both of the question that is there twice
    assert sum("asks a question twice" in note for note in bench.notes.lines()) == 2
    low, high = (float(f(scores["mean"].ratios["accuracy"].resampled(50))) for f in (min, max))
    assert low <= scores["mean"].values["accuracy"] <= high


def test_pope_model_is_asked_once_what_splits_share(tmp_path: Path) -> None:
    folder = nine(tmp_path, lines=True, nested=False)
    with pytest.raises(DataError, match=r"2 of 2 images are missing, .*replies that exist \(--answers\) need none"):
        read("pope", folder)
    for name in ("COCO_val2014_000000310196.jpg", "gqa/images/2405722.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert len(read("pope", folder).samples) == 2 + 9  # the dog of COCO's picture and of GQA's, and nine others


def test_pope_answers_of_vcds_files(tmp_path: Path) -> None:
    """VCD's questions say "imange"; answers to them fit the released questions."""
    put(tmp_path / "data" / "coco_pope_random.json", [question(1, "a.jpg", "dog", "yes")], lines=True)
    said = put(tmp_path / "said.jsonl", [{"question_id": 1, "prompt": "Is there a dog in the imange?", "text": "Yes"}])
    bench = read("pope", tmp_path / "data", said)
    assert bench.answers(said) == ["Yes"]


def test_pope_matches_strictly_or_flexibly(tmp_path: Path) -> None:
    put(tmp_path / "data" / "coco_pope_random.json", [question(1, "a.jpg", "dog", "no")], lines=True)
    said = put(tmp_path / "said.json", [{"answer": "No\n"}])
    assert read("pope", tmp_path / "data", said).score(["No\n"])["random"].values["accuracy"] == 0.0
    bench = read("pope", tmp_path / "data", said, match="flexible")
    assert bench.score(["No\n"])["random"].values["accuracy"] == 1.0
    assert any("plainly say" in note for note in bench.notes.lines())


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}, {"id": 11, "file_name": "c.jpg"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "bus"}],
    "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 9, "category_id": 3}],
}


@pytest.mark.parametrize("shape", ["lines", "list", "imgToEval", "ids"])
def test_chair_answers(tmp_path: Path, shape: str) -> None:
    put(tmp_path / "data" / "annotations" / "instances_val2014.json", COCO)
    rows = [{"image_id": 9, "caption": "A bus and a cat"}, {"image_id": 7, "caption": "A dog"}]
    if shape == "imgToEval":
        content: Any = {"overall": {}, "imgToEval": {str(row["image_id"]): row for row in rows}}
    elif shape == "ids":
        content = [{"id": str(row["image_id"]), "reply": row["caption"]} for row in rows]
    else:
        content = rows
    said = put(tmp_path / "said.json", content, lines=shape == "lines")
    bench = read("chair", tmp_path / "data", said)
    assert [sample.id for sample in bench.samples] == ["9", "7"]  # those that are described
    assert bench.score(bench.answers(said)).values["i"] == pytest.approx(1 / 3)
    assert any("a picture is not on disk" in note for note in bench.notes.lines())
    assert bench.data_hash()
    put(said, [{"image_id": 8, "caption": "A dog"}], lines=True)
    with pytest.raises(DataError, match=r"said.json, line 1: image '8' is not among the instances' images"):
        read("chair", tmp_path / "data", said)


def test_chair_slips_are_an_option(tmp_path: Path) -> None:
    put(tmp_path / "data" / "instances.json", COCO)
    table = tmp_path / "synonyms.txt"
    table.write_text("dog, puppy\nbus\ncat\n")
    said = put(tmp_path / "said.jsonl", [{"image_id": 9, "caption": "A bus and a cat"}], lines=True)
    found = {
        match: read("chair", tmp_path / "data", said, synonyms=table, match=match).score(["A bus and a cat"]).values
        for match in (None, "strict")
    }
    assert (found[None]["mentions"], found["strict"]["mentions"]) == (2.0, 1.0)
    assert (found[None]["recall"], found["strict"]["recall"]) == (1.0, 0.0)  # the picture holds a bus all the same


def test_coco_file_with_categories_of_its_own(tmp_path: Path) -> None:
    rows = [{"id": 18, "name": "Forklift"}, {"id": 3, "name": "pallet"}]
    put(tmp_path / "data" / "instances.json", COCO | {"categories": rows})
    said = put(tmp_path / "said.jsonl", [{"image_id": 7, "caption": "A forklift and a truck"}], lines=True)
    with pytest.raises(
        DataError, match=r"\(Forklift\) is none .*--categories a YAML .*Forklift: person.*--categories own"
    ):
        read("chair", tmp_path / "data", said)
    own = read("chair", tmp_path / "data", said, categories="own")
    assert own.score(own.answers(said)).values["recall"] == 1.0
    assert own.score(own.answers(said)).values["mentions"] == 1.0  # a truck is none of its names
    table = tmp_path / "names.yaml"
    table.write_text("Forklift: truck\npallet:\n")
    mapped = read("chair", tmp_path / "data", said, categories=table)
    assert mapped.truths == [{"truck"}]
    (tmp_path / "data" / "image_ids.txt").write_text("7\n")
    built = read("pope", tmp_path / "data", said, categories=table)
    assert {one.text for one, fact in zip(built.samples, built.facts, strict=True) if fact["label"] == "yes"} == {
        "Is there a truck in the image?"
    }
    table.write_text("Forklift: trucc\n")
    with pytest.raises(DataError, match=r"names.yaml: no object is called 'trucc', did you mean 'truck'"):
        read("chair", tmp_path / "data", said, categories=table)


@pytest.fixture
def amber(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class Words:
        name, similar = "words", None

        def nouns(self, text: str) -> list[Any]:
            return tokens(text)

    monkeypatch.setattr(amber_module, "tagger", Words)
    data = tmp_path / "data"
    put(data / "relation.json", {"TV": [], "dog": ["puppy"], "air-conditioning": []})
    (data / "safe_words.txt").write_text("light\n")
    put(
        data / "annotations.json",
        [
            {"id": 1, "type": "generative", "truth": ["TV", "air-conditioning"], "hallu": ["dog"]},
            {"id": 1012, "type": "discriminative-attribute-number", "truth": "no"},
        ],
    )
    put(data / "query" / "query_all.json", [{"id": n, "image": f"AMBER_{n}.jpg", "query": "?"} for n in (1, 1012)])
    return tmp_path


def test_amber_answers_in_the_releases_form(amber: Path) -> None:
    rows = [{"id": 1, "response": "a TV and air-conditioning"}, {"id": 1012, "response": "No"}]
    said = put(amber / "said.json", rows, indent=2)
    bench = read("amber", amber, said)
    scores = bench.score(bench.answers(said))
    assert scores["generative"].values["cover"] == 1.0
    assert scores["number"].values["accuracy"] == scores["attribute"].values["accuracy"] == 1.0


def hallusion(figure: int, visual: int, filename: str | None, **more: Any) -> dict[str, Any]:
    place = {"category": "VS", "subcategory": "chart", "set_id": "0", "figure_id": str(figure), "question_id": "1"}
    return place | {"visual_input": str(visual), "question": "Is it?", "gt_answer": "1", "filename": filename} | more


@pytest.mark.parametrize("root", ["", "hallusion_bench"])
def test_hallusion_pictures_and_answers(tmp_path: Path, root: str) -> None:
    rows = [hallusion(0, 0, None), hallusion(1, 1, "./VS/chart/0_1.png"), hallusion(2, 2, "./VS/chart/0_2.png")]
    put(tmp_path / "HallusionBench.json", rows)
    for number in (1, 2):
        picture = tmp_path / root / "VS" / "chart" / f"0_{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
    bench = read("hallusion", tmp_path)
    assert [sample.image and sample.image.name for sample in bench.samples] == [None, "0_1.png", "0_2.png"]
    assert all(sample.image is None or sample.image.is_file() for sample in bench.samples)
    said = put(tmp_path / "result.json", [row | {"model_prediction": "Yes, it is."} for row in rows])
    assert bench.score(bench.answers(said))["all"].values["qacc"] == 1.0


def test_truthfulqa_leaves_empty_answers_out(tmp_path: Path) -> None:
    row = {
        "question": "Which?",
        "mc0_targets": {"A": 1, "B": 0},
        "mc1_targets": {"A": 1, "B": 0, "": 0},
        "mc2_targets": {"A": 1, "": 1, "B": 0},
    }
    put(tmp_path / "mc_task.json", [row] * 790)
    bench = read("truthfulqa", tmp_path)
    assert bench.samples[0].choices == (" A", " B", " A", " B")
    assert not any("published set" in note for note in bench.notes.lines())  # today's file has 790 questions
    assert any("empty answer is left out" in note for note in bench.notes.lines())


def test_memotrap_as_csv(tmp_path: Path) -> None:
    names = ("1-proverb-ending", "2-proverb-translation", "3-hate-speech-ending", "4-history-of-science-qa")
    for name in names:
        (tmp_path / f"{name}.csv").write_text("prompt,classes,answer_index\n\"End it\",\"[' a.', ' b.']\",1\n")
    bench = read("memotrap", tmp_path)
    assert [sample.choices for sample in bench.samples] == [(" a.", " b.")] * 4
    assert bench.score([[-2.0, -1.0]] * 4)["all"].values["macro"] == 1.0


def test_nqswap_as_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    row = {
        "question": "who",
        "org_context": "",
        "sub_context": "It was Bob.",
        "sub_answer": ["Bob"],
        "org_answer": ["Al"],
    }
    (tmp_path / "data").mkdir()
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "data" / "dev-00000-of-00001.parquet")
    bench = read("nqswap", tmp_path)
    assert bench.facts == [(["Bob"], ["Al"])]
    (tmp_path / "data" / "dev-00000-of-00001.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"cannot read .*dev-00000-of-00001.parquet"):
        read("nqswap", tmp_path)


def test_nqswap_needs_a_package_for_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "nqswap.parquet").touch()
    with pytest.raises(DataError, match=r"nqswap.parquet is a parquet file: pip install pyarrow"):
        read("nqswap", tmp_path)


def test_mme_and_mmhal_replies_need_no_pictures(tmp_path: Path) -> None:
    for subset in ("existence", "count", "position", "color"):
        (tmp_path / "mme" / subset).mkdir(parents=True)
        (tmp_path / "mme" / subset / "1.txt").write_text("Is it?\tYes\nIs it not?\tNo\n")
    with pytest.raises(DataError, match=r"existence: 1 has no picture"):
        read("mme", tmp_path / "mme")
    bench = read("mme", tmp_path / "mme", tmp_path / "said.json")
    said = put(
        tmp_path / "said.json",
        [{"id": one.id, "reply": "Yes" if n % 2 == 0 else "No"} for n, one in enumerate(bench.samples)],
    )
    assert bench.score(bench.answers(said))["total"].values["score"] == pytest.approx(800)
    entry = {"image_src": "https://example.org/a.jpg", "question": "What?"}
    put(tmp_path / "mmhal" / "response_template.json", [entry])
    assert len(read("mmhal", tmp_path / "mmhal", said).samples) == 1


def test_a_file_where_a_folder_is_wanted_and_the_other_way_round(tmp_path: Path) -> None:
    folder = nine(tmp_path / "data", lines=True, nested=False)
    said = put(tmp_path / "said.json", [{"answer": "Yes"}])
    with pytest.raises(DataError, match=r"said.json is a file, but there are 9 splits: give a folder"):
        read("pope", folder, said).answers(said)
    put(tmp_path / "coco" / "instances.json", COCO)
    with pytest.raises(DataError, match=r"data is a folder: chair takes one file of replies"):
        read("chair", tmp_path / "coco", folder)


def test_the_command_scores_answers_without_pictures(tmp_path: Path) -> None:
    from sightline.cli.main import app

    put(tmp_path / "data" / "instances.json", COCO)
    table = tmp_path / "synonyms.txt"
    table.write_text("dog, puppy\nbus\ncat\n")
    said = put(tmp_path / "said.jsonl", [{"image_id": 9, "caption": "A bus and a cat"}], lines=True)
    command = ["eval", "chair", "--data", str(tmp_path / "data"), "--answers", str(said), "--synonyms", str(table)]
    done = CliRunner().invoke(app, [*command, "--match", "strict", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["runs"][0]["chair"]["mentions"] == 1.0
    assert any("not on disk" in note for note in result["notes"])


@pytest.mark.parametrize("name", OWN)
def test_every_reader_has_files_of_its_published_shape_here(name: str) -> None:
    assert name in re.findall(r'\bread\("(\w+)", ', Path(__file__).read_text())
