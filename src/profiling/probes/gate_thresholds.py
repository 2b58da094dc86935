"""Thresholds of gates: at which value of a signal the model's hallucinated object words part from its true ones.

The model answers greedily, and every object that an answer names is a case: hallucinated where the annotations of its
picture, which must be complete, lack it (CHAIR's rule). A gate by the token under way would decide from the signals at
the word's first token, where the choice falls, one by the token before from those at that token. Signals are counted in
bins, so that what is kept does not grow; a threshold is the edge where the share of hallucinated words beyond it
exceeds that of true ones most (Youden), in the middle of edges that do as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...benchmarks.public.chair import Words
from ...common.errors import CalibrationError
from ...models.observe import Batch
from ...plugin.attach import attach
from ...plugin.calibration.sections import GateThresholds, Threshold, Thresholds
from ...plugin.core.method import ModelFacts
from ..job import Job
from .naming import spelled, tokens_of, vocabulary

NEW_TOKENS = 96
BINS = 1000
FEW = 20  # words of a kind below which a threshold says little
GUESS = 0.6  # AUROC below which a signal tells little more than a coin
SIGNALS = ("entropy", "probability", "image_attention")
WHEN = ("now", "previous")


def measure_gate_thresholds(job: Job) -> GateThresholds:
    """The section of the calibration file. Raises CalibrationError where no word is true, or none hallucinated."""
    shown = [example for example in job.examples if example.objects]
    if not shown:
        raise CalibrationError("gate-thresholds needs pictures with boxes of all their objects: see --data")
    words, tops = vocabulary(shown), ceilings(job.facts)
    counts = job.total("words", lambda batch: {"counts": _count(batch, job.facts, words)}, shown)["counts"]
    true, wrong = (int(counts[0, 0, kind].sum()) for kind in (0, 1))
    if not true or not wrong:
        raise CalibrationError(
            f"gate-thresholds: the model's answers name {true} objects that are there and {wrong} that are not, and a"
            " threshold parts the two: more --samples may hold both"
        )
    if min(true, wrong) < FEW:
        job.say(f"gate-thresholds: only {true} true and {wrong} hallucinated words: the thresholds are of little worth")
    found = {
        when: Thresholds(**{name: threshold(counts[i, j], tops[j]) for j, name in enumerate(SIGNALS)})
        for i, when in enumerate(WHEN)
    }
    weak = [f"{name} ({when})" for when in WHEN for name in SIGNALS if getattr(found[when], name).auroc < GUESS]
    if weak:
        job.say(f"gate-thresholds: little better than chance (AUROC below {GUESS}): {', '.join(weak)}")
    return GateThresholds(now=found["now"], previous=found["previous"], words=true + wrong, wrong=wrong)


def ceilings(facts: ModelFacts) -> tuple[float, float, float]:
    """The largest value of each signal; the least is zero."""
    return math.log(max(facts.vocabulary, 2)), 1.0, 1.0


def _count(batch: Batch, facts: ModelFacts, words: Words) -> Tensor:
    """How many words there are by `WHEN`, signal, true or hallucinated, and bin of the signal [2, 3, 2, BINS]."""
    tops = ceilings(facts)
    unknown = (tops[0], math.exp(-tops[0]), 0.0)  # before the first token (`reading/gates.py`)
    counts = torch.zeros(len(WHEN), len(SIGNALS), 2, BINS)
    for example, signals, tokens in zip(batch.examples, *_answers(batch, facts), strict=True):
        text, spans = spelled(batch.processor, tokens)
        labels = {words.category(region.label) for region in example.objects}
        for mention in words.mentions(text):
            place = tokens_of(spans, mention.start, mention.end)
            if not place:
                continue
            for when, at in enumerate((place[0], place[0] - 1)):
                for signal, value in enumerate(signals[at] if at >= 0 else unknown):
                    bin_ = min(int(value / tops[signal] * BINS), BINS - 1)
                    counts[when, signal, int(mention.name not in labels), bin_] += 1
    return counts


def _answers(batch: Batch, facts: ModelFacts) -> tuple[list[list[tuple[float, ...]]], list[list[int]]]:
    """Of each example's answer the signals and the ids of its tokens."""
    heads = [[layer, head] for layer in facts.own(range(facts.layers)) for head in range(facts.heads)]
    with attach(batch.model, {}, calibration=None, trace={"heads": heads}) as plug:
        batch.model.generate(**batch.inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        table = plug.trace
    signals: list[list[tuple[float, ...]]] = [[] for _ in batch.examples]
    tokens: list[list[int]] = [[] for _ in batch.examples]
    for one in table:
        signals[one["row"]].append((one["entropy"], one["probability"], one["image"]))
        tokens[one["row"]].append(one["token"])
    return signals, tokens


def threshold(counts: Tensor, top: float) -> Threshold:
    """Of how many true and hallucinated words lie in each bin [2, bins], which reach from zero to `top`."""
    true, wrong = counts / counts.sum(-1, keepdim=True)
    below = torch.cat([counts.new_zeros(2, 1), counts.cumsum(-1)], dim=1) / counts.sum(-1, keepdim=True)  # of each edge
    rank = float((wrong * (below[0, :-1] + true / 2)).sum())  # how often a hallucinated word has more than a true one
    gain = below[0] - below[1] if rank >= 0.5 else below[1] - below[0]
    best = (gain == gain.max()).nonzero()[:, 0]
    run = best[best - torch.arange(len(best)) == best[0]]
    beyond = 1 - below[:, run[0]] if rank >= 0.5 else below[:, run[0]]
    return Threshold(
        value=float(f"{float(run.double().mean()) / (counts.shape[-1]) * top:.4g}"),
        side="above" if rank >= 0.5 else "below",
        auroc=round(max(rank, 1 - rank), 4),
        of_hallucinated=round(float(beyond[1]), 4),
        of_true=round(float(beyond[0]), 4),
    )
