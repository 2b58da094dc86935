"""A part of an edit's strength: none, half and all of it, for each kind of edit."""

from __future__ import annotations

import torch
from sightline.plugin.core.edits import Add, Bias, Disperse, Gain, Input, Mass, Reweight, Shift, boosted, move
from sightline.plugin.core.layout import Layout, Step
from sightline.plugin.core.partial import partly

ROWS, HEADS, COUNT = 3, 2, 1
SHARES = torch.tensor([0.0, 0.5, 1.0])
IDS = torch.ones(ROWS, 4, dtype=torch.long)
STEP = Step(Layout(IDS, IDS.bool(), IDS == 0, IDS.bool()), 4, COUNT)


def half(edit):  # type: ignore[no-untyped-def]
    ((part,),) = partly({1: [edit]}, SHARES, STEP).values()
    return part


def test_additions_and_factors() -> None:
    output, hidden = torch.randn(ROWS, COUNT, HEADS, 5), torch.randn(ROWS, COUNT, 8)
    share = SHARES[:, None, None, None]
    factor = torch.tensor([[3.0, 0.0]])
    for gain in (Gain(factor), Gain(lambda output: factor.expand(ROWS, -1))):
        expected = output * (1 + share * (factor[:, None, :, None] - 1))
        torch.testing.assert_close(half(gain)(output), expected)
    torch.testing.assert_close(half(Bias(torch.ones(1, 1, 4))).bias, SHARES[:, None, None].expand(-1, 1, 4))
    torch.testing.assert_close(half(Shift(torch.ones(HEADS, 5))).offset, SHARES[:, None, None].expand(-1, HEADS, 5))
    torch.testing.assert_close(half(Add(lambda output: output * 2)).value(output), 2 * share * output)
    torch.testing.assert_close(
        half(Input(lambda hidden: -hidden)).change(hidden), hidden * (1 - 2 * SHARES[:, None, None])
    )
    assert half(Disperse(torch.tensor([[True, False]]))).heads.tolist() == [
        [False, False],
        [True, False],
        [True, False],
    ]


def test_weights() -> None:
    """Half of a bonus on logits is the bonus halved; of a mass rule, half of what it changes; no row is left out of a sum."""
    logits = torch.randn(ROWS, HEADS, COUNT, 4)
    weights, image = logits.softmax(-1), torch.tensor([False, True, True, False])
    boost = half(Reweight(lambda weights, logits, keys: boosted(weights, 2 * logits.abs(), image)))
    got = boost(weights.clone(), logits, slice(0, 4))
    expected = (logits + SHARES[:, None, None, None] * 2 * logits.abs() * image).softmax(-1)
    torch.testing.assert_close(got[1:], expected[1:])
    assert boost.rows.active.tolist() == [[False], [True], [True]]
    groups = image.float()[None, :, None].expand(ROWS, -1, -1)
    whole = Mass(lambda: groups, move(0.9), renormalise=True)
    mass = half(whole)
    changes = whole.rule(torch.full((ROWS, HEADS, COUNT, 1), 0.5))
    torch.testing.assert_close(
        mass.rule(torch.full((ROWS, HEADS, COUNT, 1), 0.5)), SHARES[:, None, None, None] * changes
    )
    assert mass.rows.active.tolist() == [[False], [True], [True]]


def test_all_and_nothing() -> None:
    edits = {1: [Bias(torch.ones(1, 1, 4)), Reweight(lambda weights, logits, keys: weights)]}
    assert partly(edits, torch.ones(ROWS), STEP) is edits
    assert partly(edits, torch.zeros(ROWS), STEP) == {}
    reading = Step(STEP.layout, 0, 4)
    ((left,),) = partly(edits, torch.zeros(ROWS), reading).values()
    assert isinstance(left, Reweight), "it may look before it acts"
    assert not left.rows.active.any()  # type: ignore[union-attr]
