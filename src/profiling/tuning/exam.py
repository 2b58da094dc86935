"""Captions and yes/no questions about pictures whose objects are known: what tuning scores a configuration by."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...benchmarks.public.captions import ChairBenchmark
from ...benchmarks.public.chair import Chair
from ...benchmarks.public.equal import Curve
from ...benchmarks.public.object_questions import PopeBenchmark
from ...benchmarks.public.pope import build, statistics
from ...common.errors import SightlineError
from ...common.pictures import open_image
from ...common.readers import Notes
from ...common.statistics import SampledScore
from ...models.prompting import ask
from ...models.samples import TESTBED, Example, Sample
from ..data.examples import examples
from ..pace import Pace
from ..probes.naming import vocabulary

CAPTION_TOKENS, ANSWER_TOKENS = 128, 5
CURVE = "curve"
HIGHER = {
    "equal": False,
    "chair_i": False,
    "chair_s": False,
    "recall": True,
    "precision": True,
    "f1": True,
    "accuracy": True,
    "words": True,
    "time": False,
}
"""The scores of an exam, and whether more is better.

`equal` is CHAIR_I at equal recall (`benchmarks.public.equal`), beyond the longest plain captions against these; `time` the
seconds of a sitting over plain's.
"""


@dataclass(frozen=True)
class ExamScores:
    """The scores of one configuration.

    curve: the plain model's captions cut shorter, which they are compared with. seconds: how long the replies took.
    """

    chair: Chair
    accuracy: SampledScore
    curve: Curve | None = None
    seconds: float = 0.0

    @property
    def ratios(self) -> dict[str, SampledScore]:
        """What can be resampled over pictures."""
        ours = {
            "chair_i": "i",
            "chair_s": "s",
            "recall": "recall",
            "precision": "precision",
            "f1": "f1",
            "words": "words",
        }
        found: dict[str, SampledScore] = {name: self.chair.ratios[key] for name, key in ours.items()}
        if self.curve is not None:
            found["equal"] = self.chair.equal(self.curve, clamped=True)
        return {**found, "accuracy": self.accuracy}

    @property
    def values(self) -> dict[str, float]:
        """Rates are fractions; words are a mean per caption; accuracy is the mean of POPE's three splits."""
        return {name: float(score.value) for name, score in self.ratios.items()}


