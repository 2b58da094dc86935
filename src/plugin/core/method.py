"""What a method is: settings, and the edits it makes of them for each prompt.

A `Method` lives as long as its attachment and holds nothing of any prompt. For every prompt batch it opens a `Session`,
which holds all state of that prompt and is dropped with it, so that nothing can leak from one call into the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from ...common.errors import CalibrationError, ConfigError, UnsupportedModelError
from ..calibration.files import Calibration
from ..calibration.sections import how_to_get
from .edits import Edit
from .layout import Layout, Step
from .when import When

LARGEST = 1_000_000  # beyond, float32 holds nothing of what a strength is added to
LARGEST_INT = 2**31 - 1


class Values(BaseModel):
    """Base of settings; a field's description is its documentation everywhere.

    A value has its field's type, as it is written (`true` is no number), and numbers have a size whose effect is finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    @field_validator("*")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        for number in _numbers(value):
            largest = LARGEST if isinstance(number, float) else LARGEST_INT
            if abs(number) > largest:
                raise ValueError(f"a number of this kind is at most {largest:,} in size")
        return value


class Settings(Values):
    """Base of a method's and a decoder's settings."""

    when: When | None = Field(
        default=None, description="a gate: act only where the model is unsure (docs/guides/gate.md)"
    )


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float):
        yield value


TokenFinder = Callable[[Tensor], Tensor]  # token ids [B, n] -> mask [B, n]
Readout = Callable[[Tensor, bool], Tensor]  # hidden states [.., hidden], whether the final norm comes first -> logits


def _no_readout(hidden: Tensor, norm: bool) -> Tensor:
    raise UnsupportedModelError("the model's output layer is not known, so that no hidden state can be read out")


@dataclass(frozen=True)
class TextTools:
    """What turns a prompt's tokens into text and back, where `attach` was given a processor.

    words: narrows a mask [B, n] of the question in ids [B, n] to its content words. qformer: the tokenizer of a Q-Former
    that reads the question (InstructBLIP).
    """

    tokenizer: Any = None
    qformer: Any = None
    words: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def of(cls, processor: Any, words: Callable[[Tensor, Tensor], Tensor] | None = None) -> TextTools:
        """Those of a processor or a tokenizer; none of None."""
        return cls(getattr(processor, "tokenizer", processor), getattr(processor, "qformer_tokenizer", None), words)


@dataclass(frozen=True)
class Marks:
    """What the caller of `attach` says of the prompt's tokens.

    context: which are the context that `cad` takes away. emphasis: which are emphasised, or texts that stand in the prompt.
    """

    context: TokenFinder | None = None
    emphasis: TokenFinder | Sequence[str] | None = None


NO_TEXT, NO_MARKS = TextTools(), Marks()


@dataclass(frozen=True)
class ModelFacts:
    """What a method may know of the model: the shape of its text decoder, its parts, and its calibration, if there is one.

    across: layers that read the image by cross-attention; nothing edits them. linear: layers without softmax attention
    (linear, state-space, convolution), which run plain, too. pictures: forward arguments that carry
    pictures. tied: the readout is the input embedding. no_gradients: why gradients cannot be taken through the model.
    """

    name: str
    architecture: str
    layers: int
    heads: int
    hidden: int
    calibration: Calibration | None = None
    readout: Readout = _no_readout
    vocabulary: int = 0
    head_size: int | None = None
    across: frozenset[int] = frozenset()
    linear: frozenset[int] = frozenset()
    pictures: tuple[str, ...] = ()
    tied: bool = False
    no_gradients: str | None = None
    tower: nn.Module | None = None
    text: TextTools = NO_TEXT
    marks: Marks = NO_MARKS

    def need(self, section: str, method: str, kind: str = "method") -> Any:
        """A calibration section. Raises CalibrationError that says which method lacks what."""
        value = getattr(self.calibration, section) if self.calibration is not None else None
        if value is None:
            have = (
                f"the calibration of '{self.calibration.model}' has none"
                if self.calibration
                else "there is no calibration"
            )
            raise CalibrationError(
                f"{kind} '{method}' needs the calibration section '{section}' and {have}:"
                f" {how_to_get(section, self.name)}, or give the values in its own settings"
            )
        return value

    def own(self, numbers: Iterable[int]) -> list[int]:
        """Those of the layers `numbers` whose keys are the sequence's tokens."""
        return [number for number in numbers if number not in self.across | self.linear]

    def proportion(self, first: int, stop: int) -> list[int]:
        """Layers `first:stop` of 32 in proportion, at least one before those that read an image are left out."""
        start = min(round(self.layers * first / 32), self.layers - 1)
        return self.own(range(start, max(round(self.layers * stop / 32), start + 1)))

    def check_heads(self, pairs: Sequence[tuple[int, int]], what: str) -> tuple[tuple[int, int], ...]:
        """Distinct (layer, query head) pairs.

        Raises CalibrationError for one that the model does not have, or that belongs to a cross-attention layer.
        """
        for layer, head in pairs:
            if not (0 <= layer < self.layers and 0 <= head < self.heads):
                raise CalibrationError(
                    f"{what} names head {layer}-{head}, but '{self.name}' has {self.layers} layers of {self.heads} heads"
                )
            self._check_own(layer, what)
        return tuple(dict.fromkeys((layer, head) for layer, head in pairs))

    def check_layers(self, numbers: Sequence[int], what: str) -> tuple[int, ...]:
        """Sorted distinct layer numbers.

        Raises CalibrationError for one that the model does not have, or that reads the image by cross-attention.
        """
        for number in numbers:
            if not 0 <= number < self.layers:
                raise CalibrationError(
                    f"{what} names layer {number}, but '{self.name}' has {self.layers} (0..{self.layers - 1})"
                )
            self._check_own(number, what)
        return tuple(sorted(set(numbers)))

    def _check_own(self, layer: int, what: str) -> None:
        if layer in self.across:
            others = ", ".join(map(str, sorted(self.across)))
            raise CalibrationError(
                f"{what} names layer {layer} of '{self.name}', which reads the image by cross-attention and is left alone:"
                f" name layers other than {others}"
            )
        if layer in self.linear:
            own = ", ".join(map(str, self.own(range(self.layers))))
            raise CalibrationError(
                f"{what} names layer {layer} of '{self.name}', which has no softmax attention: those that have are {own}"
            )


