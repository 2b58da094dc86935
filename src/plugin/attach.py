"""attach, wrap, unwrap: putting a configuration to work on a model, and leaving no trace of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..common.errors import ConfigError
from .branches.decoder import DECODERS, Decoder
from .calibration.files import Calibration, find_shipped, model_name
from .calibration.folded import check_not_folded
from .calibration.sections import Grounding
from .config import Config
from .core.host import Host, between_calls
from .core.layout import QueryFinder, TurnFinder
from .core.method import Marks, Method, ModelFacts, TextTools
from .core.registry import METHODS
from .core.wrappers import inner_model
from .methods.emphasis import Emphasised
from .reading.runner import Runner
from .reading.strategies import Reading
from .tracing.trace import Tracer, TraceSettings
from .tracing.words import Tagger, content_words, spacy_tagger

WRAPPED = "_sightline_wrapped"  # attribute of a model that `wrap` was called on


class Plug:
    """An attachment: a configuration bound to a model. A context manager; leaving it (or `detach`) undoes it."""

    def __init__(self, host: Host, config: Config, runner: Runner):
        self.config = config
        self._host, self._runner = host, runner
        self.forward, self.generating, self.generate = runner.forward, runner.generating, runner.generate

    def __enter__(self) -> Plug:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """End this attachment. Detaching twice does nothing."""
        self._host.remove(self)

    def report(self) -> dict[str, dict[str, Any]]:
        """What each method and the decoder did for the last prompt batch, by name; empty before the first.

        `acted`: whether it changed anything. `idle`: why it could do nothing for a batch row, by row, where it could not.
        The rest is what it decided. `left_out`: the layers without softmax attention, which nothing edits, where there are some.
        """
        reading = self._runner.reading
        if reading is None:
            return {}
        left_out = {"left_out": sorted(self._host.linear)} if self._host.linear else {}
        return {name: {**one, **left_out} for name, one in self._runner.effects.report(reading).items()}

    @property
    def trace(self) -> list[dict[str, Any]]:
        """One row per token of the last `generate`, as columns by name (`plugin/trace.py`): `pandas.DataFrame(plug.trace)`.

        Empty before the first call. Raises ConfigError without `attach(..., trace=True)`.
        """
        return self._tracer.table()

    @property
    def words(self) -> list[dict[str, Any]]:
        """One row per content word of the last `generate`'s answers: how well it is grounded (`plugin/grounding.py`).

        Raises ConfigError without `attach(..., trace=True, processor=...)`.
        """
        return self._tracer.words()

    @property
    def texts(self) -> list[str]:
        """The answers of the last `generate` as text, which `words` counts characters in. Raises as `words` does."""
        return self._tracer.texts()

    @property
    def grounding(self) -> Grounding | None:
        """The calibrated score of `words`; None where a rule of thumb stands in."""
        return self._tracer.grounding

    @property
    def image_maps(self) -> list[Tensor]:
        """For each answer of the last `generate`, the attention on each image token of its prompt [tokens, image tokens].

        Raises ConfigError without `attach(..., trace={"maps": True})`.
        """
        return self._tracer.image_maps()

    @property
    def traced_heads(self) -> tuple[tuple[int, int], ...]:
        """The (layer, query head) pairs whose attention the trace averages."""
        return self._tracer.heads

    @property
    def _tracer(self) -> Tracer:
        if self._runner.tracer is None:
            raise ConfigError("nothing was recorded: attach(..., trace=True)")
        return self._runner.tracer

    @property
    def decoder(self) -> Decoder | None:
        """The attached decoder, None without one."""
        return self._runner.decoder

    @property
    def methods(self) -> Mapping[str, Method]:
        """The attached methods by name."""
        return self._runner.methods

    @property
    def reading(self) -> Reading | None:
        """The prompt batch under way, None before the first."""
        return self._runner.reading

    @property
    def active(self) -> bool:
        """Whether anything is attached; without, the model runs plain."""
        return self._runner.active

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Prompts read inside are read to score given answers (`sightline.score`)."""
        self._runner.scoring = True
        try:
            yield
        finally:
            self._runner.scoring = False


