"""Names are found lazily, once, and other distributions may bring their own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import sightline
from sightline import ConfigError
from sightline.plugin.core.registry import METHODS

from tests.helpers.engine import assert_message, generate, prompts, shared

FOREIGN = """
import torch
from sightline import Bias, Method, Session, Settings, register


@register("brighter")
class Brighter(Method):
    summary, source, cost, acts, config = "an example", "example", "none", "logits", Settings

    def start(self, layout):
        return Brightened(layout)


class Brightened(Session):
    def __init__(self, layout):
        self.bias = Bias(torch.where(layout.image, 2.0, 0.0)[:, None])

    def edits(self, step):
        return {0: [self.bias]}
"""


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place for a module of another distribution, which the registry knows under two names."""
    monkeypatch.syspath_prepend(str(tmp_path))
    points = {name: EntryPoint(name, "elsewhere", "sightline.methods") for name in ("brighter", "darker")}
    monkeypatch.setitem(METHODS.__dict__, "_foreign", points)
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    return tmp_path / "elsewhere.py"


def test_asking_for_one_name_imports_one_method() -> None:
    code = (
        "import sys, sightline; sightline.Config.load('vhr');"
        "print(sorted(m for m in sys.modules if m.startswith('sightline.plugin.methods.')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "methods.vhr'" in said
    assert "methods.gift'" not in said


def test_another_distributions_method_is_attached_by_name(foreign: Path) -> None:
    foreign.write_text(FOREIGN)
    case = shared("llava_gqa")
    plain = generate(case.model, prompts(case, "one"))
    with sightline.attach(case.model, "brighter"):
        assert not generate(case.model, prompts(case, "one")).same_bits(plain)
    with pytest.warns(UserWarning, match="darker"):
        assert {"brighter", "vhr"} <= sightline.methods().keys()


@pytest.mark.parametrize(
    ("source", "words"),
    [("import nowhere_to_be_found", ["ModuleNotFoundError", "uninstall"]), ("x = 1", ["registers none", "@register"])],
)
def test_a_broken_distribution_is_named(foreign: Path, source: str, words: list[str]) -> None:
    foreign.write_text(source)
    with pytest.raises(ConfigError) as caught:
        METHODS.find("darker")
    assert_message(caught.value, "darker", "elsewhere", *words)
    sightline.Config.load("vhr")  # who does not ask for it is not bothered
