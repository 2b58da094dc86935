"""Head Pursuit (arXiv 2510.21518): which heads write words of a concept.

A head writes its output times its part of the output projection, one vector per example. Over the examples these are
centred and taken apart by simultaneous orthogonal matching pursuit: of the concept's words, as rows of the unembedding
matrix, the one is taken to which the sum of |inner products| with what is left of all examples is largest; what it
and the words before it span is taken out; and so on, `ATOMS` times. A head's score is the share of the variance that is
out by then.

Published: the pursuit, its ranking by explained variance, and what follows (`head_gain`): a gain of -1 or 5 on the best 8
to 32 heads. Ours: the words' rows have length 1 before they are compared, so that no word is preferred for its norm, and
a word of several tokens counts as its first. An example's vector is the mean over the rows that choose its answer's
tokens. A model that sees describes pictures, and the concept is the names of the objects in them; a text model completes
the facts of `facts.yaml`'s calibration split, and the concept is their answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...common.chat import text_tokenizer
from ...common.errors import CalibrationError
from ...models.observe import Batch
from ...models.prompting import cloze
from ...models.samples import Example
from ...plugin.calibration.sections import WordHeads
from ...plugin.core.edits import Edit, OutputProbe
from ...plugin.core.host import Host
from ...plugin.core.layout import Layout, Step
from ...plugin.core.method import ModelFacts, Session
from ..data import conflicts
from ..job import Job, Sums, rounded

ATOMS = 8  # words that explain
NEW_TOKENS = 48
FACT_TOKENS = 1  # the token with which an answer begins


def measure_word_heads(job: Job) -> WordHeads:
    """The section of the calibration file. Raises CalibrationError where there are too few words or examples."""
    sees = bool(job.examples) and job.examples[0].image is not None
    shown: Sequence[Example] = job.examples if sees else _facts(job.processor)
    names = {region.label for one in shown for region in one.objects} if sees else _answers()
    words = first_tokens(job.processor, sorted(names))
    if len(words) < ATOMS or len(shown) < 2:
        raise CalibrationError(
            f"{job.profile} needs examples with at least {ATOMS} different words of a concept, the names of boxed objects:"
            f" there are {len(words)} words and {len(shown)} examples"
        )
    numbers = {one.id: number for number, one in enumerate(shown)}
    seen = job.total("outputs", partial(_look, numbers, NEW_TOKENS if sees else FACT_TOKENS), shown)
    written = seen["outputs"] / seen["count"].clamp(min=1)[:, None, None, None]  # [N, layers, H, d]
    host = Host(job.model)
    rows = job.model.get_output_embeddings().weight[list(words.values())].detach().double().cpu()
    scores = torch.zeros(job.facts.layers, job.facts.heads)
    for layer, attention in host.attentions.items():
        contributions = contributed(attention.o_proj, written[:, layer])  # type: ignore[arg-type]
        scores[layer] = explained(contributions, rows, ATOMS)[:, -1]
    return WordHeads(scores=rounded(scores), words=list(words))


@torch.no_grad()
def contributed(projection: nn.Module, outputs: Tensor) -> Tensor:
    """What each head adds to the residual stream [H, N, D], from outputs [N, H, d], whatever form the weights have."""
    weight = next(projection.parameters())
    single = torch.einsum("nhd,hg->hngd", outputs, torch.eye(outputs.shape[1]).to(outputs)).flatten(2)
    inputs = single.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)
    return (projection(inputs) - projection(torch.zeros_like(inputs[:1, :1]))).double().cpu()


def explained(contributions: Tensor, words: Tensor, atoms: int) -> Tensor:
    """Shares of the variance [H, atoms] of `contributions` [H, N, D] that the first words of the pursuit explain.

    words: the dictionary [K, D]. A head that always writes the same has nothing to explain, and 0.
    """
    rest = contributions - contributions.mean(1, keepdim=True)
    total = rest.square().sum((1, 2))
    dictionary = words / words.norm(dim=-1, keepdim=True)
    free = torch.ones(len(rest), len(words), dtype=torch.bool)
    basis: list[Tensor] = []  # orthonormal, of the words taken so far [H, D]
    shares = []
    for _ in range(atoms):
        products = (rest @ dictionary.T).abs().sum(1).masked_fill(~free, -1)
        best = products.argmax(-1)
        free[torch.arange(len(rest)), best] = False
        direction = dictionary[best]
        for _ in range(2):  # once more against rounding
            for earlier in basis:
                direction = direction - (direction * earlier).sum(-1, keepdim=True) * earlier
        norm = direction.norm(dim=-1, keepdim=True)
        direction = torch.where(norm > 1e-9, direction / norm, torch.zeros_like(direction))  # a word twice spelled
        basis.append(direction)
        rest = rest - (rest @ direction[:, :, None]) * direction[:, None]
        shares.append(1 - rest.square().sum((1, 2)) / total)
    return torch.where(total[:, None] > 0, torch.stack(shares, dim=-1), 0.0)


def first_tokens(tokenizer: Any, names: Sequence[str]) -> dict[str, int]:
    """The first token of each name within a sentence; of names that begin alike the first one."""
    encode = text_tokenizer(tokenizer)
    found: dict[int, str] = {}
    for name in names:
        found.setdefault(int(encode(f" {name}", add_special_tokens=False)["input_ids"][0]), name)
    return {name: token for token, name in found.items()}


def _answers() -> set[str]:
    return {fact.true[0] for fact in conflicts.facts(conflicts.CALIBRATION)}


def _facts(tokenizer: Any) -> list[Example]:
    return [
        Example(fact.name, cloze(tokenizer, fact.closed_book.user, fact.opening), raw=True)
        for fact in conflicts.facts(conflicts.CALIBRATION)
    ]


def _look(numbers: dict[str, int], new_tokens: int, batch: Batch) -> Sums:
    """Sums of the head outputs of each example over its answer [N, layers, H, d], and over how many rows they run [N]."""
    session, answers = batch.answer(_Outputs, new_tokens)
    steps = torch.stack(session.steps)  # [T, layers, B, H, d]
    outputs = torch.zeros(len(numbers), steps.shape[1], *steps.shape[3:], dtype=torch.float64)
    count = torch.zeros(len(numbers))
    for row, (example, answer) in enumerate(zip(batch.examples, answers, strict=True)):
        length = max(1, len(answer))
        outputs[numbers[example.id]] = steps[:length, :, row].double().sum(0)
        count[numbers[example.id]] = length
    return {"outputs": outputs, "count": count}


class _Outputs(Session):
    """steps: head outputs [layers, B, H, d] of the rows that choose each token of the answer."""

    def __init__(self, layout: Layout, facts: ModelFacts):
        self.layout, self.facts = layout, facts
        self.steps: list[Tensor] = []
        self._rows: list[Tensor] = []

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return {layer: [OutputProbe(partial(self._see, layer))] for layer in range(self.facts.layers)}

    def _see(self, layer: int, output: Tensor) -> None:
        self._rows.append(output[:, -1].float().cpu())  # left-padded: the last row of the pass chooses
        if layer == self.facts.layers - 1:
            self.steps.append(torch.stack(self._rows))
            self._rows = []
