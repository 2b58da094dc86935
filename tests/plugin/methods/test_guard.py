"""The guard of boosts that can run away: boosted within its limit, plain behind it."""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch
from sightline.common.errors import ConfigError
from sightline.plugin.core.edits import Keys, own_key
from sightline.plugin.methods.guard import GuardSettings, ReplyGuard

from tests.helpers.engine import assert_message, calibration, entry, generate, prompts, shared

BOOSTS = ["pai", "paint"]
TOKENS = 6
FAMILY = "llava_gqa"


def steps(first: dict[str, Any], behind: dict[str, Any] | None, switch: int) -> torch.Tensor:
    """Logits [B, steps, V] along the plain answer's tokens: `first` attached up to pass `switch`, then `behind`, if any."""
    case = shared(FAMILY)
    inputs = prompts(case, "padded")
    tokens = generate(case.model, inputs, max_new_tokens=TOKENS).tokens
    mask, found = inputs["attention_mask"], []
    with torch.no_grad(), sightline.attach(case.model, first, calibration=calibration(case)):
        out = case.model(**inputs, use_cache=True)
        for number, token in enumerate(tokens.T, 1):
            found.append(out.logits[:, -1])
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            step = {"input_ids": token[:, None], "attention_mask": mask, "past_key_values": out.past_key_values}
            if behind is None or number < switch:
                out = case.model(**step, use_cache=True)
            else:
                with sightline.attach(case.model, behind):
                    out = case.model(**step, use_cache=True)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("name", BOOSTS)
def test_behind_the_limit_the_model_goes_on_plain(name: str) -> None:
    boosted = {"methods": [entry(name, guard=None)]}
    guarded = {"methods": [entry(name, guard=1.5, plain_tokens=2.0)]}  # the first three tokens
    ours = steps(guarded, None, 0)
    torch.testing.assert_close(ours, steps(boosted, {}, 3), atol=1e-5, rtol=1e-5)
    free = steps(boosted, None, 0)
    torch.testing.assert_close(ours[:, :3], free[:, :3])
    assert (ours - free)[:, 3:].abs().amax((0, 2)).min() > 1e-4


@pytest.mark.parametrize("name", BOOSTS)
def test_a_static_cache_is_guarded_alike(name: str) -> None:
    case = shared(FAMILY)
    config = {"methods": [entry(name, guard=1.0, plain_tokens=2.0)]}
    with sightline.attach(case.model, config, calibration=calibration(case)):
        grown, static = (
            generate(case.model, prompts(case, "padded"), max_new_tokens=TOKENS, cache_implementation=kind)
            for kind in (None, "static")
        )
    torch.testing.assert_close(grown.logits, static.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BOOSTS)
def test_the_calibration_gives_the_length_and_without_any_nothing_is_guarded(name: str) -> None:
    case = shared(FAMILY)

    def scores(settings: dict[str, Any], **sections: Any) -> torch.Tensor:
        facts = calibration(case, **sections)
        with sightline.attach(case.model, {"methods": [entry(name, **settings)]}, calibration=facts):
            return generate(case.model, prompts(case, "one"), max_new_tokens=TOKENS).scores

    told = scores({"plain_tokens": 1.0})
    assert torch.equal(told, scores({}, replies={"tokens": 1.0}))
    assert torch.equal(scores({"guard": None}, replies={"tokens": 1.0}), scores({}))
    assert not torch.equal(told, scores({}))


def test_a_settings_value_that_guards_nothing_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        sightline.Config.load({"methods": [{"pai": {"guard": 0}}]})
    assert_message(caught.value, "guard", "greater than 0")


def test_rows_count_what_was_written_before_them() -> None:
    """Two rows of three prompt tokens (the second padded) and two written ones, with room for one more."""
    case = shared(FAMILY)
    low = torch.finfo(torch.float32).min
    logits = torch.zeros(2, 4, 2, 6)
    logits[:, :, 0, 4:] = low  # the row of the first written token
    logits[:, :, 1, 5:] = low
    logits[1, :, :, 0] = low
    assert own_key(logits).flatten().tolist() == [3, 4, 3, 4]
    facts: Any = type("Facts", (), {"calibration": None})()
    guard = ReplyGuard(GuardSettings.model_validate({"guard": 1.0, "plain_tokens": 1.5}), facts)
    keys = Keys(slice(0, 3), 3)
    written = [[1, 2], [1, 2]]  # with the row's own token
    expected = [[count < 1.5 for count in row] for row in written]
    assert guard.within(logits, keys)[:, 0, :, 0].tolist() == expected
    # A sliding cache has dropped the first key.
    assert guard.within(logits[..., 1:], Keys(slice(1, 3), 2))[:, 0, :, 0].tolist() == expected
    assert ReplyGuard(GuardSettings(), facts).within(logits, keys) is True
    assert case.has_images
