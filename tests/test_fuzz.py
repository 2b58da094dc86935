"""Malformed files of every kind end in one typed line: configurations, suites, calibrations, data, replies, results."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sightline import Calibration, Config
from sightline.benchmarks.benchmark import DataSource
from sightline.benchmarks.public import coco
from sightline.benchmarks.report import page
from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.evaluate import score_answers
from sightline.benchmarks.runner.store import finished
from sightline.common.errors import LONGEST, SightlineError
from sightline.common.files import read_suite
from sightline.common.readers import Notes
from sightline.plugin.config import named_configs
from sightline.profiling.data.examples import examples
from sightline.profiling.probes.retrieval import read_public
from sightline.profiling.tuning.space import spaces

from tests.helpers.fuzz import documents, rows, write

CONFIG: dict[str, Any] = {
    "calibration": "auto",
    "methods": [
        "gift",
        {"vhr": {"alpha": 2.0, "layers": [1, 2], "distance": "squared"}},
        {"pasta": {"head_list": [[0, 1], [2, 3]], "span": "question"}},
    ],
    "decoder": {"vcd": {"alpha": 1.0}},
}
TABLE = [[0.5, 0.25, 1.0], [0.0, 0.125, 2.0]]
CALIBRATION: dict[str, Any] = {
    **{"schema": 2, "model": "somebody/tiny", "architecture": "llava", "layers": 2, "heads": 3},
    "aliases": ["somebody-else/tiny-v2"],
    "source": {"kind": "measured", "versions": {"torch": "2.13.0"}, "date": "2026-01-31", "samples": 20},
    "sink": {"dims": [7, 3], "tau": 20.0, "source": "somewhere", "first": [1], "tokens": {"visual": 0.5, "text": 1.0}},
    "gaze": {"saliency_layers": [0], "enhanced_layers": [1], "alpha": 5.0},
    "visual_heads": {"layers": [1], "scores": TABLE},
    "conflict_heads": {"enhance": [[0, 2], [1, 1]], "suppress": [[0, 0]]},
    "focus_heads": {"heads": [[0, 1]], "directions": [[0.5, 0.5]]},
    "grounding": {"heads": [[0, 1]], "weights": {"image": 1.0}, "threshold": 0.5},
}
SPACE = {
    "vhr": {
        "methods": [{"vhr": {"alpha": {"from": 1.0, "to": 4.0, "log": True}, "distance": ["squared", "euclidean"]}}]
    }
}
COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [1, 1, 4, 4]},
        {"id": 3, "image_id": 2, "caption": "a cat"},
    ],
}
OBJECTS = {key: part if key != "annotations" else part[:2] for key, part in COCO.items()}
LINES = [
    {"image": "a.jpg", "objects": [{"label": "dog", "box": [0, 0, 4, 4]}], "caption": "a dog"},
    {"image": "b.jpg", "prompt": "What?", "texts": [{"label": "stop", "box": [1, 1, 3, 3]}]},
]
POPE = [
    {"question_id": n, "image": "a.jpg", "text": f"Is there a {n}?", "label": "yes" if n % 2 else "no"} for n in (1, 2)
]
AMBER = [{"id": n, "type": "discriminative-hallucination", "truth": "yes"} for n in (1, 2)]
HALLUSION = [
    {
        **{"category": "VD", "subcategory": "chart", "set_id": "0", "figure_id": "1", "question_id": str(n)},
        **{"visual_input": "1", "filename": "./a.jpg", "question": "Is it?", "gt_answer": "1"},
    }
    for n in (0, 1)
]
MMHAL = [{"image_src": "https://x.y/a.jpg", "question": "What?", "gt_answer": "that", "image_content": ["a"]}]
TRUTHFUL = [
    {"question": "Q?", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]}}
]
NQSWAP = [{"question": "q", "sub_context": "c", "sub_answer": ["a"], "org_answer": [["b"], "c"]}]
SCORES = {f"{layer}-{head}": [0.1, 0.2] for layer in range(2) for head in range(2)}


@dataclass(frozen=True)
class Target:
    """What is written into a folder, and what reads it."""

    text: st.SearchStrategy[str]
    read: Callable[[Path, str], Any]


def _file(read: Callable[[Path], Any], name: str = "x.yaml") -> Callable[[Path, str], Any]:
    def run(folder: Path, text: str) -> Any:
        write(folder / name, text)
        return read(folder / name)

    return run


def _benchmark(name: str, file: str, **others: str) -> Callable[[Path, str], Any]:
    """Read a benchmark, score replies to it, and write down its truths."""

    def run(folder: Path, text: str) -> None:
        for other, content in {**{key.replace("__", "/"): one for key, one in others.items()}, file: text}.items():
            write(folder / other, content)
        bench = suite.read(name, DataSource(folder))
        said: list[Any] = [[0.0] * len(one.choices) if one.choices else "yes" for one in bench.samples]
        bench.score(said)
        bench.data_hash()
        json.dumps([bench.truth(number) for number in range(len(said))])
        for number, reply in enumerate(said):
            bench.detail(number, reply)

    return run


def _answers(folder: Path, text: str) -> None:
    write(folder / "coco_pope_random.json", "\n".join(map(json.dumps, POPE)))
    write(folder / "said.jsonl", text)
    suite.read("pope", DataSource(folder)).answers(folder / "said.jsonl")


def _examples(folder: Path, text: str, name: str) -> None:
    write(folder / name, text)
    try:
        for sees in (True, False):
            with contextlib.suppress(SightlineError):
                examples(folder, 4, seed=0, sees=sees, notes=Notes())
    finally:
        (folder / name).unlink()


def _store(folder: Path, text: str) -> None:
    write(folder / "run" / "rank-0.jsonl", text + "\n")
    finished(folder / "run", Notes())


def _suite(path: Path) -> None:
    named_configs(read_suite("demo.yaml", path), str(path))


@functools.cache
def result() -> dict[str, Any]:
    """What scoring replies to two questions writes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        Image.new("RGB", (8, 8), "red").save(folder / "a.jpg")
        write(folder / "coco_pope_random.json", "\n".join(map(json.dumps, POPE)))
        for name in ("first", "second"):
            write(folder / f"{name}.jsonl", "\n".join(json.dumps({"question_id": n, "answer": "yes"}) for n in (1, 2)))
        asked = suite.read("pope", DataSource(folder))
        score_answers(asked, [folder / "first.jsonl", folder / "second.jsonl"], folder / "out")
        found = json.loads((folder / "out" / "result.json").read_text())
        assert len(found["runs"]) == 2
        return found


