"""Prompts and answers in token ids, as probes put them to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """A prompt, and the target answer that may follow it.

    pictures: the forward arguments that carry the prompt's pictures, for one row each.
    """

    prompt: Sequence[int]
    target: Sequence[int]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Conflict:
    """One question under three contexts.

    clean: without a conflict. substitution: with a context that replaces the answer. coherent: with one that argues for
    the replacement.
    """

    clean: Continuation
    substitution: Continuation
    coherent: Continuation


@dataclass(frozen=True)
class AnswerPair:
    """A prompt, and a right and a wrong answer that may follow it; pictures as above."""

    prompt: Sequence[int]
    right: Sequence[int]
    wrong: Sequence[int]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
