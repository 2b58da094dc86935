"""Inducing heads: which heads matter for right answers more than for wrong ones (HICD, arXiv 2503.12908, section 5.1).

A head's importance for some answers is the sum, over examples and positions, of |<output, dL/d output>|, where L is
the mean loss of the answer's tokens and `output` the head's slice before `o_proj`: the first-order change of L if the
head were silent at that position. As released, a layer's sum is divided by the number of tokens read, the last layer's
by the number of answer tokens (only there its outputs reach the loss). Right and wrong answers give one matrix each,
both are scaled to [0, 1], and a head's score is right + scale * (right - wrong).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...common.errors import CalibrationError
from ...plugin.calibration.files import InducingHeads
from ...plugin.core.edits import Edit, OutputProbe
from ..data.tokenised import AnswerPair
from ..job import Job, Sums, rounded
from .direct import Direct, Edits, row_by_row

IGNORED = -100

Kind = Literal["right", "wrong"]
KINDS: tuple[Kind, ...] = ("right", "wrong")


def inducing_heads(job: Job, examples: Sequence[AnswerPair], *, scale: float = 20.0) -> InducingHeads:
    """The section of the calibration file.

    Args:
        scale: weight of the difference between right and wrong (published 10 to 70 by task, default 20).

    Raises:
        CalibrationError: no examples, an empty prompt or answer, or a model that answers alike with every head.
        UnsupportedModelError: no gradients can be taken through the model.
    """
    if not examples or any(not (e.prompt and e.right and e.wrong) for e in examples):
        raise CalibrationError("inducing heads need examples, each with a prompt, a right and a wrong answer of tokens")
    with Direct(job.model) as direct:
        seen = job.add(
            "choices", lambda some: {k: v for kind in KINDS for k, v in effects(direct, some, kind).items()}, examples
        )
    right, wrong = (_scaled(importance(seen, kind)) for kind in KINDS)
    return InducingHeads(scores=rounded(right + scale * (right - wrong)), source=None)


def _scaled(matrix: Tensor) -> Tensor:
    if not matrix.max() > matrix.min():
        raise CalibrationError("every head matters alike for the answers, so none can be chosen: check the examples")
    return (matrix - matrix.min()) / (matrix.max() - matrix.min())


def importance(seen: Mapping[str, Tensor], kind: Kind) -> Tensor:
    """Importance of every head [layers, heads] for answers of a kind, from the sums of `effects`."""
    matrix = seen[kind].clone()
    matrix[:-1] /= seen[f"{kind} read"]
    matrix[-1] /= seen[f"{kind} answered"]
    return matrix


def effects(direct: Direct, examples: Sequence[AnswerPair], kind: Kind) -> Sums:
    """Of one batch: every head's sum [layers, heads], the tokens that were read, and those of the answers."""
    direct.need_gradients("inducing heads")
    answers = [getattr(example, kind) for example in examples]
    with torch.enable_grad():
        found = _effects(direct, [example.prompt for example in examples], answers, [e.pictures for e in examples])
    answered = sum(map(len, answers))
    read = answered + sum(len(example.prompt) for example in examples)
    return {kind: found, f"{kind} read": torch.tensor(read), f"{kind} answered": torch.tensor(answered)}


def _effects(
    direct: Direct,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pictures: Sequence[Mapping[str, Tensor]],
) -> Tensor:
    outputs: dict[int, Tensor] = {}

    def probe(layer: int) -> Edit:
        def see(output: Tensor) -> None:
            outputs[layer] = output if output.requires_grad else output.requires_grad_()

        return OutputProbe(see)

    watch: Edits = {n: [probe(n)] for n in range(direct.facts.layers)}
    loss = answer_losses(direct, watch, prompts, answers, pictures).sum()
    ordered = [outputs[n] for n in range(direct.facts.layers)]
    gradients = torch.autograd.grad(loss, ordered)
    changes = [(o.float() * g.float()).sum(-1).abs() for o, g in zip(ordered, gradients, strict=True)]  # [B, q, H]
    return torch.stack([change.sum((0, 1)).cpu() for change in changes]).detach()


def answer_losses(
    direct: Direct,
    edits: Edits,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pictures: Sequence[Mapping[str, Tensor]],
) -> Tensor:
    """The mean loss of each answer's tokens [B] behind its prompt, under `edits`."""
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)  # padded on the right, where no answer token looks
    labels = torch.full_like(ids, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    logits = direct(edits, ids, **row_by_row(pictures, width)).float()
    asked = labels[:, 1:].to(logits.device)
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), asked, ignore_index=IGNORED, reduction="none")
    return losses.sum(-1) / (asked != IGNORED).sum(-1)