def _report(folder: Path, text: str) -> None:
    write(folder / "results" / "result.json", text)
    page.write([folder / "results"], folder / "report")


BOTH = {"annotations__captions_val2014.json": json.dumps({"annotations": [{"image_id": 1, "caption": "a dog"}]})}
TARGETS = {
    "configuration": Target(documents(CONFIG), _file(Config.load)),
    "suite": Target(documents({"a": CONFIG, "b": CONFIG}), _file(_suite)),
    "space": Target(documents(SPACE), _file(lambda path: spaces(None, path))),
    "calibration": Target(documents(CALIBRATION), _file(Calibration.load)),
    "any text": Target(st.text(max_size=40), _file(Config.load)),
    "head scores": Target(documents(SCORES), _file(read_public, "x.json")),
    "examples": Target(rows(LINES), lambda folder, text: _examples(folder, text, "x.jsonl")),
    "annotations": Target(documents(COCO), lambda folder, text: _examples(folder, text, "c.json")),
    "pope": Target(rows(POPE), _benchmark("pope", "coco_pope_random.json")),
    "pope, one list": Target(documents(POPE), _benchmark("pope", "coco_pope_random.json")),
    "chair": Target(documents(OBJECTS), _benchmark("chair", "instances_val2014.json", **BOTH)),
    "captions": Target(
        documents(json.loads(BOTH["annotations__captions_val2014.json"])),
        _benchmark("chair", "captions_val2014.json", **{"instances_val2014.json": json.dumps(OBJECTS)}),
    ),
    "amber": Target(
        documents(AMBER),
        _benchmark(
            "amber",
            "data/annotations.json",
            **{
                "data/relation.json": '{"dog": ["puppy"]}',
                "data/safe_words.txt": "light",
                "data/query/query_all.json": json.dumps([{"id": n, "image": "a.jpg", "query": "?"} for n in (1, 2)]),
            },
        ),
    ),
    "amber's words": Target(
        documents({"dog": ["puppy"], "cat": []}),
        _benchmark(
            "amber",
            "data/relation.json",
            **{
                "data/annotations.json": json.dumps(AMBER),
                "data/safe_words.txt": "light",
                "data/query/query_all.json": json.dumps([{"id": n, "image": "a.jpg", "query": "?"} for n in (1, 2)]),
            },
        ),
    ),
    "hallusion": Target(documents(HALLUSION), _benchmark("hallusion", "HallusionBench.json")),
    "mmhal": Target(documents(MMHAL), _benchmark("mmhal", "response_template.json")),
    "truthfulqa": Target(documents(TRUTHFUL), _benchmark("truthfulqa", "mc_task.json")),
    "nqswap": Target(rows(NQSWAP), _benchmark("nqswap", "nqswap.jsonl")),
    "replies": Target(rows([{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "no"}]), _answers),
    "result": Target(st.deferred(lambda: documents(result())), _report),
    "finished samples": Target(rows([{"id": "1", "reply": "yes"}, {"id": "2", "reply": [0.5]}]), _store),
}


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.matrix)])
@pytest.mark.parametrize("name", list(TARGETS))
def test_only_typed_errors(name: str, count: int, tmp_path: Path) -> None:
    for picture in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / picture)
    target = TARGETS[name]
    messages: list[str] = []

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(target.text)
    def probe(text: str) -> None:
        coco.vocabulary.cache_clear()
        try:
            target.read(tmp_path, text)
        except SightlineError as error:
            messages.append(str(error))

    probe()
    assert [text for text in messages if "\n" in text or len(text) > LONGEST] == []
    assert name in ("examples", "annotations") or len(messages) > count / 10
