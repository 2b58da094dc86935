"""DoLa's candidates and the distance that chooses among them; its scores are in `test_reference.py`."""

from __future__ import annotations

import pytest
import sightline
import torch
from sightline.decoders.dola import high_layers, low_layers
from sightline.plugin.branches import rules
from torch.nn.functional import kl_div

from tests.helpers.engine import generate, prompts, shared


@pytest.mark.parametrize(
    ("layers", "tied", "low", "high"),
    [
        (32, False, [*range(0, 16, 2)], [*range(16, 32, 2)]),
        (30, True, [*range(2, 15, 2)], [*range(15, 30, 2)]),  # SmolLM2-135M: high begins at an odd layer
        (48, False, [*range(0, 20, 2)], [*range(28, 48, 2)]),
        (41, True, [*range(2, 20, 2)], [*range(21, 41, 2)]),
        (2, True, [1], [1]),
        (3, True, [2], [1]),
        (1, False, [0], [0]),
    ],
)
def test_candidates(layers: int, tied: bool, low: list[int], high: list[int]) -> None:
    assert list(low_layers(layers, tied)) == low
    assert list(high_layers(layers)) == high


def test_the_released_distance_is_kl_div_of_the_mean() -> None:
    """As the release calls torch: log-probabilities first, the mean as the target."""
    p, q = torch.randn(2, 5, 64, dtype=torch.float64).mul(3).log_softmax(-1)
    mean = (p.exp() + q.exp()) / 2
    expected = sum(kl_div(log, mean, reduction="none").sum(-1) for log in (p, q)) / 2
    torch.testing.assert_close(rules.divergence_from_mean(p, q), expected)
    textbook = sum((log.exp() * (log - mean.log())).sum(-1) for log in (p, q)) / 2
    torch.testing.assert_close(rules.divergence(p, q), textbook)
    assert float(rules.divergence(p, q).max()) < float(torch.tensor(2.0).log()) < float(expected.max())


def test_the_forms_take_other_layers() -> None:
    case, taken = shared("llava_gqa"), {}
    for form in ("released", "paper"):
        with sightline.attach(case.model, {"decoder": {"dola": {"layers": [0, 1, 2, 3], "form": form}}}) as plug:
            case.model(**prompts(case, "padded"))
            taken[form] = plug.report()["dola"]["layers"]
    assert taken["released"] != taken["paper"]
    with sightline.attach(case.model, {"decoder": {"dola": {"layers": [0, 1, 2, 3]}}}) as plug:
        generate(case.model, prompts(case, "padded"), max_new_tokens=1)
        assert plug.report()["dola"]["layers"] == [row[-1:] for row in taken["released"]], "the release's by default"
