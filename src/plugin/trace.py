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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..decoders import rules
from ..decoders.heads import Head, best_heads
from .edits import Edit, Rows, WeightProbe
from .errors import CalibrationError, ConfigError, LayoutError, UnsupportedModelError
from .grounding import answer_text, word_table
from .layout import Layout, Step
from .method import ModelFacts, Settings
from .validation import describe
from .words import characters

ROOM = 256  # answer tokens by which the groups grow
MASSES = ("image", "query", "prompt", "output")
Section = Literal["image_heads", "visual_heads", "concept_heads", "retrieval_heads"]
SECTIONS: tuple[Section, ...] = ("image_heads", "visual_heads", "concept_heads", "retrieval_heads")


class TraceSettings(Settings):
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
        raise CalibrationError(f"trace: the calibration's section '{section}' has no head scores: choose other heads")
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
        self.settings, self.tokenizer = settings, facts.tokenizer
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
            [*(arguments.get("stopping_criteria") or ()), _Chosen(record)]
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


@dataclass(frozen=True)
class Look:
    """The last row of one pass: masses [R, 4] and attention on prompt tokens [R, n], both summed over heads, entropy

    [R, 1] and divergence [R].
    """

    masses: Tensor
    entropy: Tensor
    divergence: Tensor | None
    prompt: Tensor | None

    def cpu(self) -> Look:
        return Look(*(None if part is None else part.cpu() for part in vars(self).values()))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Choice:
    """What could follow one pass: tokens [G, c] of each group of beams, and their log p and log p' [G, b, c]."""

    tokens: Tensor
    base: Tensor
    weak: Tensor | None

    def cpu(self) -> Choice:
        return Choice(*(None if part is None else part.cpu() for part in vars(self).values()))  # type: ignore[arg-type]


class Record:
    """One call of `generate`. R rows run in each pass: G groups of b beams, b = 1 where nothing is searched."""

    def __init__(self, layers: dict[int, Tensor], heads: int, beams: int, maps: bool):
        self._layers, self._heads, self._beams, self._maps = layers, heads, beams, maps
        self.open = True
        self._layout: Layout | None = None
        self._groups = torch.empty(0)  # which tokens are image, query, rest of the prompt and answer [R, n + room, 4]
        self._seen: dict[
            tuple[int, int], Tensor
        ] = {}  # summed weights [R, K] of the pass under way, by first key and K
        self._log: tuple[Tensor, Tensor | None] | None = None  # log p and log p' [R, V] of the last pass
        self._looks: list[Look] = []
        self._choices: list[Choice] = []
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
        self._choices.append(Choice(chosen, ours, theirs))

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


class _Chosen(StoppingCriteria):
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
