"""Reports say what acted, and warnings what could do nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import sightline
import torch
from sightline import NoEffectWarning

from tests.helpers import naive
from tests.helpers.engine import METHODS, calibration, entry, generate, prompts, shared


def attach(config: Any, **options: Any) -> sightline.Plug:
    case = shared("llava")
    return sightline.attach(case.model, config, calibration=calibration(case, **naive.SECTIONS), **options)


def no_question(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(ids, dtype=torch.bool)


def first_row_asks(ids: torch.Tensor) -> torch.Tensor:
    asked = no_question(ids)
    asked[0, -4:-1] = True
    return asked


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_acts_says_so_and_warns_of_nothing(name: str) -> None:
    case = shared("llava")
    with attach({"methods": [entry(name)]}) as plug, warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        generate(case.model, prompts(case, "padded"))
        report = plug.report()[name]
        assert report["acted"] is True
        assert "idle" not in report


@pytest.mark.parametrize("config", [{"methods": [entry("gift")]}], ids=str)
def test_without_a_question_there_is_nothing_to_do(config: Any) -> None:
    case = shared("llava")
    with attach(config, query=no_question) as plug:
        with pytest.warns(
            NoEffectWarning, match="can do nothing for row 0 of the prompt: it has no question token"
        ) as seen:
            generate(case.model, prompts(case, "one"))
        assert len(seen) == 1
        (report,) = plug.report().values()
        assert report["acted"] is False
        assert list(report["idle"]) == [0]
        with warnings.catch_warnings():
            warnings.simplefilter("error", NoEffectWarning)
            generate(case.model, prompts(case, "one"))  # said once


def test_a_row_without_a_question_is_named() -> None:
    case = shared("llava")
    with attach({"methods": [entry("gift")]}, query=first_row_asks) as plug:
        with pytest.warns(NoEffectWarning, match="for row 1 of the prompt"):
            generate(case.model, prompts(case, "pair"))
        report = plug.report()["gift"]
        assert (report["acted"], list(report["idle"])) == (True, [1])


def test_a_row_without_an_image_is_named() -> None:
    case = shared("llava")
    with attach({"methods": [entry("pai")], "decoder": "vcd"}) as plug:
        with pytest.warns(NoEffectWarning, match="for row 1 of the prompt: it has no image"):
            generate(case.model, prompts(case, "mixed"))
        assert [list(one["idle"]) for one in plug.report().values()] == [[1], [1]]


def test_settings_that_change_nothing_are_said() -> None:
    case = shared("llava")
    ones = torch.ones(4, 8).tolist()
    with attach({"methods": [{"head_gain": {"gains": ones}}]}) as plug:
        with pytest.warns(NoEffectWarning, match="method 'head_gain' changed nothing of this prompt: it made no edit"):
            generate(case.model, prompts(case, "one"))
        assert plug.report()["head_gain"]["acted"] is False


def test_sinks_that_are_not_there_are_said() -> None:
    case = shared("llava")
    with attach({"methods": [{"var": {"sink_dims": [0], "tau": 1e6}}]}) as plug:
        with pytest.warns(NoEffectWarning, match="none of its image tokens is a sink"):
            generate(case.model, prompts(case, "one"))
        assert plug.report()["var"]["acted"] is False
