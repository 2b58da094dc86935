"""Causal Head Gating (arXiv 2505.13737): which heads help right answers, which are idle, which do harm.

Gates G = sigmoid(theta) in [0, 1], one per head, multiply the head outputs and are fitted by gradients, the model's
weights frozen, so that

    NLL(right answers | G) - lambda * mean(theta),    |theta| <= 4

is least: first with lambda = 0, then from there with lambda > 0, which pulls idle gates towards 1 (G+), and with lambda
< 0, which pulls them towards 0 (G-). A head is facilitating by G-, the gate that survives the pull down; interfering by
1 - G+, what is missing in spite of the pull up; irrelevant by G+ (1 - G-), what goes wherever it is pulled.

Published: the objective without the bound, the three fits, the roles. A rerun by others (lambda 0.1 on the mean, which
counts no theta beyond 4, Adam at a rate of 1, gradients cut to norm 1, 500 steps per fit) is what the numbers here follow;
the paper's own were not at hand.
Ours: theta itself is kept within the bound. Adam carries an idle gate to an end as fast as any other, and beyond the bound
no pull would bring it back. The sigmoid is stretched so that the bounds are 0 and 1. Gates begin near 0.9 instead of
anywhere, and the rate is 0.3, with fewer steps: small models lose their language at gates drawn by chance, and need long
to find it again. Right answers are those to the questions of `premise_heads.py`, on which a model that is fooled is wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...common.errors import CalibrationError
from ...plugin.calibration.sections import HeadGates
from ...plugin.core.edits import Gain
from ..data.tokenised import AnswerPair
from ..job import Job, rounded
from .direct import Direct, Edits
from .importance import answer_losses

PULL = 0.1  # lambda, on the mean over heads
BOUND = 4.0
RATE = 0.3
NORM = 1.0  # gradients are cut to it
BEGIN = 2.0
STEPS = 120  # of each fit
BATCH = 8  # examples of one step
FITS = (("free", 0.0), ("up", 1.0), ("down", -1.0))  # and the sign of lambda


def head_gates(job: Job, examples: Sequence[AnswerPair], *, steps: int = STEPS, pull: float = PULL) -> HeadGates:
    """The section of the calibration file.

    Raises:
        CalibrationError: no examples, or an empty prompt or answer.
        UnsupportedModelError: the model's weights do not let gradients through.
    """
    if not examples or any(not (one.prompt and one.right) for one in examples):
        raise CalibrationError("head gates need examples, each with a prompt and a right answer of tokens")
    fitted: dict[str, Tensor] = {}
    with Direct(job.model) as direct:
        direct.need_gradients("head gates")
        for number, (name, sign) in enumerate(FITS):
            begin = fitted.get("free", torch.full((job.facts.layers, job.facts.heads), BEGIN))
            fitted[name] = _fit(job, direct, examples, name, begin, sign * pull, steps, steps * number)
    job.samples = len(examples)
    up, down = gate(fitted["up"]), gate(fitted["down"])
    return HeadGates(facilitating=rounded(down), irrelevant=rounded(up * (1 - down)), interfering=rounded(1 - up))


def gate(theta: Tensor) -> Tensor:
    """The sigmoid, stretched so that the bounds become 0 and 1."""
    lowest = 1 / (1 + math.exp(BOUND))
    return (theta.sigmoid() - lowest) / (1 - 2 * lowest)


def _fit(
    job: Job,
    direct: Direct,
    examples: Sequence[AnswerPair],
    name: str,
    begin: Tensor,
    pull: float,
    steps: int,
    before: int,
) -> Tensor:
    """Gate logits [layers, heads] after `steps` steps from `begin`; continued where the partial file has some."""
    stage = f"{job.profile}/{name}"
    state, done = job.partial.get(stage)
    theta = (state["theta"] if done else begin).float().clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=RATE)
    if done:
        moments = {moment: state[moment].float() for moment in ("exp_avg", "exp_avg_sq")}
        optimiser.state[theta] = {"step": torch.tensor(float(done)), **moments}
    for step in range(done, steps):
        job.advance(job.profile, before + step, len(FITS) * steps)
        drawn = random.Random(f"{job.seed}/{name}/{step}").sample(range(len(examples)), min(BATCH, len(examples)))
        work = partial(_gradient, direct, theta)
        parts = [part for part, _ in job.pace.over([examples[n] for n in drawn], work, name=job.profile)]
        theta.grad = torch.stack(parts).sum(0) / len(drawn) - pull / theta.numel()
        nn.utils.clip_grad_norm_([theta], NORM)
        optimiser.step()
        theta.data.clamp_(-BOUND, BOUND)
        moments = {key: value.double() for key, value in optimiser.state[theta].items() if key != "step"}
        job.partial.put(stage, {"theta": theta.detach().double(), **moments}, step + 1)
    job.advance(job.profile, before + steps, len(FITS) * steps)
    return theta.detach()


def _gradient(direct: Direct, theta: Tensor, examples: Sequence[AnswerPair]) -> Tensor:
    """Of the sum over the examples of the mean loss of the right answer's tokens, by gate logit [layers, heads]."""
    with torch.enable_grad():
        gates = gate(theta).to(direct.model.device)
        edits: Edits = {layer: [Gain(gates[layer][None])] for layer in range(len(gates))}
        prompts, answers = [one.prompt for one in examples], [one.right for one in examples]
        losses = answer_losses(direct, edits, prompts, answers, [one.pictures for one in examples])
        return torch.autograd.grad(losses.sum(), [theta])[0]