class Session:
    """One method on one prompt batch."""

    def read_text_edits(self) -> Mapping[int, Sequence[Edit]]:
        """Probes for the extra pass over the prompt without its image; empty means no such pass is needed."""
        return {}

    def edits(self, step: Step) -> Mapping[int, Sequence[Edit]]:
        """Edits by layer for one forward pass.

        Asked for every pass that holds prompt rows (`step.reading`), then once for all decode passes, whose rows are
        all answer rows. What depends on a single pass belongs into the edits' functions.
        """
        raise NotImplementedError

    #: The edits of the last prompt row need something that the whole prompt's pass yields first (GIFT's saliency).
    hold_back: bool = False
    #: `edits` must see the last prompt row in the same pass as the other rows (VHR's choice of heads).
    whole_prompt: bool = False

    def resume(self, earlier: Any) -> None:
        """Take over what the session of the turn before knows of the part that is not read again."""

    def idle(self) -> dict[int, str]:
        """Why the method can do nothing for a batch row, by row; empty where it acts on all."""
        return {}

    def report(self) -> dict[str, Any]:
        """What the method decided for this prompt, for reports."""
        return {}


def lacking(there: Tensor, reason: str) -> dict[int, str]:
    """The reason for each batch row that lacks something: `there` [B] says which have it."""
    return dict.fromkeys((~there).nonzero().flatten().tolist(), reason)


class Registered:
    """What the registry knows of a method or a decoder. Subclasses describe themselves; the registry names them.

    summary, source: one line each for listings. cost: extra passes and what runs per token. needs: calibration
    sections. needs_image: refuses prompts without any image. weighs_image: weighs image tokens, which a model that reads
    its image by cross-attention does not have. excludes: methods that cannot go with it, and why.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    needs_image: ClassVar[bool] = True
    weighs_image: ClassVar[bool] = False
    excludes: ClassVar[Mapping[str, str]] = {}
    config: ClassVar[type[Settings]]

    def __init__(self, settings: Any, facts: ModelFacts):
        """Bind settings to a model. Raises CalibrationError where a value is missing or does not fit."""
        self.settings = settings
        self.facts = facts
        if self.weighs_image and facts.across:
            raise UnsupportedModelError(
                f"{self.kind} '{self.name}' weighs image tokens, and '{facts.name}' ({facts.architecture}) has none, it reads"
                " its image by cross-attention: use vhr, or the decoders vcd and pai_guidance"
            )


Place = Literal["queries", "logits", "weights", "outputs"]


@dataclass(frozen=True)
class FixedGains:
    """Factors by head [layers, H] that are the same in every row of every prompt.

    seeing: of prompts with a picture only. of: what they multiply, the heads' outputs or their attention on the first
    token, which is then normalised again.
    """

    factors: Tensor
    seeing: bool = False
    of: Literal["outputs", "first"] = "outputs"


class Method(Registered):
    """A registered attention method. `acts` says what its edits change, which tells how it composes (`composition.py`)."""

    kind = "method"
    acts: ClassVar[Place]

    def start(self, layout: Layout) -> Session:
        """Open a session for a prompt batch."""
        raise NotImplementedError

    def around(self) -> AbstractContextManager[None]:
        """Entered around every call of `generate`, and of the model outside it.

        It lets a method watch the vision tower, which runs before a prompt's session opens.
        """
        return nullcontext()

    @classmethod
    def check_fixed(cls, settings: Any) -> None:
        """Raises ConfigError where, with these settings, it does more than `FixedGains` say."""
        raise ConfigError(
            f"method '{cls.name}' does more than scale heads by factors that are known before any prompt: use head_gain,"
            " zerotuning, vhr with 'static: true' or faith with 'rows: all', or generate with transformers"
        )

    def fixed(self) -> FixedGains:
        """All that it does, where `check_fixed` passes: `sightline export` folds it into weights, `serve` carries it."""
        raise NotImplementedError


class Preprocessor(Registered):
    """A registered step before `generate`."""

    kind = "preprocessor"
