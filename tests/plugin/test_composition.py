"""What composes with what: the declarations that `eval/composition.md` is written from hold on tiny models."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sightline
import torch
from sightline.common.errors import ConfigError
from sightline.plugin.branches.decoder import DECODERS
from sightline.plugin.composition import exclusion, order_matters
from sightline.plugin.config import Config
from sightline.plugin.core.edits import (
    Add,
    Bias,
    Edit,
    Gain,
    InputProbe,
    Mass,
    OutputProbe,
    Reweight,
    Shift,
    WeightProbe,
)
from sightline.plugin.core.layout import Step
from sightline.plugin.reading.strategies import Apart

from studies.pages.registry import composition_page
from tests.helpers import naive
from tests.helpers.engine import METHODS, assert_message, calibration, entry, fits, generate, prompts, shared

FAMILY = "llava_gqa"
EDITS: dict[str, tuple[type, ...]] = {
    "queries": (Shift,),
    "logits": (Bias,),
    "weights": (Mass, Reweight),
    "outputs": (Gain, Add),
}
PROBES = (InputProbe, WeightProbe, OutputProbe)
PAIRS = [pair for pair in itertools.combinations(METHODS, 2) if exclusion(METHODS[pair[0]], METHODS[pair[1]]) is None]
EXCLUDED = [pair for pair in itertools.combinations(METHODS, 2) if pair not in PAIRS]


def logits(*methods: str) -> torch.Tensor:
    """What the model computes under the methods, in this order, along the tokens of the plain model's answer."""
    case = shared(FAMILY)
    inputs = prompts(case, "padded")
    plain = generate(case.model, inputs).tokens
    steps = []
    with (
        torch.no_grad(),
        sightline.attach(case.model, {"methods": [entry(name) for name in methods]}, calibration=calibration(case)),
    ):
        out = case.model(**inputs, use_cache=True)
        mask = inputs["attention_mask"]
        for token in plain.T:
            steps.append(out.logits[:, -1])
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            out = case.model(
                input_ids=token[:, None], attention_mask=mask, past_key_values=out.past_key_values, use_cache=True
            )
    return torch.stack(steps, dim=1)


def test_the_page_is_what_the_declarations_say() -> None:
    page = Path(__file__).parents[2] / "eval" / "composition.md"
    assert page.read_text(encoding="utf-8") == composition_page()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_acts_where_it_says(name: str) -> None:
    case = shared(FAMILY)
    inputs = prompts(case, "padded")
    with sightline.attach(case.model, {"methods": [entry(name)]}, calibration=calibration(case)) as plug:
        generate(case.model, inputs)
        run = plug.reading
        assert run is not None
        length = run.layout.length
        steps = [Step(run.layout, 0, length), Step(run.layout, length, 1)]
        edits: list[Edit] = [
            e for step in steps for layer in run.prompt.sessions[0].edits(step).values() for e in layer
        ]
    acting = [edit for edit in edits if not isinstance(edit, PROBES)]
    assert acting
    assert all(isinstance(edit, EDITS[METHODS[name].acts]) for edit in acting)


def test_order_matters_where_it_is_said_to_and_nowhere_else() -> None:
    differ = set()
    for first, second in PAIRS:
        one, other = logits(first, second), logits(second, first)
        assert torch.isfinite(one).all()
        if float((one - other).abs().max()) > 1e-4:
            differ.add((first, second))
    said = {(first, second) for first, second in PAIRS if order_matters(METHODS[first], METHODS[second])}
    assert differ <= said
    # Not every pair meets on a tiny model; what is said must not be idle, though.
    assert len(differ) >= 0.6 * len(said), sorted(said - differ)


@pytest.mark.parametrize("pair", EXCLUDED, ids="-".join)
@pytest.mark.parametrize("turn", [1, -1])
def test_what_excludes_each_other_is_refused_with_the_reason(pair: tuple[str, str], turn: int) -> None:
    reason = exclusion(METHODS[pair[0]], METHODS[pair[1]])
    assert reason
    with pytest.raises(ConfigError) as caught:
        Config.load({"methods": list(pair[::turn])})
    assert_message(caught.value, *pair, reason, "leave one of them out")


def test_pai_and_paint_exclude_each_other() -> None:
    assert ("pai", "paint") in EXCLUDED
    assert fits("paint", FAMILY)


@pytest.mark.parametrize("setup", naive.SETUPS)
def test_a_decoder_says_whether_its_copy_reads_a_prompt_of_its_own(setup: str) -> None:
    case, chosen = shared(FAMILY), naive.SETUPS[setup]
    config = {"decoder": {chosen.name: chosen.settings}}
    facts = calibration(case, **naive.SECTIONS)
    with sightline.attach(case.model, config, calibration=facts, **chosen.options) as plug:
        generate(case.model, prompts(case, "padded"))
        assert isinstance(plug.reading, Apart) == DECODERS.find(chosen.name).own_prompt
