"""SGRS, saliency-guided rejection sampling: draw a token again if it does not lean on what was said before.

Source: arXiv 2601.20279 (ICLR 2026) and its release. The saliency of a candidate c for the next token, in layer l, is

    S = |A * dL/dA|,  L = -log p(c)

over the attention weights A of the row that predicts c, summed over heads and divided by the row's L2 norm (floor 1e-9).
Its score is the mean of S over the target layers and over the keys J behind the image, the row's own included. Of the
top-K tokens one is drawn by probability and taken if its score reaches tau = alpha * (mean score of the last W tokens
taken; 0 before the first), else it is dropped and another drawn; after R rounds the best score is taken.

Here the scores are the logarithm of the law of that sampling, exactly: plain sampling (temperature 1, no other filter)
draws as R rounds would, rejected tokens and those outside the top-K have -inf, and greedy and beam search take the
likeliest outcomes. `rounds: null` draws until a candidate is taken, or all are dropped: then the law is p, cut to the
accepted candidates. One pass serves all K; each costs a backward pass over one row, from the first target layer up.

What paper and release say apart from that, and what is ours: docs/methods/sgrs.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..common.errors import ConfigError, UnsupportedModelError
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.branches.rules import NEVER
from ..plugin.core.edits import Edit, Keys, Reweight
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts, Settings

FLOOR = 1e-9  # of the norm
MOST_DRAWS = 100_000  # orders of draws that are followed


class SGRSSettings(Settings):
    candidates: int = Field(5, ge=1, description="K, likeliest tokens that are drawn from")
    rounds: int | None = Field(3, ge=1, description="R, draws before the best score is taken; null: as many as K")
    alpha: float = Field(0.6, ge=0, description="share of the recent tokens' score that a token has to reach")
    window: int = Field(5, ge=1, le=10_000, description="W, how many tokens are recent")
    layers: list[int] | None = Field(
        None, min_length=1, description="target layers; default: 6 to 8 of 32 in proportion"
    )
    span: Literal["behind_image", "generated"] = Field(
        "behind_image", description="keys that count: all behind the image (published), or the answer's alone"
    )
    form: Literal["published", "by_doubt"] = Field(
        "published", description="the score; by_doubt: divided by 1 - p(c), what the model leaves to other tokens"
    )


@register_decoder("sgrs")
class SGRS(Decoder):
    summary = "draw again what does not lean on what was said before"
    source = "arXiv 2601.20279"
    cost = "explicit weights in target layers; a backward pass over one row per candidate and token"
    needs_image = False
    config = SGRSSettings

    def __init__(self, settings: SGRSSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if facts.no_gradients is not None:
            raise UnsupportedModelError(f"sgrs takes gradients through '{facts.name}', but {facts.no_gradients}")
        layers = facts.proportion(6, 9) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "sgrs.layers")
        self.candidates = min(settings.candidates, facts.vocabulary)
        # With a round for each candidate the best score is taken only where none is accepted.
        self.rounds = None if settings.rounds is None or settings.rounds >= self.candidates else settings.rounds
        if self.rounds is not None and self.candidates**self.rounds > MOST_DRAWS:
            raise ConfigError(
                f"sgrs: {self.candidates} candidates in {self.rounds} rounds can be drawn in more orders than can be"
                " followed: ask for fewer, or 'rounds: null'"
            )

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return SGRSContrast(self, layout)


class SGRSContrast(Contrast):
    def __init__(self, decoder: SGRS, layout: Layout):
        self.decoder, self.layout = decoder, layout
        self.graph = min(decoder.layers)
        behind = torch.zeros_like(layout.valid) if decoder.settings.span == "generated" else layout.after_image
        self.behind = behind  # which prompt keys count [B, n]
        self.weights: dict[int, list[tuple[Tensor, slice]]] = {}  # of the pass's watched rows, by layer, in chunks
        none = layout.ids.new_zeros(layout.batch, 0)
        self.memory = {
            "candidates": none,  # for the next token [B, K]
            "scores": none.float(),  # theirs [B, K], NaN without
            "accepted": torch.full((layout.batch, decoder.settings.window), torch.nan, device=layout.ids.device),
        }

    def begin(self, step: Step, ids: Tensor | None) -> None:
        self.weights.clear()
        self.step, self.ids = step, ids

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        rows = None
        if step.reading:
            rows = step.rows(self.layout.last_token)
            if rows is None:
                return {}
        return {layer: [Reweight(partial(self._see, layer), rows)] for layer in self.decoder.layers}

    def _see(self, layer: int, weights: Tensor, logits: Tensor, keys: Keys) -> Tensor:
        if not weights.requires_grad:  # the first target layer's, where the model's own weights want no gradients
            weights.requires_grad_()
        self.weights.setdefault(layer, []).append((weights, keys.prompt))
        return weights

    @torch.no_grad()
    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        scores, step, total = base.detach().clone(), self.step, base.shape[1]
        judged = 1 if step.reading else total  # of a prompt's rows the last alone
        for row in range(total - judged, total):
            position = step.start + step.count - total + row
            if self.ids is not None:  # neither the prompt's nor embeddings
                # The first token of a pass follows what was judged before, any other the row in front of it.
                self._take(self.ids[:, position - step.start if row else 0])
            scores[:, row] = self._judge(base, row, position)
        self.weights.clear()
        return scores

    def _take(self, tokens: Tensor) -> None:
        """Remember the scores of tokens [B] that were candidates."""
        memory = self.memory
        chosen = memory["candidates"] == tokens.to(memory["candidates"].device)[:, None]
        score = memory["scores"].masked_fill(~chosen, 0).sum(-1)
        known = chosen.any(-1) & ~score.isnan()
        later = torch.cat([memory["accepted"][:, 1:], score[:, None]], dim=1)
        self.memory = {**memory, "accepted": torch.where(known[:, None], later, memory["accepted"])}

    def _judge(self, logits: Tensor, row: int, position: int) -> Tensor:
        """Scores [B, V] of what follows the row at `position`, from logits [B, T, V] of the pass's last rows."""
        decoder, memory = self.decoder, self.memory
        with torch.enable_grad():
            logs = logits[:, row].log_softmax(-1)
        best, candidates = logs.detach().topk(decoder.candidates)
        scores = self._scores(logs, candidates, logits.shape[1] - row, position)
        if decoder.settings.form == "by_doubt":
            scores = scores / -best.expm1().clamp(max=-FLOOR)
        accepted = ~(scores < self._threshold(scores)[:, None])
        self.memory = {**memory, "candidates": candidates, "scores": scores, "accepted": memory["accepted"].to(scores)}
        law = drawing_law(best, accepted, scores.nan_to_num().argmax(-1, keepdim=True), decoder.rounds)
        return torch.full_like(logs, NEVER).scatter(1, candidates, law)

    def _threshold(self, like: Tensor) -> Tensor:
        """tau [B]."""
        mean = self.memory["accepted"].to(like).nanmean(-1)
        return self.decoder.settings.alpha * mean.nan_to_num()

    def _scores(self, logs: Tensor, candidates: Tensor, back: int, position: int) -> Tensor:
        """The candidates' mean saliency [B, K] over target layers and J; NaN where J is empty."""
        rows = [_row(chunks, back) for chunks in self.weights.values()]
        with torch.enable_grad():
            chances = logs.gather(-1, candidates).sum(0)  # the rows of a batch do not touch each other
        weights = [weights for weights, _, _ in rows]
        each = torch.eye(len(chances)).to(chances)
        # One walk down the graph for all candidates: weights are read once, as for one.
        slopes = torch.autograd.grad(chances, weights, each, retain_graph=True, is_grads_batched=True)
        answered = max(0, position + 1 - self.layout.length)
        counted = (self.behind.sum(-1) + answered).to(logs)
        total = logs.new_zeros(len(chances), len(counted))
        for (attention, index, keys), slope in zip(rows, slopes, strict=True):
            saliency = (attention[:, :, index] * slope[:, :, :, index]).abs().sum(2)  # [K, B, keys]
            saliency = saliency / saliency.norm(dim=-1, keepdim=True).clamp(min=FLOOR)
            prompt = keys.stop - keys.start
            seen = saliency[..., :prompt].masked_fill(~self.behind[:, keys].to(saliency.device), 0).sum(-1)
            total += (seen + saliency[..., prompt:].sum(-1)).to(total)  # what lies behind the row weighs nothing
        return (total / len(rows) / counted).T

    def report(self) -> dict[str, Any]:
        """candidates, scores: of the token to come [B][K]; threshold: that it would have to reach [B]."""
        scores = self.memory["scores"]
        shown = [[None if score != score else score for score in row] for row in scores.tolist()]
        found = {"candidates": self.memory["candidates"].tolist(), "scores": shown}
        return {**found, "threshold": self._threshold(scores).tolist()}


