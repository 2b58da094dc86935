"""False-premise heads by path patching (FAITH, arXiv 2402.19103): which heads carry a false premise into the answer.

A question with a false premise is completed ("According to my knowledge, ... is") as it is, and with the false object
masked. A head's influence is the change of P(true answer) when, in the rows named, its output is that of the masked
run while all other heads' outputs there stay those of the unmasked one, and everything else follows (its direct
effect). Only questions that fool the model count: answered wrongly as they are, rightly with the object masked. Per
question the 20 most influential heads count, if their influence exceeds 0.1; heads are ranked by how many questions
they count in.

Published: so in the release, which patches one row, that of the token before the question mark, where its questions have
the false object. The paper speaks of the rows of the object.
Ours: an answer of several tokens is right if each is the most probable one, and P is the probability of all of them;
the mask XXXX is repeated or cut to the object's number of tokens, so that positions agree; heads that count equally
often, also never, are ranked by their mean influence. A model that sees is asked whether a thing is in a picture where it
is not; the false object is the thing, the true answer no, and all rows of the object are patched, because words follow it.
The heads of a layer ride in one batch, which starts at that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ...common.chat import text_tokenizer
from ...common.errors import CalibrationError
from ...models.prompting import cloze, encode_answer
from ...plugin.calibration.sections import PremiseHeads
from ...plugin.core.edits import Add, Input, InputProbe, OutputProbe
from ...plugin.tracing.words import characters
from ..data.conflicts import CALIBRATION
from ..data.premises import premises
from ..data.tokenised import AnswerPair
from ..job import Job, Sums, rounded
from .direct import Direct, Edits, copies, row_by_row
from .presence import asked

MASK = " XXXX"
MOST = 20  # heads that count per question
LEAST = 0.1  # influence that counts
TAIL = 96  # tokens among which a prompt's question ends
TOKENS = 4096  # tokens of one batch of heads


@dataclass(frozen=True)
class Pair:
    """A prompt with a false premise and the same with it masked, token ids of the same length.

    rows: those that are patched. true: the true answer's ids. pictures: the forward arguments that carry the prompt's
    pictures, for one row each.
    """

    clean: Sequence[int]
    masked: Sequence[int]
    rows: Sequence[int]
    true: Sequence[int]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


def measure_premise_heads(job: Job) -> PremiseHeads:
    """The section of the calibration file. Raises CalibrationError where no question fools the model, or no head counts."""
    sees = bool(job.examples) and job.examples[0].image is not None
    pairs = seen_pairs(job) if sees else text_pairs(job.processor)
    found = job.add("influence", partial(_look, job.model), pairs)
    kept = int(found["kept"])
    if not kept:
        raise CalibrationError(
            f"{job.profile}: none of {len(pairs)} questions with a false premise fools the model, wrong as asked and right"
            " with the false object masked, so no head can be told"
        )
    job.samples = kept
    shares, influence = found["chosen"] / kept, found["influence"] / kept
    heads = ranked(shares, influence)
    if not heads:
        raise CalibrationError(
            f"{job.profile}: in the {kept} questions that fool the model no head alone makes the true answer more probable,"
            " so none can be chosen"
        )
    return PremiseHeads(heads=heads, shares=rounded(shares), influence=rounded(influence))


def ranked(shares: Tensor, influence: Tensor) -> list[tuple[int, int]]:
    """Heads by in how many questions they count, then by mean influence; those that have neither are left out."""
    helping = [(int(layer), int(head)) for layer, head in ((shares > 0) | (influence > 0)).nonzero()]
    return sorted(helping, key=lambda at: (-float(shares[at]), -float(influence[at])))


def text_pairs(tokenizer: Any) -> list[Pair]:
    """The calibration split of the false-premise questions."""
    found = []
    for premise in premises(CALIBRATION):
        opened = cloze(tokenizer, premise.cloze.user, premise.cloze.opening)
        prompt, true = encode_answer(tokenizer, opened, premise.true[0])
        rows = spelling(tokenizer, prompt, premise.span)
        found.append(Pair(prompt, masked(tokenizer, prompt, rows), rows[-1:], true))
    return found


def premise_choices(tokenizer: Any) -> list[AnswerPair]:
    """The same questions with the true and the false object as right and wrong answers."""
    found = []
    for premise in premises(CALIBRATION):
        opened = cloze(tokenizer, premise.cloze.user, premise.cloze.opening)
        (prompt, right), (_, wrong) = (
            encode_answer(tokenizer, opened, answer[0]) for answer in (premise.true, premise.false)
        )
        found.append(AnswerPair(prompt, right, wrong))
    return found


def seen_pairs(job: Job) -> list[Pair]:
    """For each example whether a thing is there that is not. Raises CalibrationError where no objects are boxed."""
    found = []
    for question in asked(job.model, job.processor, job.examples, seed=job.seed):
        if not question.there:
            prompt = question.choice.prompt
            rows = spelling(job.processor, prompt, question.name)
            hidden = masked(job.processor, prompt, rows)
            found.append(Pair(prompt, hidden, rows, question.choice.right, question.choice.pictures))
    return found


def spelling(tokenizer: Any, prompt: Sequence[int], span: str) -> list[int]:
    """The prompt's tokens that spell `span` where it stands last before the last question mark.

    Raises CalibrationError where the tokens do not decode to it.
    """
    skipped = max(0, len(prompt) - TAIL)
    text, places = characters(text_tokenizer(tokenizer), prompt[skipped:])
    start = text.lower().rfind(span.lower(), 0, text.rfind("?"))
    if start < 0:
        raise CalibrationError(f"the tokenizer does not spell {span!r} in {text!r}, so its tokens cannot be told")
    return [n for n, (first, stop) in enumerate(places, skipped) if first < start + len(span) and stop > start]


def masked(tokenizer: Any, prompt: Sequence[int], rows: Sequence[int]) -> list[int]:
    """The prompt with the mask's tokens in these rows."""
    mask = text_tokenizer(tokenizer)(MASK, add_special_tokens=False)["input_ids"]
    changed = dict(zip(rows, mask * len(rows), strict=False))
    return [changed.get(n, token) for n, token in enumerate(prompt)]


