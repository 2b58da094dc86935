"""Reading a configuration: names, dicts and YAML files, and what is said about those that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sightline
import yaml
from sightline import Config, ConfigError
from sightline.plugin.core.registry import register

from tests.helpers.engine import METHODS, assert_message, calibration, entry, generate, prompts, shared


def write(folder: Path, text: str, name: str = "sightline.yaml") -> Path:
    """A YAML file with that text."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def settings(config: Config) -> dict[str, dict[str, Any]]:
    """The methods with the settings that differ from the defaults."""
    return {name: values.model_dump(exclude_defaults=True) for name, values in config.methods}


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_a_name_is_the_method_with_its_defaults(name: str) -> None:
    config = Config.load(name)
    assert config == Config.load({"methods": [name]}) == Config.load({"methods": [{name: {}}]})
    assert config == Config.load({"methods": [{name: None}]})
    assert settings(config) == {name: {}}
    assert isinstance(config.methods[0][1], METHODS[name].config)
    assert config.calibration is None


def test_a_config_is_taken_as_it_is() -> None:
    config = Config.load("vhr")
    assert Config.load(config) is config


def test_order_is_kept() -> None:
    names = ["gift", "vhr", "var"]
    assert [name for name, _ in Config.load({"methods": names}).methods] == names


@pytest.mark.parametrize("data", [{}, {"methods": []}, {"methods": None}, {"calibration": None}], ids=str)
def test_nothing_to_do(data: dict[str, Any]) -> None:
    assert Config.load(data).methods == ()


@pytest.mark.parametrize("as_text", [False, True], ids=["path", "text"])
def test_a_file(tmp_path: Path, as_text: bool) -> None:
    path = write(tmp_path, "methods:\n  - vhr: {alpha: 1.5, layers: [1, 2]}\n  - gift\n  - var:\n")
    config = Config.load(str(path) if as_text else path)
    assert settings(config) == {"vhr": {"alpha": 1.5, "layers": [1, 2]}, "gift": {}, "var": {}}


def test_a_file_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "methods: [vhr]")
    monkeypatch.chdir(tmp_path)
    assert settings(Config.load("sightline.yaml")) == {"vhr": {}}


def test_a_method_comes_before_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "methods: [gift]", name="vhr")
    monkeypatch.chdir(tmp_path)
    assert settings(Config.load("vhr")) == {"vhr": {}}


def test_names_and_values_beyond_ascii(tmp_path: Path) -> None:
    path = write(tmp_path, "# für später\ncalibration: größe.yaml\nmethods: [vhr]", name="ordner ü/datei.yaml")
    assert Config.load(path).calibration == str(path.parent / "größe.yaml")


# --- calibration in a config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["mine.yaml", "sub/mine.yaml", "../mine.yaml"])
def test_calibration_paths_are_relative_to_the_file(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "configs", f"calibration: {value}\nmethods: [vhr]")
    assert Config.load(path).calibration == str(tmp_path / "configs" / value)


def test_absolute_calibration_paths_and_auto_stay(tmp_path: Path) -> None:
    absolute = tmp_path / "elsewhere.yaml"
    assert Config.load(write(tmp_path, f"calibration: {absolute}")).calibration == str(absolute)
    assert Config.load(write(tmp_path, "calibration: auto")).calibration == "auto"


def test_calibration_paths_of_a_dict_are_relative_to_the_working_folder() -> None:
    assert Config.load({"calibration": "mine.yaml"}).calibration == "mine.yaml"
    assert Config.load({"calibration": Path("mine.yaml")}).calibration == "mine.yaml"
    assert Config.load({"calibration": {"model": "m"}}).calibration == {"model": "m"}