def _row(chunks: Sequence[tuple[Tensor, slice]], back: int) -> tuple[Tensor, int, slice]:
    """The chunk of weights with the `back`-th row from the end, its index there, and the chunk's keys."""
    for weights, keys in reversed(chunks):
        if back <= weights.shape[2]:
            return weights, weights.shape[2] - back, keys
        back -= weights.shape[2]
    raise IndexError("the row was not watched")


def drawing_law(logs: Tensor, accepted: Tensor, best: Tensor, rounds: int | None) -> Tensor:
    """Log of each candidate's chance to be taken [B, K].

    They are drawn without replacement by their log-probabilities `logs` [B, K] until one is in `accepted` [B, K]; after
    `rounds` draws (None: when all are dropped) the candidate `best` [B, 1] is taken.
    """
    only = torch.full_like(logs, NEVER).scatter(1, best, 0.0)
    if rounds is None:
        law = logs.masked_fill(~accepted, NEVER)
        return torch.where(accepted.any(-1, keepdim=True), law.log_softmax(-1), only)
    batch, count = logs.shape
    mass = logs.new_zeros(batch, 1)  # log of the chance of each order of draws so far, none of them accepted
    dropped = accepted.new_zeros(batch, 1, count)
    taken = []
    for _ in range(rounds):
        drawn = mass[..., None] + logs[:, None].masked_fill(dropped, NEVER).log_softmax(-1)
        taken.append(drawn.masked_fill(~accepted[:, None], NEVER).logsumexp(1))
        mass = drawn.masked_fill(accepted[:, None], NEVER).flatten(1)
        dropped = (dropped[:, :, None] | torch.eye(count, dtype=torch.bool, device=logs.device)).flatten(1, 2)
    return torch.stack([*taken, only + mass.logsumexp(-1, keepdim=True)]).logsumexp(0)
