"""The profiles that `sightline calibrate` knows, by name: what each measures, and for which models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..common.errors import ConfigError
from ..common.validation import suggest
from ..plugin.calibration.sections import (
    ConflictHeads,
    FirstToken,
    HeadGates,
    InducingHeads,
    RetrievalHeads,
    SourcedSection,
)
from .data import facts
from .data.needles import default_lengths
from .data.tokenised import AnswerPair
from .job import Job
from .probes import presence, retrieval
from .probes.box_heads import measure_concept_heads, measure_ocr_heads
from .probes.conflict import conflict_heads
from .probes.first_token import first_token
from .probes.gate_thresholds import measure_gate_thresholds
from .probes.gaze import measure_gaze
from .probes.head_gates import head_gates
from .probes.image_heads import measure_image_heads
from .probes.importance import inducing_heads
from .probes.premise_heads import measure_premise_heads, premise_choices
from .probes.replies import measure_replies
from .probes.sinks import measure_sinks
from .probes.visual_heads import measure_visual_heads
from .probes.word_heads import measure_word_heads

ALL = "all"


@dataclass(frozen=True)
class Profile:
    """What is measured under a name, and the section it makes.

    sees, reads: part of `all` for models with and without pictures. pictures: it cannot be measured without.
    """

    section: str
    measure: Callable[[Job], SourcedSection]
    sees: bool = True
    reads: bool = False
    pictures: bool = True


def _retrieval(job: Job) -> RetrievalHeads:
    # A model that finds no needle in the shortest prompts finds none in the longer ones, which take long.
    shortest = default_lengths(job.model)[:1]
    retrieval.measure(job, stage="shortest", lengths=shortest, depths=1, seed=job.seed)
    return retrieval.measure(job, seed=job.seed)


def _questions(job: Job, of_text: Callable[[Job], list[AnswerPair]]) -> list[AnswerPair]:
    """Questions about the job's pictures; those of text where it has none."""
    if job.examples and job.examples[0].image is not None:
        return presence.choices(job.model, job.processor, job.examples, seed=job.seed)
    return of_text(job)


def _facts(job: Job) -> list[AnswerPair]:
    return facts.choices(job.processor, seed=job.seed)


def _inducing(job: Job) -> InducingHeads:
    return inducing_heads(job, _questions(job, _facts))


def _gates(job: Job) -> HeadGates:
    return head_gates(job, _questions(job, lambda job: premise_choices(job.processor)))


def _first(job: Job) -> FirstToken:
    questions = _questions(job, _facts)
    return first_token(job, questions[: len(job.examples)])  # each costs two passes per head


def _conflict(job: Job) -> ConflictHeads:
    return conflict_heads(job, facts.conflicts(job.processor, seed=job.seed))


PROFILES = {
    "sinks": Profile("sink", measure_sinks, reads=True, pictures=False),
    "gaze": Profile("gaze", measure_gaze),
    "visual-heads": Profile("visual_heads", measure_visual_heads),
    "replies": Profile("replies", measure_replies, pictures=False),
    "gate-thresholds": Profile("gate_thresholds", measure_gate_thresholds),
    "image-heads": Profile("image_heads", measure_image_heads),
    "concept-heads": Profile("concept_heads", measure_concept_heads),
    "ocr-heads": Profile("ocr_heads", measure_ocr_heads),
    "retrieval-heads": Profile("retrieval_heads", _retrieval, reads=True, pictures=False),
    "inducing-heads": Profile("inducing_heads", _inducing, reads=True, pictures=False),
    "conflict-heads": Profile("conflict_heads", _conflict, sees=False, reads=True, pictures=False),
    "word-heads": Profile("word_heads", measure_word_heads, sees=False, pictures=False),
    "head-gates": Profile("head_gates", _gates, sees=False, pictures=False),
    "first-token": Profile("first_token", _first, sees=False, pictures=False),
    "premise-heads": Profile("premise_heads", measure_premise_heads, sees=False, reads=True, pictures=False),
}
"""In the order in which they are measured: a later one may need an earlier one's section."""


def chosen(profiles: Sequence[str], sees: bool) -> list[str]:
    """The profiles of these names in the order of measuring; `all` stands for those that suit the model.

    Raises:
        ConfigError: there is no such profile, or it needs pictures and the model takes none.
    """
    wanted: set[str] = set()
    for name in profiles:
        if name == ALL:
            wanted |= {key for key, profile in PROFILES.items() if (profile.sees if sees else profile.reads)}
        elif name not in PROFILES:
            raise ConfigError(
                f"unknown --profile {name!r}{suggest(name, [ALL, *PROFILES])}; there are all, {', '.join(PROFILES)}"
            )
        elif PROFILES[name].pictures and not sees:
            raise ConfigError(f"profile {name!r} needs pictures, but this model reads text only: leave it out")
        else:
            wanted.add(name)
    return [name for name in PROFILES if name in wanted]
