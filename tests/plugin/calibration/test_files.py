"""Calibration files: reading, checking, writing, and finding the one that is shipped for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sightline
import yaml
from sightline import Calibration, CalibrationError
from sightline.plugin.calibration.files import FOLDER, find_shipped, json_schema, shipped

from tests.helpers.engine import assert_message, calibration, entry, generate, prompts, shared

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "calibration").glob("*.yaml"))

SMALL: dict[str, Any] = {"model": "somebody/tiny", "architecture": "llava", "layers": 2, "heads": 3}
TABLE = [[0.5, 0.25, 1.0], [0.0, 0.125, 2.0]]
FULL: dict[str, Any] = {
    "schema": 2,
    **SMALL,
    "aliases": ["somebody-else/tiny-v2"],
    "source": {
        "kind": "measured",
        "command": "sightline calibrate",
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-31",
        "samples": 20,
        "seconds": 3.5,
    },
    "sink": {
        "dims": [7, 3],
        "tau": 20.0,
        "source": {"kind": "published", "reference": "somewhere"},
        "contrast": 12.5,
        "first": [1],
        "tokens": {"visual": 0.5, "text": 1.0},
        "secondary": {"visual": 0.0, "text": 0.25},
        "cosine": 0.9,
    },
    "gaze": {"saliency_layers": [0], "enhanced_layers": [1], "alpha": 5.0},
    "visual_heads": {"layers": [1], "scores": TABLE, "chosen": TABLE},
    "image_heads": {"scores": TABLE, "centric": TABLE, "ratio": TABLE, "rho": 0.5},
    "ocr_heads": {"scores": TABLE, "hits": TABLE},
    "concept_heads": {"scores": TABLE},
    "retrieval_heads": {"scores": TABLE},
    "inducing_heads": {"scores": TABLE},
    "conflict_heads": {"enhance": [(0, 2), (1, 1)], "suppress": [(0, 0)]},
}


@pytest.fixture(autouse=True)
def _no_own_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path_factory.getbasetemp() / "no-files"))


class Named:
    """Something with the name of a model."""

    def __init__(self, name: str):
        self.name_or_path = name


def write(folder: Path, text: str) -> Path:
    """A file with that text."""
    path = folder / "calibration.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, FULL], ids=["small", "full"])
def test_dict_file_and_object_are_the_same(tmp_path: Path, data: dict[str, Any]) -> None:
    from_dict = Calibration.load(data)
    path = write(tmp_path, yaml.safe_dump(data))
    assert Calibration.load(path) == Calibration.load(str(path)) == Calibration.load(from_dict) == from_dict
    assert Calibration.load(from_dict) is from_dict


@pytest.mark.parametrize("data", [SMALL, FULL], ids=["small", "full"])
def test_dump_and_load(tmp_path: Path, data: dict[str, Any]) -> None:
    first = Calibration.load(data)
    text = first.dump()
    assert Calibration.load(write(tmp_path, text)) == first
    assert Calibration.load(yaml.safe_load(text)).dump() == text
    assert list(yaml.safe_load(text))[:4] == ["schema", "model", "aliases", "architecture"]
    assert "null" not in text


def test_values_arrive() -> None:
    full = Calibration.load(FULL)
    assert full.sink is not None
    assert (full.sink.dims, full.sink.tau) == ([7, 3], 20.0)
    assert full.gaze is not None
    assert full.gaze.enhanced_layers == [1]
    assert full.visual_heads is not None
    assert full.visual_heads.scores == TABLE
    assert full.source is not None
    assert full.source.samples == 20
    small = Calibration.load(SMALL)
    assert small.sink is small.gaze is small.visual_heads is small.source is None


def test_a_calibration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Calibration.load(SMALL).layers = 3


def test_a_tiny_calibration_survives_a_file(tmp_path: Path) -> None:
    """Dump, load from a path, attach: the same answer as from the dict."""
    case = shared("llava")
    data = calibration(case)
    path = write(tmp_path, Calibration.load(data).dump())
    answers = []
    for source in (data, path, str(path), Calibration.load(path)):
        with sightline.attach(case.model, {"methods": [entry("var"), entry("gift")]}, calibration=source):
            answers.append(generate(case.model, prompts(case, "one")))
    assert all(answer.same_bits(answers[0]) for answer in answers)


# --- wrong files -----------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("must be a mapping",)),
    "a list": ("[1, 2]", ("must be a mapping",)),
    "no YAML": ("model: [", ("not valid YAML", "line")),
    "a python object": ("model: !!python/name:os.system", ("not valid YAML", "python/name")),
    "nothing but a model": ("model: m", ("'architecture'", "'layers'", "'heads'")),
}
CHANGED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an unknown key": ({"sinc": {}}, ("unknown key 'sinc'", "did you mean 'sink'", "visual_heads")),
    "an unknown key in a section": ({"sink": {"dims": [1], "tau": 1, "tao": 2}}, ("sink.tao", "did you mean 'tau'")),
    "an unknown key in the source": ({"source": {"kind": "measured", "cmd": 2}}, ("source.cmd", "command")),
    "an unknown kind of source": ({"source": {"kind": "guessed"}}, ("source.kind", "measured", "published", "guessed")),
    "a later schema": ({"schema": 3}, ("schema 3", "2", "upgrade")),
    "an unknown schema": ({"schema": 0}, ("schema", "0")),
    "a schema that is no number": ({"schema": "new"}, ("schema", "new")),
    "no layers": ({"layers": 0}, ("layers", "0")),
    "a word for a number": ({"heads": "many"}, ("heads", "many")),
    "a negative threshold": ({"sink": {"dims": [1], "tau": -1}}, ("sink.tau", "-1")),
    "a threshold that is no number": ({"sink": {"dims": [1], "tau": float("nan")}}, ("sink.tau", "nan")),
    "a score that is no number": (
        {"visual_heads": {"scores": [[1.0, 2.0, float("nan")], [1.0, 2.0, 3.0]]}},
        ("visual_heads.scores", "nan"),
    ),
    "a negative dimension": ({"sink": {"dims": [-1], "tau": 1}}, ("sink.dims", "-1")),
    "no dimension": ({"sink": {"dims": [], "tau": 1}}, ("sink.dims",)),
    "no strength": ({"gaze": {"saliency_layers": [0], "enhanced_layers": [1]}}, ("gaze.alpha", "required")),
    "a layer too many": (
        {"gaze": {"saliency_layers": [0], "enhanced_layers": [2], "alpha": 1}},
        ("gaze.enhanced_layers", "layer 2", "0..1"),
    ),
    "a negative layer": ({"visual_heads": {"layers": [-1]}}, ("visual_heads.layers", "-1")),
    "too few rows of scores": ({"visual_heads": {"scores": [[1, 2, 3]]}}, ("visual_heads.scores", "2 lists of 3")),
    "a short row of scores": (
        {"visual_heads": {"scores": [[1, 2, 3], [1, 2]]}},
        ("visual_heads.scores", "2 lists of 3"),
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_files(tmp_path: Path, name: str) -> None:
    text, words = WRONG[name]
    path = write(tmp_path, text)
    with pytest.raises(CalibrationError) as caught:
        Calibration.load(path)
    assert_message(caught.value, str(path), *words)


@pytest.mark.parametrize("name", list(CHANGED))
def test_wrong_values(tmp_path: Path, name: str) -> None:
    changes, words = CHANGED[name]
    path = write(tmp_path, yaml.safe_dump({**SMALL, **changes}))
    with pytest.raises(CalibrationError) as caught:
        Calibration.load(path)
    assert_message(caught.value, str(path), *words)
    with pytest.raises(CalibrationError) as caught:
        Calibration.load({**SMALL, **changes})
    assert_message(caught.value, "calibration dict", *words)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(CalibrationError) as caught:
            Calibration.load(path)
        assert_message(caught.value, "cannot read", str(path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="cannot read"):
        Calibration.load(binary)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (("qwen2_vl", 2, 3, 8), ("architecture llava", "qwen2_vl")),
        (("llava", 4, 3, 8), ("layer count 2", "4")),
        (("llava", 2, 4, 8), ("head count 3", "4")),
        (("llava", 2, 3, 7), ("sink dimension 7", "hidden size", "7")),
    ],
    ids=["architecture", "layers", "heads", "hidden"],
)
def test_check_refuses_another_model(model: tuple[str, int, int, int], words: tuple[str, ...]) -> None:
    full = Calibration.load(FULL)
    full.check("llava", 2, 3, 8)
    with pytest.raises(CalibrationError) as caught:
        full.check(*model)
    assert_message(caught.value, "somebody/tiny", "made for it", *words)


# --- shipped files ---------------------------------------------------------------------------------------------------

#: name: architecture, layers, query heads and hidden size, from the models' own configs
PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": ("llava", 32, 32, 4096),
    "llava-hf/llava-1.5-13b-hf": ("llava", 40, 40, 5120),
    "llava-hf/llava-v1.6-vicuna-7b-hf": ("llava_next", 32, 32, 4096),
    "Qwen/Qwen2-VL-7B-Instruct": ("qwen2_vl", 28, 28, 3584),
    "OpenGVLab/InternVL2-8B": ("internvl", 32, 32, 4096),
}


def test_every_file_in_the_folder_is_shipped() -> None:
    names = {Calibration.load(path).model for path in FILES}
    assert names == shipped().keys()
    assert len(names) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files(path: Path) -> None:
    """Valid, with a source for every value, and the same after a round trip."""
    found = Calibration.load(path)
    assert found.source is not None
    assert found.facts(), "a file without any fact"
    assert found.source.command or found.source.reference
    for fact in found.facts().values():
        kind = (fact.source and fact.source.kind) or found.source.kind
        if kind == "published":
            assert fact.source is not None
            assert fact.source.reference
        else:
            assert found.source.command or (fact.source and fact.source.command)
            assert found.source.samples or (fact.source and fact.source.samples)
    assert Calibration.load(yaml.safe_load(found.dump())) == found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_in_shipped_files_are_unique(path: Path) -> None:
    found = Calibration.load(path)
    for name in (found.model, *found.aliases):
        assert find_shipped(Named(name)) == found


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_models_are_shipped_with_their_shapes(name: str) -> None:
    found = shipped()[name]
    architecture, layers, heads, hidden = PUBLISHED[name]
    assert (found.architecture, found.layers, found.heads) == (architecture, layers, heads)
    found.check(architecture, layers, heads, hidden)


# --- schema versions -------------------------------------------------------------------------------------------------


def test_schema_1_is_migrated(tmp_path: Path) -> None:
    """Its sections had a line of text for a source, published or measured as the file."""
    sink = {"dims": [1], "tau": 2.0, "source": "a table"}
    for kind in ("published", "measured"):
        old = {
            "schema": 1,
            **SMALL,
            "source": {"kind": kind, "command": "x"},
            "sink": sink,
            "visual_heads": {"scores": TABLE},
        }
        for found in (Calibration.load(old), Calibration.load(write(tmp_path, yaml.safe_dump(old)))):
            assert found.schema_version == 2
            assert found.sink is not None
            assert found.sink.source is not None
            assert (found.sink.source.kind, found.sink.source.reference) == (kind, "a table")
            assert found.visual_heads is not None
            assert found.visual_heads.source is None
            assert yaml.safe_load(found.dump())["schema"] == 2


def test_the_exported_schema_is_that_of_the_files() -> None:
    """Every key of a full file is in it, unknown keys are not allowed, and the shipped copy is up to date."""
    schema = json_schema()
    assert json.loads((ROOT / "calibration" / "schema.json").read_text(encoding="utf-8")) == schema

    def allowed(data: Any, node: dict[str, Any]) -> None:
        options = [node, *node.get("anyOf", [])]
        node = next((schema["$defs"][o["$ref"].split("/")[-1]] for o in options if "$ref" in o), node)
        if isinstance(data, dict) and "properties" in node:
            assert node["additionalProperties"] is False
            assert data.keys() <= node["properties"].keys()
            assert set(node.get("required", [])) <= data.keys()
            for key, value in data.items():
                allowed(value, node["properties"][key])

    allowed(FULL, schema)


# --- auto ------------------------------------------------------------------------------------------------------------

FOUND = {
    "hub name": "llava-hf/llava-1.5-7b-hf",
    "another owner": "mirror/llava-1.5-7b-hf",
    "bare name": "llava-1.5-7b-hf",
    "other case": "LLaVA-HF/LLaVA-1.5-7B-HF",
    "local folder": "models/hub/llava-1.5-7b-hf",
    "trailing slash": "models/llava-1.5-7b-hf/",
    "windows folder": "D:\\models\\llava-1.5-7b-hf",
    "alias": "liuhaotian/llava-v1.5-7b",
    "local folder of an alias": "models/liuhaotian/llava-v1.5-7b",
}
NOT_FOUND = ["", "llava-1.5-7b", "llava-hf", "my-llava-1.5-7b-hf", "llava-1.5-7b-hf-lora", "llava-1.5-7b-hf/adapter"]


@pytest.mark.parametrize("how", list(FOUND))
def test_auto_finds_a_model(how: str) -> None:
    for find in (find_shipped, lambda model: Calibration.load("auto", model)):
        found = find(Named(FOUND[how]))
        assert found is not None
        assert found.model == "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize("name", NOT_FOUND)
def test_auto_does_not_guess(name: str) -> None:
    assert find_shipped(Named(name)) is None
    with pytest.raises(CalibrationError) as caught:
        Calibration.load("auto", Named(name))
    assert_message(caught.value, "no calibration file is shipped", name or "Named", "llava-hf/llava-1.5-7b-hf")
    assert_message(caught.value, "calibration=PATH")


def test_attach_uses_a_shipped_file_and_checks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that bears a shipped name and has another shape is refused, not edited with foreign values."""
    case = shared("llava_gqa")
    monkeypatch.setattr(case.model, "name_or_path", "models/llava-1.5-7b-hf")
    for chosen in (None, "auto"):
        with pytest.raises(CalibrationError) as caught:
            sightline.attach(case.model, "vhr", calibration=chosen)
        assert_message(caught.value, "llava-hf/llava-1.5-7b-hf", "layer count 32", "4")
