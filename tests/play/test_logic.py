"""What `sightline play` computes, without Gradio: answers, marks, heat, YAML; and the page's words, escaped."""

from __future__ import annotations

import builtins
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sightline
from PIL import Image
from sightline.cli import main as cli
from sightline.common.errors import ConfigError, SightlineError
from sightline.models.loading import load_model
from sightline.models.prompting import ask
from sightline.models.samples import Sample
from sightline.play import page, settings
from sightline.play.answers import Answer, Player, Word
from sightline.play.cards import card, failure, framed
from sightline.plugin.config import Config, methods
from sightline.plugin.core.registry import METHODS, PREPROCESSORS

HOSTILE = "<script>alert(1)</script> & \"'{{x}}"


@pytest.fixture(scope="module")
def player() -> Player:
    return Player(*load_model("embedded"), "embedded")


# --- settings and YAML -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in methods() if name not in PREPROCESSORS])
def test_every_control_holds_its_value_and_its_ends_are_possible(name: str) -> None:
    text = settings.choose("", [name])
    for control in settings.controls(settings.read(text) or Config()):
        assert control.description
        ends = {"slider": (control.low, control.high), "choice": control.choices, "switch": (True, False)}[control.kind]
        if control.kind == "slider":
            assert control.low <= control.value <= control.high
        for value in ends:
            changed = settings.read(settings.change(text, value, method=name, name=control.name))
            assert changed is not None
            ((_, new),) = [*changed.methods, *([changed.decoder] if changed.decoder else [])]
            assert getattr(new, control.name) == (pytest.approx(value) if control.kind == "slider" else value)


def test_choosing_keeps_what_was_set_and_changing_keeps_the_rest() -> None:
    text = settings.change(settings.choose("", ["vhr"]), 3, method="vhr", name="alpha")
    text = settings.change(settings.choose(text, ["vhr", "vcd"]), 400.0, method="vcd", name="noise_step")
    assert Config.load(settings.read(text) or {}).dump() == {
        "methods": [{"vhr": {"alpha": 3}}],
        "decoder": {"vcd": {"noise_step": 400}},
    }
    assert "alpha" in settings.choose(text, ["vhr"])
    assert settings.choose(text, []) == ""
    assert settings.read("") is None
    assert settings.write(settings.read(text)) == text


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: settings.choose("", ["vcd", "icd"]), "one decoder at a time"),
        (lambda: settings.change("", 1, method="vhr", name="alpha"), "choose it first"),
        (lambda: settings.change("methods: [vhr]", -1, method="vhr", name="alpha"), "alpha"),
        (lambda: settings.read("methods: [vrh]"), "did you mean 'vhr'"),
        (lambda: settings.read("- vhr"), "must be a mapping"),
        (lambda: settings.read("a: b: c"), "YAML"),
    ],
)
def test_what_cannot_be_is_told(act: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        act()


# --- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_grows_to_what_generate_says_and_its_words_have_heat(player: Player) -> None:
    picture = player.scenes[2]
    for config in (None, page.FIRST):
        grown = list(player.answer(player.question, picture, config, new_tokens=40))
        texts = [one.text.strip() for one in grown]
        assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
        assert len(set(texts)) > 5
        last = grown[-1]
        sample = Sample("", player.question, picture)
        with sightline.attach(player.model, config or Config(), processor=player.processor):
            assert last.text.strip() == ask(player.model, player.processor, [sample], 40)[0]
        assert [last.text[word.start : word.end] for word in last.words][:2] == ["image", "shows"]
        assert all(word.heat is not None and word.heat.size == picture.size for word in last.words)
        assert any(word.weak for word in last.words)
        assert "weak" in last.rule
        assert last.seconds
    assert not hasattr(player.model, "_sightline_host") or not player.model._sightline_host.plugs


def test_heat_lies_where_the_model_looked(player: Player) -> None:
    """Drawn over the picture in grey: nothing is coloured but the heat, and each word has its own."""
    last = list(player.answer(player.question, player.scenes[2], None, new_tokens=40))[-1]
    heats = [word.heat for word in last.words if word.heat is not None]
    assert len({heat.tobytes() for heat in heats}) > 1
    for heat in heats:
        red, _, blue = (band.tobytes() for band in heat.convert("RGB").split())
        assert max(red[k] - blue[k] for k in range(len(red))) > 60


def test_who_stops_listening_leaves_the_model_free(player: Player) -> None:
    left: Iterator[Answer] = player.answer(player.question, player.scenes[0], page.FIRST)
    next(left)
    left.close()
    assert list(player.answer(player.question, player.scenes[0], None, new_tokens=8))[-1].seconds


def test_a_mistake_is_typed_and_leaves_the_model_free(player: Player) -> None:
    for question, config, message in (
        ("", None, "no question"),
        (player.question, page.FIRST, "works on a picture"),
        (player.question, Config.load("ocr_sink" if "ocr_sink" in METHODS else "vhr"), "picture|calibration"),
    ):
        with pytest.raises(SightlineError, match=message):
            list(player.answer(question, None, config))
    assert list(player.answer("Is there a dog?", None, None, new_tokens=4))[-1].words == ()


def test_usable_methods_run(player: Player) -> None:
    assert {"vhr", "vcd"} <= set(player.usable)
    assert not {"decore"} & set(player.usable)  # it lacks its section of the calibration


# --- the page's words --------------------------------------------------------------------------------------------------


def test_cards_escape_mark_and_hide_the_heat() -> None:
    picture = Image.new("RGB", (9, 6), "red")
    text = f"A dog {HOSTILE}"
    shown = card(Answer(text, (Word(2, 5, True, HOSTILE, picture),), rule=HOSTILE, note=HOSTILE, seconds=1.5), picture)
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 4
    assert re.search(r'<span class="word weak" tabindex="0" title="[^"]*">dog<img class="heat"', shown)
    assert "http" not in shown
    assert "1.5 s" in shown
    assert "<img" not in card(Answer(text), None)
    assert "<script" not in failure(SightlineError(HOSTILE)) + framed(HOSTILE)
    assert 'sandbox="allow-scripts"' in framed("")


def test_columns_fill_one_after_the_other(player: Player) -> None:
    texts = ("methods: [vhr]", "")
    states = list(page.asked(player, player.scenes[2], player.question, 12, *texts))
    assert [bool(one) for one in states[0]] == [True, False, False]
    assert [bool(one) for one in states[-1]] == [True, True, False]
    assert "word" in states[-1][1]
    broken = list(page.asked(player, None, player.question, 4, "methods: [vrh]", "methods: [vhr]"))[-1]
    assert "error" in broken[1]
    assert "did you mean" in broken[1]
    assert "works on a picture" in broken[2]


def test_ten_scenes_are_a_report(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.play.answers.TRIED", 3)
    found = page.measured(player, ("methods: [{vhr: {layers: [6, 7]}}]", ""))
    assert "CHAIR_I at equal recall" in found
    assert "n = 3" in found
    assert "no configuration" in page.measured(player, ("", ""))
    stranger = Player(player.model, player.processor, "mine")
    assert "sightline eval" in page.measured(stranger, ("methods: [vhr]", ""))


def test_a_missing_gradio_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "gradio":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["play"]) == 2
    assert capsys.readouterr().err == "error: the page needs Gradio: pip install 'sightline-lvlm[play]'\n"
