"""How the logits of the model and of its weakened copy become one distribution.

Shapes: logits and log-probabilities [B, T, V], strengths [B, T, 1] or numbers. Everything in float32 or wider, natural
logarithms throughout. `base` is the model, `weak` its copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEVER = -torch.inf  # the score of a token that is not plausible
LEAST = -1e30  # below it a model calls a token impossible: by the least number of its type, twice which is no number


def contrast(base: Tensor, weak: Tensor, alpha: float | Tensor) -> Tensor:
    """(1 + a) base - a weak, of logits (CAD, VCD, AvisC, ICD, SID) or log-probabilities (DeCoRe, HICD).

    A token that the model never says (Chameleon's picture codes) stays so.
    """
    return ((1 + alpha) * base - alpha * weak).masked_fill(base < LEAST, NEVER)


def guidance(base: Tensor, weak: Tensor, gamma: float) -> Tensor:
    """gamma (log p - log p') + log p', the classifier-free form (PAI); equal to `contrast` with a = gamma - 1."""
    first, second = base.log_softmax(-1), weak.log_softmax(-1)
    return (gamma * (first - second) + second).masked_fill(first < LEAST, NEVER)


def plausible(scores: Tensor, base: Tensor, beta: float) -> Tensor:
    """Adaptive plausibility: only tokens whose probability under `base` is at least beta times the largest stay.

    `base` may be logits or log-probabilities. beta 0 keeps all.
    """
    if beta == 0:
        return scores
    return scores.masked_fill(base < base.amax(-1, keepdim=True) + math.log(beta), NEVER)


def entropy(log_probabilities: Tensor) -> Tensor:
    """-sum p ln p [B, T, 1]; a token of probability zero adds nothing."""
    terms = torch.special.entr(log_probabilities.exp())
    return terms.sum(-1, keepdim=True)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence (KL(p || m) + KL(q || m)) / 2 of two log-distributions [.., V] -> [..]; m is their mean."""
    middle = _mean(first, second)
    to_first = (first.exp() * (first - middle)).sum(-1)
    return (to_first + (second.exp() * (second - middle)).sum(-1)) / 2


def divergence_from_mean(first: Tensor, second: Tensor) -> Tensor:
    """(KL(m || p) + KL(m || q)) / 2 of two log-distributions [.., V] -> [..]: the same with each direction reversed.

    It is large where one of the two calls impossible what the other expects; Jensen-Shannon's is at most ln 2.
    """
    middle = _mean(first, second)
    return (middle.exp() * (middle - (first + second) / 2)).sum(-1)


def _mean(first: Tensor, second: Tensor) -> Tensor:
    """Log of the mean of two log-distributions."""
    return torch.logaddexp(first, second) - math.log(2)