def test_a_file_brings_its_calibration_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another working folder; `calibration=` of the call takes precedence over the file's."""
    case = shared("llava")
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "tiny.yaml").write_text(yaml.safe_dump(calibration(case)), encoding="utf-8")
    path = write(tmp_path, yaml.safe_dump({"calibration": "facts/tiny.yaml", "methods": [entry("gift")]}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    inputs = prompts(case, "one")
    with sightline.attach(case.model, {"methods": [entry("gift")]}, calibration=calibration(case)):
        expected = generate(case.model, inputs)
    with sightline.attach(case.model, path):
        assert generate(case.model, inputs).same_bits(expected)
    gaze = {"saliency_layers": [0], "enhanced_layers": [1, 2, 3], "alpha": 9.0}
    with sightline.attach(case.model, path, calibration=calibration(case, gaze=gaze)):
        assert not generate(case.model, inputs).same_bits(expected)


# --- round trip ------------------------------------------------------------------------------------------------------

FULL: list[dict[str, Any]] = [
    {"methods": []},
    {"methods": [{"vhr": {}}]},
    {"calibration": "auto", "methods": [{"gift": {}}, {"vhr": {"alpha": 1.25, "distance": "euclidean"}}]},
    {"calibration": {"model": "m", "architecture": "llava", "layers": 2, "heads": 2}, "methods": [{"var": {"p": 0.1}}]},
]


@pytest.mark.parametrize("data", FULL, ids=["empty", "defaults", "auto", "dict"])
def test_dump_and_load(tmp_path: Path, data: dict[str, Any]) -> None:
    config = Config.load(data)
    assert config.dump() == data
    assert Config.load(config.dump()) == config
    assert Config.load(write(tmp_path, yaml.safe_dump(config.dump()))) == config


@pytest.mark.parametrize("name", list(METHODS))
def test_every_default_survives_yaml(name: str) -> None:
    """All settings written out, as `sightline methods` might print them, parse to the same configuration."""
    values = METHODS[name].config().model_dump()
    again = Config.load(yaml.safe_load(yaml.safe_dump({"methods": [{name: values}]})))
    assert again == Config.load(name)


def test_a_config_cannot_be_changed() -> None:
    config = Config.load("vhr")
    with pytest.raises(ValueError, match="frozen"):
        config.methods = ()
    with pytest.raises(ValueError, match="frozen"):
        config.methods[0][1].alpha = 3.0


# --- wrong files -----------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("must be a mapping", "methods")),
    "only a comment": ("# nothing\n", ("must be a mapping",)),
    "a list": ("- vhr\n- var\n", ("must be a mapping",)),
    "a word": ("vhr", ("must be a mapping",)),
    "no YAML": ("methods: [vhr", ("not valid YAML", "line")),
    "a tab": ("methods:\n\t- vhr", ("not valid YAML", "line 2")),
    "a python object": ("methods: !!python/object/apply:os.system ['true']", ("not valid YAML", "python/object")),
    "an unknown key": (
        "method: [vhr]",
        ("unknown key 'method'", "did you mean 'methods'", "calibration, when, methods"),
    ),
    "an unknown method": ("methods: [vhr, gfit]", ("methods[1]", "unknown method 'gfit'", "did you mean 'gift'")),
    "an unknown setting": ("methods:\n- var: {roh: 0.5}", ("methods[0].var.roh", "did you mean 'rho'", "min_visual")),
    "a wrong type": ("methods:\n- var: {rho: much}", ("methods[0].var.rho", "number", "much")),
    "a wrong choice": ("methods:\n- var: {form: new}", ("methods[0].var.form", "released", "paper", "new")),
    "a negative strength": (
        "methods:\n- vhr: {alpha: -2}",
        ("methods[0].vhr.alpha", "greater than or equal to 0", "-2"),
    ),
    "not a number": ("methods:\n- vhr: {alpha: .nan}", ("methods[0].vhr.alpha", "nan")),
    "infinity": ("methods:\n- vhr: {alpha: .inf}", ("methods[0].vhr.alpha", "inf")),
    "two complaints": ("methods:\n- var: {p: 2, rho: 3}", ("methods[0].var.p", "methods[0].var.rho")),
    "a method twice": ("methods:\n- vhr\n- vhr: {alpha: 3}", ("'vhr' more than once",)),
    "a key twice": ("methods: [vhr]\nmethods: [var]", ("methods", "twice")),
    "a setting twice": ("methods:\n- vhr: {alpha: 1, alpha: 3}", ("alpha", "twice")),
    "methods as a mapping": ("methods:\n  vhr: {alpha: 2}\n  var: {}", ("'methods' must be a list", "dict")),
    "calibration as a list": ("calibration: [a.yaml]\nmethods: []", ("'calibration'", "auto, a path or a mapping")),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_files(tmp_path: Path, name: str) -> None:
    """One line that names the file, the key and what it takes."""
    text, words = WRONG[name]
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    assert_message(caught.value, str(path), *words)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "sightline.yaml"
    path.write_bytes(b"\xff\xfe\x00methods")
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    assert_message(caught.value, str(path), "cannot read")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "folder.d")
    assert_message(caught.value, "folder.d", "does not exist")
    (tmp_path / "folder.d").mkdir()
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "folder.d")
    assert_message(caught.value, "folder.d")


# --- the registry ----------------------------------------------------------------------------------------------------


def test_methods_describe_themselves() -> None:
    assert {"gift", "var", "vhr"} <= METHODS.keys()
    assert list(METHODS) == sorted(METHODS)
    for name, method in sightline.methods().items():
        assert method.name == name
        for line in (method.summary, method.source, method.cost):
            assert line
            assert "\n" not in line
        for field, info in method.config.model_fields.items():
            assert info.description, f"{name}.{field} has no description"
        assert set(method.needs) <= sightline.Calibration.model_fields.keys()
        method.config()  # every method runs from its name alone


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="vhr"):
        register("vhr")(type("Other", (METHODS["var"],), {}))
    with pytest.raises(ValueError, match="lower case"):
        register("Upper")(type("Upper", (METHODS["var"],), {}))
    assert {name: one for name, one in sightline.methods().items() if one.kind == "method"} == METHODS