def _look(model: Any, pairs: Sequence[Pair]) -> Sums:
    with Direct(model) as direct, torch.no_grad():
        found = [influences(direct, pair) for pair in pairs]
    kept = [one for one in found if one is not None]
    sums = {name: torch.zeros(direct.facts.layers, direct.facts.heads) for name in ("chosen", "influence")}
    for influence in kept:
        sums["chosen"] += counted(influence)
        sums["influence"] += influence
    return {**sums, "kept": torch.tensor(float(len(kept)))}


def counted(influence: Tensor, most: int = MOST, least: float = LEAST) -> Tensor:
    """Which heads count for a question [layers, heads]: the `most` with the largest influence, if above `least`."""
    best = torch.zeros(influence.numel(), dtype=torch.bool)
    best[influence.flatten().topk(min(most, influence.numel())).indices] = True
    return best.view_as(influence) & (influence > least)


def influences(direct: Direct, pair: Pair) -> Tensor | None:
    """P'(true answer) - P(true answer) by head [layers, heads]; None for a question that does not fool the model."""
    facts, patched = direct.facts, list(pair.rows)
    entering: dict[int, Tensor] = {}  # the hidden state of both runs, clean first, by the layer that it enters
    outputs: dict[int, Tensor] = {}  # head outputs of both in the patched rows [2, R, H, d]

    def keep(layer: int, output: Tensor) -> None:
        outputs[layer] = output[:, patched]

    watch: Edits = {
        layer: [InputProbe(partial(entering.__setitem__, layer)), OutputProbe(partial(keep, layer))]
        for layer in range(facts.layers)
    }
    plain = _log_probabilities(direct, [pair.clean, pair.masked], pair, watch)
    right = (plain.argmax(-1) == _target(pair, plain)).all(-1)
    if bool(right[0]) or not bool(right[1]):
        return None
    clean = _probability(plain, pair)[0]
    begun, start = DynamicCache(), 0 if pair.pictures else min(patched)  # what stands before is read once
    if start:
        direct({}, torch.tensor([pair.clean[:start]]), cache=begun, logits_to_keep=1)
    rows, changed = [row - start for row in patched], []
    for layer in range(facts.layers):
        below = entering[layer][:1, start:]
        frozen = {later: [_pinned(rows, outputs[later][:1])] for later in range(layer + 1, facts.layers)}
        for heads in torch.arange(facts.heads).split(max(1, TOKENS // below.shape[1])):
            one_masked = outputs[layer][:1].repeat(len(heads), 1, 1, 1)
            one_masked[torch.arange(len(heads)), :, heads] = outputs[layer][1, :, heads].transpose(0, 1)
            entered = Input(_constant(below.expand(len(heads), -1, -1)))
            edits: Edits = {layer: [entered, _pinned(rows, one_masked)], **frozen}
            with direct.without_layers(layer):  # they would repeat the clean run
                cache = copies(begun, len(heads)) if start else None
                seen = _log_probabilities(direct, [pair.clean] * len(heads), pair, edits, cache)
            changed.append(_probability(seen, pair) - clean)
    return torch.cat(changed).view(facts.layers, facts.heads).cpu()


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: value


def _pinned(rows: list[int], to: Tensor) -> Add:
    """Head outputs that are `to` [B or 1, R, H, d] in these rows of the pass."""

    def change(output: Tensor) -> Tensor:
        added = torch.zeros_like(output)
        added[:, rows] = to - output[:, rows]
        return added

    return Add(change)


def _log_probabilities(
    direct: Direct,
    prompts: Sequence[Sequence[int]],
    pair: Pair,
    edits: Edits,
    cache: DynamicCache | None = None,
) -> Tensor:
    """Of every token in place of each of the true answer's, behind each prompt [B, T, vocabulary].

    `cache` holds the prompts' beginning; prompts with pictures have none.
    """
    size = len(pair.true)
    ids = torch.tensor([[*prompt, *pair.true[:-1]] for prompt in prompts])
    more = row_by_row([pair.pictures] * len(prompts), ids.shape[1])
    if cache is not None:
        start = int(cache.get_seq_length())
        more["position_ids"] = torch.arange(start, ids.shape[1], device=direct.model.device).expand(len(ids), -1)
        ids = ids[:, start:]
    return direct(edits, ids, cache=cache, logits_to_keep=size, **more)[:, -size:].float().log_softmax(-1)


def _target(pair: Pair, like: Tensor) -> Tensor:
    return torch.tensor(pair.true, device=like.device).expand(len(like), -1)


def _probability(seen: Tensor, pair: Pair) -> Tensor:
    """P(true answer) [B]."""
    return seen.gather(-1, _target(pair, seen)[..., None]).sum((1, 2)).exp()
