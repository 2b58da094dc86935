"""The sections of a calibration file: one class per fact about a model.

What a value must fit of the model that the file is for, its type says: `Layer` and `Head` exist there, a `HeadTable` has
a row for each layer and a number for each query head in it.
"""

from __future__ import annotations

import shlex
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, field_validator

MEASURED = frozenset(
    [
        "sink",
        "gaze",
        "visual_heads",
        "replies",
        "gate_thresholds",
        "image_heads",
        "concept_heads",
        "ocr_heads",
        "retrieval_heads",
        "inducing_heads",
        "conflict_heads",
        "word_heads",
        "head_gates",
        "first_token",
        "premise_heads",
    ]
)
"""The sections that `sightline calibrate` measures."""


def profile_of(section: str) -> str:
    """The name of the profile that measures a section."""
    return "sinks" if section == "sink" else section.replace("_", "-")


def how_to_get(section: str, model: str) -> str:
    """What to do where a section is missing: the command that measures it, or where else it comes from."""
    if section not in MEASURED:
        return f"pass calibration=PATH with that section for '{model}'"
    return f"run `sightline calibrate {shlex.quote(model)} --profile {profile_of(section)}`, or pass calibration=PATH"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Section):
    """Where values come from."""

    kind: Literal["measured", "published"] | None = Field(default=None, description="none in a section: as the file's")
    command: str | None = Field(default=None, description="the command that measured them")
    reference: str | None = Field(default=None, description="the paper or repository that published them, or a remark")
    versions: dict[str, str] | None = Field(default=None, description="libraries that measured numbers depend on")
    date: str | None = None
    samples: int | None = Field(default=None, description="prompts behind a measured value")
    seconds: float | None = Field(default=None, description="wall time of the measurement")


class SourcedSection(Section):
    """A section of measured or published values."""

    source: Source | None = Field(
        default=None, description="where these values come from; a line of text is its `reference`"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {"reference": value} if isinstance(value, str) else value

    def fault(self, layers: int, heads: int) -> str | None:
        """What does not fit a model of so many layers and heads, None if nothing."""
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name, None)
            faults = (demand.fault(part, layers, heads) for demand, part in _demands(kind, value) if part is not None)
            found = next((fault for fault in faults if fault is not None), None)
            if found is not None:
                return f"{name} {found}"
        return None

    def tables(self) -> dict[str, HeadTable]:
        """The [layer][head] tables that are there, by name."""
        kinds = get_type_hints(type(self), include_extras=True)
        return {
            name: value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
            and any(demand is IS_HEAD_TABLE for demand, _ in _demands(kinds[name], value))
        }


@dataclass(frozen=True)
class Fits:
    """A type's demand on its values: what is wrong with one in a model of so many layers and heads, None if nothing."""

    fault: Callable[[Any, int, int], str | None]


def _no_such_layer(layer: int, layers: int, heads: int) -> str | None:
    return None if 0 <= layer < layers else f"names layer {layer}, but the model has {layers} (0..{layers - 1})"


def _no_such_head(pair: tuple[int, int], layers: int, heads: int) -> str | None:
    inside = 0 <= pair[0] < layers and 0 <= pair[1] < heads
    named = f"names head {pair[0]}-{pair[1]}, but the model has {layers} layers of {heads} heads"
    return None if inside else named


def _other_shape(table: list[list[float]], layers: int, heads: int) -> str | None:
    fits = len(table) == layers and all(len(row) == heads for row in table)
    return None if fits else f"must be {layers} lists of {heads} numbers"


Layer = Annotated[int, Fits(_no_such_layer)]
Head = Annotated[tuple[int, int], Fits(_no_such_head)]  # layer, query head
IS_HEAD_TABLE = Fits(_other_shape)
HeadTable = Annotated[list[list[float]], IS_HEAD_TABLE]  # [layer][query head]


def _demands(kind: Any, value: Any) -> Iterator[tuple[Fits, Any]]:
    """Every demand in a type, with the part of the value that it is made on."""
    if get_origin(kind) is Annotated:
        kind, *marks = get_args(kind)
        yield from ((mark, value) for mark in marks if isinstance(mark, Fits))
    if get_origin(kind) in (Union, types.UnionType):
        for part in get_args(kind):
            yield from _demands(part, value)
    elif get_origin(kind) is list and isinstance(value, list):
        for item in value:
            yield from _demands(get_args(kind)[0], item)


Signal = Literal["image", "query", "prompt", "output", "entropy", "probability"]  # columns of `Plug.trace`
Dim = Annotated[int, Field(ge=0)]


class TokenCounts(Section):
    """Mean number of tokens per prompt and layer."""

    visual: float = Field(ge=0)
    text: float = Field(ge=0)


class Sink(SourcedSection):
    """VAR's sink test: a token is a sink where max over dims of |x_d| / RMS(x) exceeds tau (arXiv 2503.03321)."""

    dims: list[Dim] = Field(min_length=1, description="massive hidden dimensions")
    tau: float = Field(gt=0)
    contrast: float | None = Field(
        default=None,
        ge=0,
        description="how many times the weakest of dims stands out as far as the next dimension; below 2 none does, and"
        " tau lies above every token",
    )
    first: list[Layer] | None = Field(
        default=None, description="layers where the first token of most prompts is a sink"
    )
    tokens: TokenCounts | None = Field(default=None, description="sinks")
    secondary: TokenCounts | None = Field(
        default=None,
        description="other tokens than the first with its state, in the layers of `first`: secondary sinks. Where image"
        " tokens are among them, boosts leave them out",
    )
    cosine: float | None = Field(
        default=None, gt=0, lt=1, description="|cos| to the first token's state above which a token has it; none: 0.9"
    )


