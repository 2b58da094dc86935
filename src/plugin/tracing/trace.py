"""What an answer leans on: for each generated token, where the model looks and how sure it is.

Probes look at the row that predicts the token, in the layers of the traced heads; nothing is changed, and a layer that
has only probes computes the same bits. The table has one row per answer and token:

- row, position: which of the sequences that `generate` returned, and the token's place in its answer, from 0.
- token, text: its id, and the characters that it adds to the answer (None without a processor).
- image, query, prompt, output: the attention on image tokens, on the user's question, on the rest of the prompt and on
  the answer so far, after every edit; mean over the traced heads. Together 1, if the edits keep the sum.
- entropy: of the model's next-token distribution, in nats. probability: of the token in it. Both with the methods' edits,
  before a decoder's contrast, temperature or any other logits processor.
- divergence: Jensen-Shannon divergence of that distribution and the branch's, in nats. contrast: how much likelier the
  model finds the token than its branch, log p - log p'. None without a decoder that has a branch.

Beams cost no more than other rows: the table follows each final answer back through the beams it came from.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import StoppingCriteriaList

from ...common.errors import CalibrationError, ConfigError, UnsupportedModelError
from ...common.validation import describe
from ..branches.heads import Head, best_heads
from ..calibration.sections import how_to_get
from ..core.method import ModelFacts, Values
from .grounding import answer_text, word_table
from .record import Chosen, Record

Section = Literal["image_heads", "visual_heads", "concept_heads", "retrieval_heads"]
SECTIONS: tuple[Section, ...] = ("image_heads", "visual_heads", "concept_heads", "retrieval_heads")


class TraceSettings(Values):
    """What `attach(..., trace=)` takes: True for these defaults, or a mapping."""

    heads: Literal["auto", "all"] | Section | list[Head] = Field(
        default="auto",
        description="whose attention is averaged: a calibration section, [layer, head] pairs, or all; auto: the heads of"
        " the section grounding, else of the first that has scores among " + ", ".join(SECTIONS) + ", else all heads of"
        " layers that are spread evenly",
    )
    count: int = Field(default=8, gt=0, description="how many heads of a section at most, by score")
    layers: int = Field(
        default=2, gt=0, description="layers that they lie in, the strongest ones: each costs some kernels per token"
    )
    maps: bool = Field(default=False, description="keep the attention on every image token, for `Plug.image_maps`")

    @classmethod
    def load(cls, given: bool | Mapping[str, Any] | TraceSettings) -> TraceSettings | None:
        """The settings, None for False. Raises ConfigError."""
        if isinstance(given, TraceSettings):
            return given
        if isinstance(given, bool):
            return cls() if given else None
        if not isinstance(given, Mapping):
            raise ConfigError(f"trace is True, False or a mapping of settings, not {type(given).__name__}")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise ConfigError(describe(error, "trace", cls)) from error


def traced_heads(settings: TraceSettings, facts: ModelFacts) -> tuple[Head, ...]:
    """The heads whose attention is recorded. Raises CalibrationError, or ConfigError for an empty list."""
    chosen, known = settings.heads, facts.calibration
    every = tuple((layer, head) for layer in range(facts.layers) for head in range(facts.heads))
    if isinstance(chosen, list):
        if not chosen:
            raise ConfigError("trace.heads is empty: give [layer, head] pairs, or leave it out")
        return facts.check_heads(chosen, "trace.heads")
    if chosen == "auto":
        if known is not None and known.grounding is not None:
            return tuple(known.grounding.heads)
        scored = (name for name in SECTIONS if getattr(getattr(known, name, None), "scores", None) is not None)
        section = next(scored, None)
    else:
        section = None if chosen == "all" else chosen
    layers = min(settings.layers, facts.layers)
    if section is None:
        spread = {(2 * part + 1) * facts.layers // (2 * layers) for part in range(layers)}
        return every if chosen == "all" else tuple(head for head in every if head[0] in spread)
    scores = facts.need(section, "trace", "option").scores
    if scores is None:
        raise CalibrationError(
            f"trace: the calibration's section '{section}' has no head scores: {how_to_get(section, facts.name)}, or choose"
            " other heads"
        )
    count = min(settings.count, layers * facts.heads)
    strength = [sum(sorted(row)[-math.ceil(count / layers) :]) for row in scores]
    strongest = sorted(range(facts.layers), key=lambda layer: -strength[layer])[:layers]
    eligible = [row if layer in strongest else [-math.inf] * facts.heads for layer, row in enumerate(scores)]
    return best_heads(eligible, count, facts, "trace.count")


class Tracer:
    """Traces the calls of `generate` under one attachment. `record` is the call under way or the last one."""

    def __init__(self, settings: TraceSettings, facts: ModelFacts):
        if facts.across:
            raise UnsupportedModelError(
                f"trace records the attention on image tokens, and '{facts.name}' has none: it reads the image by"
                " cross-attention; leave trace out"
            )
        self.settings, self.tokenizer = settings, facts.text.tokenizer
        self.heads = traced_heads(settings, facts)
        known = None if facts.calibration is None else facts.calibration.grounding
        # A score holds for the heads that it was measured with.
        same = known is not None and set(traced_heads(TraceSettings(), facts)) == set(self.heads)
        self.grounding = known if same else None
        self.record: Record | None = None
        layers = sorted({layer for layer, _ in self.heads})
        self._layers = {n: torch.tensor([head for layer, head in self.heads if layer == n]) for n in layers}

    @property
    def open(self) -> Record | None:
        """The record of the call under way, None outside `generate`."""
        return self.record if self.record is not None and self.record.open else None

    def generate(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], default: Any
    ) -> Any:
        """Call `generate` and record it; `default` is the model's generation config."""
        self.record = None
        arguments = {**inspect.signature(original).bind_partial(*args).arguments, **kwargs}
        configs = (arguments.get("generation_config"), default)

        def setting(name: str) -> Any:
            given = (arguments.get(name), *(getattr(config, name, None) for config in configs))
            return next((value for value in given if value is not None), None)

        if setting("custom_generate") is not None:
            raise UnsupportedModelError(
                "a custom generation loop (custom_generate) cannot be traced, as it may choose tokens in any way: leave"
                " trace out, or generate with the model's own loop"
            )
        beams = setting("num_beams") or 1
        record = self.record = Record(self._layers, len(self.heads), beams, self.settings.maps)
        arguments["stopping_criteria"] = StoppingCriteriaList(
            [*(arguments.get("stopping_criteria") or ()), Chosen(record)]
        )
        asked = setting("return_dict_in_generate")
        if beams > 1:  # the way of each answer through the beams comes with the whole output
            arguments["return_dict_in_generate"] = True
        try:
            output = original(**arguments)
        except BaseException:
            self.record = None
            raise
        record.finish(
            output if isinstance(output, Tensor) else output.sequences,
            getattr(output, "beam_indices", None),
            setting("eos_token_id"),
            setting("pad_token_id"),
        )
        return output if asked or beams == 1 else output.sequences

    def table(self) -> list[dict[str, Any]]:
        """The rows of the last call."""
        return [] if self.record is None else self.record.table(self.tokenizer)

    def words(self) -> list[dict[str, Any]]:
        """The content words of the last call's answers (`grounding.word_table`)."""
        return word_table(self._spelled(), self.grounding)

    def texts(self) -> list[str]:
        """The text of each answer of the last call, without special tokens."""
        rows = 0 if self.record is None else self.record.rows
        table = self._spelled()
        return [answer_text([token for token in table if token["row"] == row]) for row in range(rows)]

    def _spelled(self) -> list[dict[str, Any]]:
        """The table without special tokens."""
        if self.tokenizer is None:
            raise ConfigError("words need the answer's text: pass processor=... to attach")
        special = set(self.tokenizer.all_special_ids)
        return [token for token in self.table() if token["token"] not in special]

    def image_maps(self) -> list[Tensor]:
        """For each answer of the last call, what of the attention each image token gets [tokens, image tokens]."""
        if not self.settings.maps:
            raise ConfigError("no image maps were recorded: attach(..., trace={'maps': True})")
        return [] if self.record is None else self.record.image_maps()