@dataclass
class Exam:
    """One caption for every example, and questions after its objects in three splits."""

    examples: Sequence[Example]
    captions: ChairBenchmark
    questions: PopeBenchmark
    pace: Pace = field(default_factory=lambda: Pace(8))

    @classmethod
    def of(cls, examples: Sequence[Example], *, seed: int = 0, pairs: int = 2, pace: Pace | None = None) -> Exam:
        """Captions and questions about examples: `pairs` objects that are there, and as many that are not.

        Objects are those with boxes, and those that a caption by people names.

        Raises:
            SightlineError: no object is known.
        """
        if not any(example.objects for example in examples):
            raise SightlineError("tuning needs pictures whose objects are known: give boxes, as JSON lines or COCO")
        words = vocabulary(examples)
        truths: list[Collection[str]] = [
            {region.label for region in example.objects} | {one.name for one in words.mentions(example.caption or "")}
            for example in examples
        ]
        captions = ChairBenchmark(list(examples), truths=truths, vocabulary=words)
        captions.new_tokens = CAPTION_TOKENS
        made = build(truths, *statistics(truths), pairs=pairs, seed=seed)
        questions = PopeBenchmark.of_questions(made, {example.id: example.image for example in examples})
        questions.new_tokens = ANSWER_TOKENS
        return cls(examples, captions, questions, pace or Pace(8))

    @property
    def prompts(self) -> int:
        """How many prompts one sitting has; plain's has a longer caption for each picture besides."""
        return len(self.captions.samples) + len(self.questions.samples)

    def sit(
        self,
        model: Any,
        processor: Any,
        config: Mapping[str, Any] | None,
        *,
        calibration: Any = None,
        curve: Curve | None = None,
        name: str = "",
        advance: Callable[[int], None] = lambda prompts: None,
    ) -> ExamScores:
        """Ask the model under a configuration; None is the plain model, which makes the curve that others need.

        Args:
            curve: that of the plain model's marks.
            name: what the configuration is called where memory runs out.
            advance: called with the number of prompts that were answered.

        Raises:
            SightlineError: the configuration does not fit the model.
        """
        from ...plugin.attach import attach

        attached = (
            nullcontext() if config is None else attach(model, config, calibration=calibration, processor=processor)
        )
        begun = time.perf_counter()
        with attached:
            described, answered = (
                self._ask(model, processor, one.samples, one.new_tokens, name, advance)
                for one in (self.captions, self.questions)
            )
        seconds = time.perf_counter() - begun
        if config is None:
            longer = self._ask(
                model, processor, self.captions.yardstick(), self.captions.new_tokens, name, lambda prompts: None
            )
            curve = self.captions.cuts(described, longer)
        mean = self.questions.score(answered)["mean"]
        return ExamScores(self.captions.score(described), mean.ratios["accuracy"], curve, seconds)

    def _ask(
        self,
        model: Any,
        processor: Any,
        samples: Sequence[Sample],
        new_tokens: int,
        name: str,
        advance: Callable[[int], None],
    ) -> list[str]:
        said: list[str] = []
        work = lambda some: ask(model, processor, some, new_tokens)  # noqa: E731
        for replies, _ in self.pace.over(samples, work, name=name):
            said += map(str, replies)
            advance(len(replies))
        return said

    def pictures(self) -> dict[str, str]:
        """SHA-256 of every picture's pixels, and which example it is of."""
        found = {}
        for example in self.examples:
            image = open_image(example.image) if isinstance(example.image, Path) else example.image
            assert image is not None
            found[hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()] = example.id
        return found


def tensors(curve: Curve) -> dict[str, Tensor]:
    """A curve as tensors, to be kept."""
    tables = {name: getattr(curve, name) for name in ("hallucinated", "mentions", "recalled", "objects")}
    found = {f"{CURVE} {name}": torch.tensor(table) for name, table in tables.items()}
    return found | {f"{CURVE} beyond": torch.tensor([curve.beyond])}


def curve_of(kept: Mapping[str, Tensor]) -> Curve | None:
    """The curve among kept tensors."""
    found = {name.removeprefix(f"{CURVE} "): one.numpy() for name, one in kept.items() if name.startswith(CURVE)}
    if not found:
        return None
    hallucinated, mentions, recalled, objects = (
        found[name] for name in ("hallucinated", "mentions", "recalled", "objects")
    )
    return Curve(hallucinated, mentions, recalled, objects, int(found["beyond"][0]))


def exams(
    data: str,
    samples: int,
    report: str | None,
    report_samples: int,
    *,
    seed: int,
    batch: int,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Exam, Exam | None]:
    """What to tune on and what to report on: other pictures of the same folder, or test scenes, unless `report` says.

    Raises:
        SightlineError: a folder cannot be used, or has no pictures left to report on.
    """
    notes, more = Notes(), report_samples if report is None and data != TESTBED else 0
    found = examples(data, samples + more, seed=seed, sees=True, notes=notes)
    shown, rest = found[:samples], found[samples:]
    if report_samples and (report is not None or data == TESTBED):
        rest = examples(report or TESTBED, report_samples, seed=seed, sees=True, notes=notes, split="test")
    for line in notes.lines():
        say(line)
    if report_samples and not rest:
        raise SightlineError(
            f"{data} has no pictures beyond the {samples} that are tuned on: lower --samples, name others with"
            " --report, or do without a report (--report-samples 0)"
        )
    pace = Pace(batch, say)
    return Exam.of(shown, seed=seed, pace=pace), Exam.of(rest, seed=seed, pace=pace) if report_samples else None
