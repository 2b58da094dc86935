"""One traced call of `generate`: what its passes show, what is chosen behind each, and the table that comes of it.

What the table's columns mean: `trace.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from ...common.errors import LayoutError, UnsupportedModelError
from ..branches import rules
from ..core.edits import Edit, Rows, WeightProbe
from ..core.layout import Layout, Step
from .words import characters

ROOM = 256  # answer tokens by which the groups grow
MASSES = ("image", "query", "prompt", "output")


@dataclass(frozen=True)
class Look:
    """The last row of one pass.

    masses [R, 4] and attention on prompt tokens [R, n] are summed over heads; entropy is [R, 1], divergence [R].
    """

    masses: Tensor
    entropy: Tensor
    divergence: Tensor | None
    prompt: Tensor | None

    def cpu(self) -> Look:
        return Look(*(None if part is None else part.cpu() for part in vars(self).values()))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Candidates:
    """What could follow one pass: tokens [G, c] of each group of beams, and their log p and log p' [G, b, c]."""

    tokens: Tensor
    base: Tensor
    weak: Tensor | None

    def cpu(self) -> Candidates:
        return Candidates(*(None if part is None else part.cpu() for part in vars(self).values()))  # type: ignore[arg-type]


class Record:
    """One call of `generate`. R rows run in each pass: G groups of b beams, b = 1 where nothing is searched."""

    def __init__(self, layers: dict[int, Tensor], heads: int, beams: int, maps: bool):
        self._layers, self._heads, self._beams, self._maps = layers, heads, beams, maps
        self.open = True
        self._layout: Layout | None = None
        self._groups = torch.empty(0)  # which tokens are image, query, rest of the prompt and answer [R, n + room, 4]
        # Of the pass under way: summed weights [R, K], by first key and K.
        self._seen: dict[tuple[int, int], Tensor] = {}
        self._log: tuple[Tensor, Tensor | None] | None = None  # log p and log p' [R, V] of the last pass
        self._looks: list[Look] = []
        self._choices: list[Candidates] = []
        self._prefix = 0  # prompt tokens among the returned ones; none where the prompt came as embeddings
        self._answers = self._beam_of = torch.empty(0, 0, dtype=torch.long)  # tokens and their rows [rows, T]
        self._lengths: list[int] = []

    # ---- while `generate` runs ---------------------------------------------------------------------------------------

    def begin(self, layout: Layout) -> None:
        """A prompt is about to be read. Raises LayoutError where its answer could not be followed."""
        if self._layout is not None:
            raise LayoutError(
                "this call of generate reads more than one prompt, which cannot be traced: leave trace out"
            )
        layout.require_left_padding()
        self._layout = layout
        rest = ~(layout.image | layout.query)
        self._groups = torch.stack([layout.image, layout.query, rest, torch.zeros_like(rest)], dim=-1).float()

    def check(self) -> None:
        """Raises LayoutError where a call goes on from a cache that an earlier one has filled."""
        if self._layout is None:
            raise LayoutError(
                "generate goes on from a filled cache, whose prompt and answer cannot be told apart: pass the whole"
                " conversation without past_key_values, or leave trace out"
            )

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        """The probes of a pass; none where it ends before the prompt does."""
        assert self._layout is not None
        self._seen.clear()  # of a pass that is run again
        last = step.start + step.count - 1
        if last < self._layout.length - 1:
            return {}
        rows = Rows(step.count - 1, step.count, self._layout.valid[:, -1:])
        return {layer: [WeightProbe(partial(self._see, layer), rows)] for layer in self._layers}

    def _see(self, layer: int, weights: Tensor, keys: slice, first: int) -> None:
        heads = self._layers[layer] = self._layers[layer].to(weights.device)
        row = weights[:, :, -1].detach()  # a decoder may keep the graph of a pass
        looked = row.sum(1) if len(heads) == row.shape[1] else row[:, heads].sum(1)
        place = keys.start, looked.shape[1]  # sliding layers see other keys than full ones
        before = self._seen.get(place)
        self._seen[place] = looked if before is None else before + looked.to(before.device)

    def read(self, logits: Tensor, weak: Tensor | None) -> None:
        """Behind a pass: the logits of its last row, the model's and the branch's [R, V]."""
        base = logits.detach().float().log_softmax(-1)
        other = None if weak is None else weak.detach().to(base.device).float().log_softmax(-1)
        self._log = base, other
        divergence = None if other is None else rules.divergence(base, other)
        prompt = self._prompt() if self._maps else None
        self._looks.append(Look(self._masses(), rules.entropy(base), divergence, prompt))
        self._seen.clear()

    def _masses(self) -> Tensor:
        """Masses [R, 4] of the pass that ended, summed over heads."""
        parts = []
        for (start, count), weights in self._seen.items():
            room = start + count - self._groups.shape[1]
            if room > 0:
                answer = self._groups.new_tensor([0.0, 0, 0, 1]).expand(len(self._groups), room + ROOM, 4)
                self._groups = torch.cat([self._groups, answer], dim=1)
            groups = self._groups = self._groups.to(weights.device)
            parts.append(torch.bmm(weights[:, None], groups[:, start : start + count])[:, 0])
        return parts[0] if len(parts) == 1 else torch.stack([part.to(parts[0].device) for part in parts]).sum(0)

    def _prompt(self) -> Tensor:
        """The attention on prompt tokens [R, n] of the pass that ended, summed over heads."""
        assert self._layout is not None
        total = torch.zeros_like(self._layout.ids, dtype=torch.float32)
        for (start, count), weights in self._seen.items():
            stop = max(start, min(start + count, self._layout.length))
            total[:, start:stop] += weights[:, : stop - start].to(total.device)
        return total

    def choose(self, ids: Tensor) -> None:
        """Behind the choice that follows a pass: the sequences that it leaves [G * c, length]."""
        if self._log is None:
            raise UnsupportedModelError(
                "this call of generate chooses tokens without a pass of the model for each, which cannot be traced: leave"
                " trace out"
            )
        if not self._choices:
            self._prefix = ids.shape[1] - 1
        (base, weak), self._log = self._log, None
        chosen = ids[:, -1].to(base.device).view(len(base) // self._beams, -1)
        index = chosen[:, None].expand(-1, self._beams, -1)
        ours = base.view(len(chosen), self._beams, -1).gather(-1, index)
        theirs = None if weak is None else weak.view(len(chosen), self._beams, -1).gather(-1, index)
        self._choices.append(Candidates(chosen, ours, theirs))

    def finish(self, sequences: Tensor, beams: Tensor | None, ends: Any, pad: int | None) -> None:
        """`generate` has returned these sequences [rows, prompt + T], taken from these beams [rows, T]."""
        self.open, self._log = False, None
        if self._layout is None:
            return
        self._answers = sequences[:, self._prefix :]
        if beams is None:
            self._beam_of = torch.arange(len(sequences))[:, None].expand_as(self._answers)
            self._lengths = _lengths(self._answers.tolist(), ends, pad)
        else:
            self._beam_of = beams
            self._lengths = (beams >= 0).sum(-1).tolist()

    @property
    def rows(self) -> int:
        """How many answers there are."""
        return len(self._lengths)

    # ---- afterwards --------------------------------------------------------------------------------------------------

    def table(self, tokenizer: Any) -> list[dict[str, Any]]:
        """The rows of the table, see the module. Empty while `generate` runs."""
        self._looks = [look.cpu() for look in self._looks]
        self._choices = [choice.cpu() for choice in self._choices]
        return [one for row in range(len(self._lengths)) for one in self._rows_of(row, tokenizer)]

    def _rows_of(self, row: int, tokenizer: Any) -> list[dict[str, Any]]:
        tokens = self._answers[row, : self._lengths[row]].tolist()
        texts = [None] * len(tokens) if tokenizer is None else spelled(tokenizer, tokens)
        rows = []
        for position, token in enumerate(tokens):
            beam = int(self._beam_of[row, position])
            look, choice = self._looks[position], self._choices[position]
            group, member = divmod(beam, self._beams)
            place = group, member, choice.tokens[group].tolist().index(token)
            rows.append(
                {
                    "row": row,
                    "position": position,
                    "token": token,
                    "text": texts[position],
                    **dict(zip(MASSES, (look.masses[beam] / self._heads).tolist(), strict=True)),
                    "entropy": float(look.entropy[beam]),
                    "probability": float(choice.base[place].exp()),
                    "divergence": None if look.divergence is None else float(look.divergence[beam]),
                    "contrast": None if choice.weak is None else float(choice.base[place] - choice.weak[place]),
                }
            )
        return rows

    def image_maps(self) -> list[Tensor]:
        """For each answer, the attention on each image token of its prompt [tokens, image tokens], in float32."""
        assert self._layout is not None
        maps = []
        for row, length in enumerate(self._lengths):
            beams = self._beam_of[row, :length].tolist()
            places = self._layout.image[beams[0]].nonzero()[:, 0] if beams else torch.empty(0, dtype=torch.long)
            looks = [look.prompt[beam] for look, beam in zip(self._looks, beams, strict=False)]  # type: ignore[index]
            maps.append(
                torch.stack(looks)[:, places.to(looks[0].device)].cpu() / self._heads
                if looks
                else torch.empty(0, len(places))
            )
        return maps


class Chosen(StoppingCriteria):
    """Stops nothing: tells a record what was chosen."""

    def __init__(self, record: Record):
        self.record = record

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.record.choose(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def spelled(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text that they decode to; a character of several tokens is the first one's."""
    text, spans = characters(tokenizer, tokens)
    parts, done = [], 0
    for start, end in spans:
        parts.append(text[max(start, done) : end])
        done = max(end, done)
    return parts


def _lengths(answers: Sequence[Sequence[int]], ends: Any, pad: int | None) -> list[int]:
    """Tokens of each answer up to its end token; where something else ended it, up to the padding behind it."""
    stops = set() if ends is None else set(torch.as_tensor(ends).flatten().tolist())
    lengths = []
    for tokens in answers:
        length = next((i + 1 for i, token in enumerate(tokens) if token in stops), None)
        if length is None:
            length = len(tokens)
            while len(answers) > 1 and length and tokens[length - 1] == pad:
                length -= 1
        lengths.append(length)
    return lengths
