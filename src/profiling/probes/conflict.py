"""Conflict heads: which heads favour a target answer whatever the context says (JuICE, arXiv 2503.10996).

Each head alone is enlarged, then suppressed: a times its output goes through its slice of W_O once more, at every
position, which is a gain of 1 + a. Its effect is the mean change of P(target). Kept are heads whose mean effect is
above zero for every kind of prompt (clean, substitution conflict, coherent conflict); they are ranked by the sum.

Published: 4 samples, a in {1, 3, 5, 10, 30} to enlarge and {-1, -2, -5} to suppress, 5 or 10 heads of each. Ours:
P(target) is the probability of all of its tokens, so that an answer of two tokens counts as one of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...common.errors import CalibrationError
from ...plugin.calibration.files import ConflictHeads
from ...plugin.core.edits import Gain
from ..data.tokenised import Conflict, Continuation
from ..job import Job
from . import single

KINDS = ("clean", "substitution", "coherent")


def conflict_heads(
    job: Job,
    examples: Sequence[Conflict],
    *,
    n: int = 10,
    enlarge: Sequence[float] = (1, 3, 5, 10, 30),
    suppress: Sequence[float] = (-1, -2, -5),
) -> ConflictHeads:
    """The section of the calibration file: at most `n` heads of each kind, best first.

    Args:
        enlarge, suppress: the factors a, above and below zero.

    Raises:
        CalibrationError: no examples, an empty prompt or target, or factors of the wrong sign.
    """
    if not all(a > 0 for a in enlarge) or not all(a < 0 for a in suppress) or not enlarge or not suppress:
        raise CalibrationError("JuICE's factors are above 0 to enlarge and below 0 to suppress, at least one of each")
    mean, split = effects(job, examples, (*enlarge, *suppress)), len(enlarge)
    enhance, suppressed = choose(mean[..., :split].mean(-1), n), choose(mean[..., split:].mean(-1), n)
    return ConflictHeads(enhance=enhance, suppress=suppressed, source=None)


def choose(effects: Tensor, n: int) -> list[tuple[int, int]]:
    """The best heads by effects [kinds, layers, heads]: above zero for every kind, ranked by the sum."""
    total = effects.sum(0)
    kept = (effects > 0).all(0).nonzero().tolist()
    return [(layer, head) for layer, head in sorted(kept, key=lambda at: -float(total[at[0], at[1]]))[:n]]


def effects(job: Job, examples: Sequence[Conflict], factors: Sequence[float]) -> Tensor:
    """Mean change of P(target) [kinds, layers, heads, factors] over the examples."""
    asked: list[Continuation] = [getattr(example, kind) for example in examples for kind in KINDS]
    if not asked:
        raise CalibrationError("conflict heads need at least one example")
    if not all(one.prompt and one.target for one in asked):
        raise CalibrationError("a conflict example has an empty prompt or target")
    found = single.effects(job, asked, [1 + a for a in factors], Gain, kinds=len(KINDS))
    job.samples = len(examples)
    return found / len(examples)