class Gaze(SourcedSection):
    """GIFT's layers (arXiv 2510.22067)."""

    saliency_layers: list[Layer] = Field(min_length=1)
    enhanced_layers: list[Layer] = Field(min_length=1)
    alpha: float = Field(gt=0)


class VisualHeads(SourcedSection):
    """VHR's layers and, where measured, each head's mean visual head divergence (arXiv 2412.13949)."""

    layers: list[Layer] | None = Field(default=None, min_length=1)
    scores: HeadTable | None = Field(default=None, description="mean divergence, squared, [layer][query head]")
    chosen: HeadTable | None = Field(
        default=None, description="share of prompts in which VHR chose the head, in `layers`"
    )


class ImageHeads(SourcedSection):
    """VAR's image-centric heads: a row of attention counts where at least 0.2 of it lies on the image."""

    scores: HeadTable = Field(description="mean attention on image tokens that are no sinks, all rows behind the image")
    centric: HeadTable | None = Field(default=None, description="share of these rows that count")
    ratio: HeadTable | None = Field(default=None, description="mean visual non-sink ratio of the rows that count")
    rho: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="non-sink ratio that splits the rows best (the paper's rho); none: no sinks",
    )


class Replies(SourcedSection):
    """How long the plain model's replies are; boosts that can run away are guarded by it."""

    tokens: float = Field(gt=0, description="mean length in tokens, without the end token")


class BoxHeads(SourcedSection):
    """Heads that look at a thing while the model names it."""

    scores: HeadTable = Field(description="mean over its tokens of 1 / image tokens of its box (arXiv 2506.05344)")
    hits: HeadTable | None = Field(
        default=None, description="mean share of the words, where hit at all (arXiv 2505.15865)"
    )


class RetrievalHeads(SourcedSection):
    """How much each head copies a needle out of a haystack (arXiv 2404.15574); 0.1 and more is a retrieval head."""

    scores: HeadTable


class InducingHeads(SourcedSection):
    """HICD's score per head: importance for right answers, plus the scaled excess over wrong ones (arXiv 2503.12908)."""

    scores: HeadTable


class FirstToken(SourcedSection):
    """ZeroTuning's factors on the attention that each head pays to the first token (arXiv 2505.11739); 1 leaves it."""

    gains: Annotated[list[list[Annotated[float, Field(gt=0)]]], IS_HEAD_TABLE] = Field(
        description="[layer][query head]"
    )


class FocusHeads(SourcedSection):
    """Focus Directions (arXiv 2503.23306): pairs (layer, query head), and the query direction [head size] of each."""

    heads: list[Head] = Field(min_length=1)
    directions: list[list[float]] = Field(description="as many as heads")


class Grounding(SourcedSection):
    """How the trace of a word tells whether the picture holds what it names (`sightline generate --explain`)."""

    heads: list[Head] = Field(min_length=1, description="(layer, query head) whose attention is averaged")
    weights: dict[Signal, float] = Field(
        min_length=1, description="a word's score: the sum of these times the columns of the trace at its first token"
    )
    threshold: float = Field(description="a word with a lower score is weakly grounded")


class Threshold(Section):
    """Where one signal parts hallucinated from true object words (Youden: the shares beyond it differ most)."""

    value: float
    side: Literal["above", "below"] = Field(description="where the hallucinated words are")
    auroc: float = Field(
        ge=0.5, le=1, description="how often a hallucinated word lies further on that side than a true one"
    )
    of_hallucinated: float = Field(ge=0, le=1, description="share of these words beyond the threshold")
    of_true: float = Field(ge=0, le=1, description="the same of true words")


class Thresholds(Section):
    """By signal of a gate; what each is: `core/when.py`."""

    entropy: Threshold
    probability: Threshold
    image_attention: Threshold


class GateThresholds(SourcedSection):
    """Where a gate opens whose setting has no threshold: at signals of a word's first token, or of the one before it."""

    now: Thresholds
    previous: Thresholds
    words: int = Field(gt=0, description="object words behind them")
    wrong: int = Field(gt=0, description="how many of these were hallucinated")


class ConflictHeads(SourcedSection):
    """JuICE's heads (arXiv 2503.10996): pairs (layer, query head), best first, to enlarge and to suppress."""

    enhance: list[Head] = Field(default_factory=list)
    suppress: list[Head] = Field(default_factory=list)


class PremiseHeads(SourcedSection):
    """FAITH's heads (arXiv 2402.19103): pairs (layer, query head) that carry a question's false premise, best first."""

    heads: list[Head] = Field(min_length=1)
    shares: HeadTable | None = Field(
        default=None, description="share of the kept questions for which the head counts: influence above 0.1, top 20"
    )
    influence: HeadTable | None = Field(
        default=None, description="mean change of P(true answer) when the head sees the question without its premise"
    )


class HeadGates(SourcedSection):
    """Causal Head Gating (arXiv 2505.13737): what each head does for right answers, [layer][query head] in [0, 1]."""

    facilitating: HeadTable = Field(description="gate that is left under a pull towards 0")
    irrelevant: HeadTable = Field(description="(1 - interfering) x (1 - facilitating)")
    interfering: HeadTable = Field(description="what is missing of the gate under a pull towards 1")

    @property
    def gates(self) -> HeadTable:
        """The gates under a pull towards 1: only heads that do harm are turned down."""
        return [[1 - value for value in row] for row in self.interfering]


class WordHeads(SourcedSection):
    """Head Pursuit (arXiv 2510.21518): how much of what a head writes is words of a concept."""

    scores: HeadTable = Field(description="share of the variance of its outputs that few of the words explain")
    words: list[str] | None = Field(default=None, description="the words")