def attach(
    model: Any,
    config: Config | Mapping[str, Any] | str | Path,
    *,
    calibration: Calibration | Mapping[str, Any] | str | Path | None = None,
    processor: Any = None,
    query: QueryFinder | None = None,
    tagger: Tagger | None = None,
    context: QueryFinder | None = None,
    emphasis: Emphasised | None = None,
    trace: bool | Mapping[str, Any] | TraceSettings = False,
    check: bool = True,
) -> Plug:
    """Put a configuration to work on a model, for a `with` block or until `detach`.

    Args:
        model: any AutoModelForImageTextToText or AutoModelForCausalLM that is a decoder, or a wrapper of one (peft,
            torch.compile, DistributedDataParallel), loaded with sdpa, eager, flash or flex attention; while attached it runs on
            sdpa, or on eager where sdpa cannot compute it. Its weights are not changed. It may be quantised, spread over
            devices (`device_map`), or over processes by transformers' tensor parallel plan; then every process attaches the
            same.
        config: the name of a method or a decoder, a path to a YAML file, a dict of that shape, or a `Config`.
        calibration: a path, a dict, a `Calibration`, or "auto" for the file shipped under the model's name. It takes
            precedence over the config's. By default the shipped file is used if there is one.
        processor: the model's processor or tokenizer. Its chat template tells which prompt tokens are the user's
            question; without it, every text token behind the last image counts as the question.
        query: overrides that: a function from token ids [B, n] to a boolean mask [B, n].
        context: which prompt tokens are the context that `cad` takes away: a function from ids [B, n] to a mask [B, n].
        emphasis: what `pasta` and `spotlight` emphasise: such a function, or texts that stand in every prompt; without,
            what stands between the marks that their settings name.
        trace: record what each generated token leans on, for `Plug.trace`: True, or settings (`trace.TraceSettings`). Never
            changes the output. `generate` refuses, with the reason, what could not be followed.
        check: prove on a few tokens that edits reach every layer they should and change nothing else (`core/check.py`),
            once per class and configuration; False leaves that out.
        tagger: content words for `words: content`, a function from text to character spans; default spaCy if installed.

    Attachments nest: the innermost is in force (an empty config inside another means the plain model), and leaving it
    brings the outer one back. They are in force in all threads, whose calls of one model queue: one at a time runs, in the
    order in which they came, and `detach` waits for those before it. While anything is attached, `model.config` is a
    private copy: what is changed in it is gone afterwards.

    Raises ConfigError, CalibrationError or UnsupportedModelError; the model is then as it was.
    """
    parsed = Config.load(config)
    check_not_folded(model_name(inner_model(model)), [name for name, _ in parsed.methods])
    with between_calls(model) as host:
        if check:
            host.check()
        chosen = calibration if calibration is not None else parsed.calibration
        model = host.model
        found = Calibration.load(chosen, model) if chosen is not None else find_shipped(model)

        tokenizer = getattr(processor, "tokenizer", processor)
        if query is None and getattr(processor, "chat_template", None):
            query = TurnFinder(processor, host.family.image_ids(model.config))
        tagger = tagger or (spacy_tagger() if tokenizer is not None else None)
        narrow = content_words(tokenizer, tagger) if tokenizer is not None and tagger is not None else None

        facts = host.facts(found, TextTools.of(processor, narrow), Marks(context, emphasis))
        methods = {name: METHODS.find(name)(settings, facts) for name, settings in parsed.methods}
        decoder = None if parsed.decoder is None else DECODERS.find(parsed.decoder[0])(parsed.decoder[1], facts)
        tracing = TraceSettings.load(trace)
        tracer = None if tracing is None else Tracer(tracing, facts)
        plug = Plug(host, parsed, Runner(host, methods, decoder, query, tracer, unproven=not check))
        host.add(plug)
    return plug


def observe(model: Any, make: Callable[[ModelFacts], dict[str, Method]], *, processor: Any = None) -> Plug:
    """Attach methods that are in no registry, made from the model's facts: for profiling runs, which bring probes."""
    with between_calls(model) as host:
        query = TurnFinder(processor, host.family.image_ids(host.model.config)) if processor is not None else None
        runner = Runner(host, make(host.facts(None)), None, query)
        runner.effects.quiet = True  # they only look
        plug = Plug(host, Config(), runner)
        host.add(plug)
    return plug


def wrap(model: Any, config: Config | Mapping[str, Any] | str | Path, **options: Any) -> Any:
    """`attach`, kept on: returns the same model. A second `wrap` replaces the first. Options as for `attach`."""
    plug, inner = attach(model, config, **options), inner_model(model)
    previous = inner.__dict__.get(WRAPPED)
    if previous is not None:
        previous.detach()
    inner.__dict__[WRAPPED] = plug
    return model


def unwrap(model: Any) -> Any:
    """Undo `wrap` exactly and return the model; a model that is not wrapped is returned as it is."""
    plug = inner_model(model).__dict__.pop(WRAPPED, None)
    if plug is not None:
        plug.detach()
    return model
