"""Log-probabilities of given answers, under whatever is attached: multiple choice, knowledge conflicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.errors import LayoutError
from ..branches.positions import Positions
from ..branches.prompts import SEEN
from ..core.compat import CACHE, cache_undone, new_cache
from ..core.families import find_family
from ..core.host import HOST
from ..core.queue import queue_of
from ..core.wrappers import inner_model


@dataclass(frozen=True)
class Score:
    """One answer. tokens: log-probability of each of its tokens; greedy: whether each was the likeliest."""

    tokens: list[float]
    greedy: bool

    @property
    def logprob(self) -> float:
        """Log-probability of the whole answer."""
        return sum(self.tokens)

    @property
    def mean(self) -> float:
        """Log-probability per token."""
        return self.logprob / len(self.tokens)


@torch.no_grad()
def score(model: Any, inputs: Mapping[str, Any], continuations: Sequence[Sequence[Sequence[int]]]) -> list[list[Score]]:
    """Score answers to a batch of prompts. Each prompt is read once, however many answers it has.

    Under an attached decoder the scores are its contrasted ones, normalised over the vocabulary; a token that the
    decoder's plausibility cutoff forbids scores -inf. DeCoRe masks the whole prompt here, as its release does.

    Args:
        model: with something attached, or plain.
        inputs: the processor's or tokenizer's output for B prompts, padded on the left.
        continuations: for each prompt its answers, as token ids without special tokens: [B][any number][>= 1].

    Returns scores [B][answers]. Raises LayoutError for an empty answer, a number of lists other than B, or right padding.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    _check(ids, mask, continuations, model.config.get_text_config().vocab_size)
    inner = inner_model(model)
    with queue_of(inner).turn():
        return _scored(model, inner, {**inputs, "attention_mask": mask}, continuations)


def _scored(
    model: Any, inner: Any, inputs: Mapping[str, Any], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[Score]]:
    """The scores, from passes of `model`, which is `inner` or a wrapper of it."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    host, family = inner.__dict__.get(HOST), find_family(inner)
    decoder, generator = family.decoder(inner), family.generator(inner)
    cache = new_cache(decoder.config)
    positions = Positions(decoder)
    with nullcontext() if host is None else host.plugs[-1].scoring():
        with positions.noted():
            given = {**inputs, CACHE: cache, "use_cache": True}
            first = model(**given, logits_to_keep=1, return_dict=True).logits[:, -1:].float().log_softmax(-1)
        reading = None if host is None else host.plugs[-1].reading
        results: list[list[Score]] = [[] for _ in continuations]
        for number in range(max(map(len, continuations))):
            rows = [list(answers[number]) if number < len(answers) else [] for answers in continuations]
            width = max(map(len, rows))
            answer = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=ids.device)
            shown = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=mask.device)
            chances = first
            if width > 1:
                seen = torch.cat([mask, shown[:, :-1].to(mask)], dim=1)
                places = (seen.cumsum(-1) - 1)[:, mask.shape[1] :]
                with cache_undone(cache), nullcontext() if reading is None else reading.undone(), positions.continued():
                    given = {
                        "attention_mask": seen,
                        "position_ids": places,
                        CACHE: cache,
                        "use_cache": True,
                    }
                    if SEEN in inputs:
                        given[SEEN] = inputs[SEEN][:, -1:].expand(-1, width - 1, -1, -1)
                    logits = generator(input_ids=answer[:, :-1], **given, return_dict=True).logits
                chances = torch.cat([first, logits.float().log_softmax(-1)], dim=1)
            gained = chances.gather(-1, answer[..., None].to(chances.device))[..., 0]
            likeliest = chances.argmax(-1) == answer.to(chances.device)
            for row, tokens in enumerate(rows):
                if tokens:
                    length = len(tokens)
                    results[row].append(Score(gained[row, :length].tolist(), bool(likeliest[row, :length].all())))
    return results


def _check(ids: Tensor, mask: Tensor, continuations: Sequence[Sequence[Sequence[int]]], vocabulary: int) -> None:
    if len(continuations) != len(ids):
        raise LayoutError(f"answers for {len(continuations)} prompts were given, but there are {len(ids)} prompts")
    for row, answers in enumerate(continuations):
        if not answers:
            raise LayoutError(f"prompt {row} has no answer to score: give at least one")
        for answer in answers:
            if len(answer) == 0:
                raise LayoutError(f"prompt {row} has an empty answer: an answer needs at least one token")
            unknown = [token for token in answer if not 0 <= token < vocabulary]
            if unknown:
                raise LayoutError(
                    f"an answer of prompt {row} has the token id {unknown[0]}, but the model knows 0..{vocabulary - 1}"
                )
    if not bool(mask[:, -1].all()):
        raise LayoutError(
            "the prompts are padded on the right, so their answers would not follow them: pad on the left"
        )
