"""The sections of a calibration file: one class per fact about a model. `[layer][head]` counts query heads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


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


class Fact(Section):
    """A section of measured or published values."""

    source: Source | None = Field(
        default=None, description="where these values come from; a line of text is its `reference`"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {"reference": value} if isinstance(value, str) else value


Signal = Literal["image", "query", "prompt", "output", "entropy", "probability"]  # columns of `Plug.trace`
HeadScores = list[list[float]]  # [layer][query head]
Dim = Annotated[int, Field(ge=0)]


class TokenCounts(Section):
    """Mean number of tokens per prompt and layer."""

    visual: float = Field(ge=0)
    text: float = Field(ge=0)


class Sink(Fact):
    """VAR's sink test: a token is a sink where max over dims of |x_d| / RMS(x) exceeds tau (arXiv 2503.03321)."""

    dims: list[Dim] = Field(min_length=1, description="massive hidden dimensions")
    tau: float = Field(gt=0)
    contrast: float | None = Field(
        default=None,
        ge=0,
        description="how many times the weakest of dims stands out as far as the next dimension; below 2 none does, and"
        " tau lies above every token",
    )
    first: list[int] | None = Field(default=None, description="layers where the first token of most prompts is a sink")
    tokens: TokenCounts | None = Field(default=None, description="sinks")
    secondary: TokenCounts | None = Field(
        default=None,
        description="other tokens than the first with its state, in the layers of `first`: secondary sinks. Where image"
        " tokens are among them, boosts leave them out",
    )
    cosine: float | None = Field(
        default=None, gt=0, lt=1, description="|cos| to the first token's state above which a token has it; none: 0.9"
    )


class Gaze(Fact):
    """GIFT's layers (arXiv 2510.22067)."""

    saliency_layers: list[int] = Field(min_length=1)
    enhanced_layers: list[int] = Field(min_length=1)
    alpha: float = Field(gt=0)


class VisualHeads(Fact):
    """VHR's layers and, where measured, each head's mean visual head divergence (arXiv 2412.13949)."""

    layers: list[int] | None = Field(default=None, min_length=1)
    scores: HeadScores | None = Field(default=None, description="mean divergence, squared, [layer][query head]")
    chosen: HeadScores | None = Field(
        default=None, description="share of prompts in which VHR chose the head, in `layers`"
    )


class ImageHeads(Fact):
    """VAR's image-centric heads: a row of attention counts where at least 0.2 of it lies on the image."""

    scores: HeadScores = Field(
        description="mean attention on image tokens that are no sinks, all rows behind the image"
    )
    centric: HeadScores | None = Field(default=None, description="share of these rows that count")
    ratio: HeadScores | None = Field(default=None, description="mean visual non-sink ratio of the rows that count")
    rho: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="non-sink ratio that splits the rows best (the paper's rho); none: no sinks",
    )


class Replies(Fact):
    """How long the plain model's replies are; boosts that can run away are guarded by it."""

    tokens: float = Field(gt=0, description="mean length in tokens, without the end token")


class BoxHeads(Fact):
    """Heads that look at a thing while the model names it."""

    scores: HeadScores = Field(description="mean over its tokens of 1 / image tokens of its box (arXiv 2506.05344)")
    hits: HeadScores | None = Field(
        default=None, description="mean share of the words, where hit at all (arXiv 2505.15865)"
    )


class RetrievalHeads(Fact):
    """How much each head copies a needle out of a haystack (arXiv 2404.15574); 0.1 and more is a retrieval head."""

    scores: HeadScores


class InducingHeads(Fact):
    """HICD's score per head: importance for right answers, plus the scaled excess over wrong ones (arXiv 2503.12908)."""

    scores: HeadScores


class FirstToken(Fact):
    """ZeroTuning's factors on the attention that each head pays to the first token (arXiv 2505.11739); 1 leaves it."""

    gains: list[list[Annotated[float, Field(gt=0)]]] = Field(description="[layer][query head]")


class FocusHeads(Fact):
    """Focus Directions (arXiv 2503.23306): pairs (layer, query head), and the query direction [head size] of each."""

    heads: list[tuple[int, int]] = Field(min_length=1)
    directions: list[list[float]] = Field(description="as many as heads")


class Grounding(Fact):
    """How the trace of a word tells whether the picture holds what it names (`sightline generate --explain`)."""

    heads: list[tuple[int, int]] = Field(min_length=1, description="(layer, query head) whose attention is averaged")
    weights: dict[Signal, float] = Field(
        min_length=1, description="a word's score: the sum of these times the columns of the trace at its first token"
    )
    threshold: float = Field(description="a word with a lower score is weakly grounded")


class ConflictHeads(Fact):
    """JuICE's heads (arXiv 2503.10996): pairs (layer, query head), best first, to enlarge and to suppress."""

    enhance: list[tuple[int, int]] = Field(default_factory=list)
    suppress: list[tuple[int, int]] = Field(default_factory=list)


class PremiseHeads(Fact):
    """FAITH's heads (arXiv 2402.19103): pairs (layer, query head) that carry a question's false premise, best first."""

    heads: list[tuple[int, int]] = Field(min_length=1)
    shares: HeadScores | None = Field(
        default=None, description="share of the kept questions for which the head counts: influence above 0.1, top 20"
    )
    influence: HeadScores | None = Field(
        default=None, description="mean change of P(true answer) when the head sees the question without its premise"
    )


class HeadGates(Fact):
    """Causal Head Gating (arXiv 2505.13737): what each head does for right answers, [layer][query head] in [0, 1]."""

    facilitating: HeadScores = Field(description="gate that is left under a pull towards 0")
    irrelevant: HeadScores = Field(description="(1 - interfering) x (1 - facilitating)")
    interfering: HeadScores = Field(description="what is missing of the gate under a pull towards 1")

    @property
    def gates(self) -> HeadScores:
        """The gates under a pull towards 1: only heads that do harm are turned down."""
        return [[1 - value for value in row] for row in self.interfering]


class WordHeads(Fact):
    """Head Pursuit (arXiv 2510.21518): how much of what a head writes is words of a concept."""

    scores: HeadScores = Field(description="share of the variance of its outputs that few of the words explain")
    words: list[str] | None = Field(default=None, description="the words")
