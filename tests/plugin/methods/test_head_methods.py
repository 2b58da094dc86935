"""FAITH and head gain against naive float64 references, with the machinery of `test_methods_more.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sightline
import torch
from sightline import CalibrationError, ConfigError, SightlineError
from sightline.plugin.branches.heads import random_heads
from sightline.plugin.core.edits import Gain, Rows

from tests.helpers import tiny
from tests.helpers.engine import assert_message, calibration, generate, prompts, shared
from tests.helpers.rules import (
    BOUND,
    EVERY,
    FAMILIES,
    RANDOM_GAINS,
    SOME,
    Array,
    compare,
    encoded,
    every_family,
    gain_table,
    scaled,
    tokenizer,
)

TABLE = np.random.default_rng(5).random((tiny.LAYERS, tiny.HEADS))


class Speller:
    """A tokenizer for which every seventh token has a question mark in it; no chat template."""

    chat_template = None

    def decode(self, ids: list[int]) -> str:
        return "".join("so?" if token % 7 == 2 else "so" for token in ids)


# --- FAITH, arXiv 2402.19103 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), [*((family, "padded") for family in FAMILIES), ("llava_gqa", "images")])
@pytest.mark.parametrize("rows", ["question_mark", "span", "all"])
def test_faith(family: str, kind: str, rows: str) -> None:
    settings = {"rows": rows, "head_list": SOME}
    processor = Speller() if rows == "question_mark" else None
    if rows == "span":  # `emphasised` tells, no processor is needed
        settings["span"] = "marked"
    compare(family, {"faith": settings}, scaled(gain_table(SOME, 0.0), rows), kind=kind, processor=processor)


def test_faith_takes_the_calibrations_best_heads() -> None:
    known = {"premise_heads": {"heads": [list(head) for head in SOME]}}
    rule = scaled(gain_table(SOME[:3], 0.0))
    compare("llava_gqa", {"faith": {"rows": "all", "heads": 3}}, rule, **known)


def test_faiths_control_is_as_many_other_heads() -> None:
    case = shared("llava_gqa")
    with sightline.attach(
        case.model, {"methods": [{"faith": {"rows": "all", "head_list": SOME, "random": 3}}]}
    ) as plug:
        generate(case.model, prompts(case, "one"))
        found = [tuple(head) for head in plug.report()["faith"]["heads"]]
    assert len(found) == len(SOME)
    assert not set(found) & set(SOME)
    assert found == list(random_heads(4, SOME, 3, plug._runner.methods["faith"].facts, "x"))
    compare("llava_gqa", {"faith": {"rows": "all", "head_list": SOME, "random": 3}}, scaled(gain_table(found, 0.0)))


def test_faiths_default_is_the_release() -> None:
    config = sightline.methods()["faith"].config()
    assert (config.rows, config.heads, config.random) == ("question_mark", 5, None)


QUESTIONS = ["Is it late? Then name one city? It is late.", "Say no. Name one city. It is late."]


def faith_report(texts: list[str]) -> Any:
    case = shared("llama")
    config = {"methods": [{"faith": {"head_list": SOME}}]}
    with sightline.attach(case.model, config, processor=tokenizer()) as plug:
        together = generate(case.model, encoded(texts))
        return together, plug.report()["faith"]["rows"], plug.reading.prompt.sessions[0].rows


def test_the_token_before_the_last_question_mark_is_found_in_text() -> None:
    """A row without one stays plain."""
    together, counts, rows = faith_report(QUESTIONS)
    assert counts == [1, 0]
    inputs = encoded(QUESTIONS)
    place = int(rows[0].nonzero())
    text = tokenizer().decode(inputs["input_ids"][0, : place + 1], skip_special_tokens=True)
    assert "Is it late? Then name one city".startswith(text.strip())
    assert tokenizer().decode(inputs["input_ids"][0, place + 1]).startswith("?") or text.strip().endswith("cit")
    case = shared("llama")
    bare = generate(case.model, encoded(QUESTIONS[1:]))
    torch.testing.assert_close(together.logits[1:], bare.logits, atol=BOUND, rtol=BOUND)


# --- head gain -------------------------------------------------------------------------------------------------------

GATES = {"head_gates": {"facilitating": TABLE.tolist(), "irrelevant": TABLE.tolist(), "interfering": TABLE.tolist()}}
BEST = sorted(EVERY, key=lambda pair: -TABLE[pair])[:3]


@every_family
@pytest.mark.parametrize(
    ("settings", "known", "gains"),
    [
        ({}, GATES, 1 - TABLE),
        ({"head_list": SOME}, {}, gain_table(SOME, -1.0)),
        ({"head_list": SOME, "gain": 5.0}, GATES, gain_table(SOME, 5.0)),
        ({"section": "word_heads", "heads": 3}, {"word_heads": {"scores": TABLE.tolist()}}, gain_table(BEST, -1.0)),
        ({"gains": RANDOM_GAINS.tolist()}, GATES, RANDOM_GAINS),
    ],
    ids=["gates", "suppressed", "enhanced", "words", "a table"],
)
def test_head_gain(family: str, settings: dict[str, Any], known: dict[str, Any], gains: Array) -> None:
    compare(family, {"head_gain": settings}, scaled(gains), **known)


def test_a_gain_of_one_is_the_plain_model() -> None:
    case = shared("llava_gqa")
    bare = generate(case.model, prompts(case, "padded"))
    ones = [[1.0] * tiny.HEADS] * tiny.LAYERS
    with sightline.attach(case.model, {"methods": [{"head_gain": {"gains": ones}}]}):
        assert generate(case.model, prompts(case, "padded")).same_bits(bare)


# --- the edit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_output", [False, True])
def test_a_gain_on_some_rows_leaves_the_others_bits(of_output: bool) -> None:
    output = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0))
    factor = torch.tensor([[0.0, 2.0, 1.0], [-1.0, 3.0, 0.5]])
    active = torch.tensor([[True, False, True], [False, True, True]])
    got = Gain((lambda seen: factor) if of_output else factor, Rows(2, 5, active))(output)
    for b, i in np.ndindex(2, 7):
        if 2 <= i < 5 and active[b, i - 2]:
            assert torch.equal(got[b, i], output[b, i] * factor[b][:, None])
        else:
            assert torch.equal(got[b, i], output[b, i])


# --- what does not fit -----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[SightlineError], tuple[str, ...]]] = {
    "no premise heads": ({"faith": {"rows": "all"}}, {}, CalibrationError, ("faith", "premise_heads")),
    "faith's empty head list": ({"faith": {"head_list": []}}, {}, ConfigError, ("faith.head_list",)),
    "a false-premise head too many": (
        {"faith": {"rows": "all", "head_list": [[0, 8]]}},
        {},
        CalibrationError,
        ("faith.head_list", "0-8", "4 layers of 8 heads"),
    ),
    "more heads than were found": (
        {"faith": {"rows": "all", "heads": 3}},
        {"premise_heads": {"heads": [[0, 1], [1, 2]]}},
        CalibrationError,
        ("faith.heads", "3 heads", "has 2"),
    ),
    "no heads found": (
        {"faith": {"rows": "all"}},
        {"premise_heads": {"heads": []}},
        CalibrationError,
        ("premise_heads.heads",),
    ),
    "a calibrated head too many": (
        {"faith": {"rows": "all"}},
        {"premise_heads": {"heads": [[4, 0]]}},
        CalibrationError,
        ("premise_heads", "4-0"),
    ),
    "a question mark without a processor": (
        {"faith": {"head_list": [[0, 1]]}},
        {},
        ConfigError,
        ("faith", "processor=", "rows"),
    ),
    "a span without a processor": (
        {"faith": {"rows": "span", "head_list": [[0, 1]]}},
        {},
        ConfigError,
        ("faith", "processor=", "emphasis="),
    ),
    "more random heads than are left": (
        {"faith": {"rows": "all", "head_list": EVERY[:17], "random": 0}},
        {},
        CalibrationError,
        ("faith.random", "17"),
    ),
    "no gates": ({"head_gain": {}}, {}, CalibrationError, ("head_gain", "head_gates")),
    "no word heads": ({"head_gain": {"section": "word_heads"}}, {}, CalibrationError, ("head_gain", "word_heads")),
    "head_gain's empty head list": ({"head_gain": {"head_list": []}}, {}, ConfigError, ("head_gain.head_list",)),
    "a gained head too many": (
        {"head_gain": {"head_list": [[4, 0]]}},
        {},
        CalibrationError,
        ("head_gain.head_list", "4-0"),
    ),
    "factors of other heads": (
        {"head_gain": {"gains": [[1.0] * 7] * 4}},
        {},
        CalibrationError,
        ("head_gain.gains", "4 lists of 8"),
    ),
    "gates of other heads": (
        {"head_gain": {}},
        {"head_gates": {key: [[1.0] * 8] * 3 for key in ("facilitating", "irrelevant", "interfering")}},
        CalibrationError,
        ("head_gates.facilitating", "4 lists of 8"),
    ),
    "more word heads than there are": (
        {"head_gain": {"section": "word_heads", "heads": 33}},
        {"word_heads": {"scores": [[1.0] * 8] * 4}},
        CalibrationError,
        ("head_gain.heads", "33", "32"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit(name: str) -> None:
    settings, known, kind, words = BAD[name]
    case = shared("llava")
    with pytest.raises(kind) as caught:
        sightline.attach(case.model, {"methods": [settings]}, calibration={**calibration(case), **known})
    assert_message(caught.value, *words)
