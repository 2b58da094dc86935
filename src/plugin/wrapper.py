"""attach, wrap, unwrap: putting a configuration to work on a model, and leaving no trace of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .calibration import Calibration, find_shipped
from .config import Config
from .host import HOST, Host
from .layout import QueryFinder, TurnFinder
from .method import Method, ModelFacts
from .registry import find
from .run import Runner
from .words import Tagger, content_words, spacy_tagger

WRAPPED = "_sightline_wrapped"  # attribute of a model that `wrap` was called on


class Plug:
    """An attachment: a configuration bound to a model. A context manager; leaving it (or `detach`) undoes it."""

    def __init__(self, host: Host, config: Config, runner: Runner):
        self.config = config
        self._host, self._runner = host, runner
        self.forward = runner.forward

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
        """What each method decided for the last prompt batch, by method name; empty before the first."""
        run = self._runner.run
        if run is None:
            return {}
        return {name: session.report() for name, session in zip(self._runner.methods, run.sessions, strict=True)}

    @property
    def active(self) -> bool:
        """Whether any method is attached; without, the model runs plain."""
        return bool(self._runner.methods)


def attach(
    model: Any,
    config: Config | Mapping[str, Any] | str | Path,
    *,
    calibration: Calibration | Mapping[str, Any] | str | Path | None = None,
    processor: Any = None,
    query: QueryFinder | None = None,
    tagger: Tagger | None = None,
) -> Plug:
    """Put a configuration to work on a model, for a `with` block or until `detach`.

    Args:
        model: any AutoModelForImageTextToText or AutoModelForCausalLM of a family with an adapter, loaded with sdpa (or
            eager, which runs on sdpa while attached). Its weights are not changed.
        config: a method's name, a path to a YAML file, a dict of that shape, or a `Config`.
        calibration: a path, a dict, a `Calibration`, or "auto" for the file shipped under the model's name. It takes
            precedence over the config's. By default the shipped file is used if there is one.
        processor: the model's processor or tokenizer. Its chat template tells which prompt tokens are the user's
            question; without it, every text token behind the last image counts as the question.
        query: overrides that: a function from token ids [B, n] to a boolean mask [B, n].
        tagger: content words for `words: content`, a function from text to character spans; default spaCy if installed.

    Attachments nest: the innermost is in force (an empty config inside another means the plain model), and leaving it
    brings the outer one back. One thread at a time may run a given model. While anything is attached, `model.config` is
    a private copy: what is changed in it is gone afterwards.

    Raises ConfigError, CalibrationError or UnsupportedModelError; the model is then as it was.
    """
    parsed = Config.load(config)
    host = _host(model)
    chosen = calibration if calibration is not None else parsed.calibration
    found = Calibration.load(chosen, model) if chosen is not None else find_shipped(model)

    tokenizer = getattr(processor, "tokenizer", processor)
    if query is None and getattr(processor, "chat_template", None):
        query = TurnFinder(processor, host.family.image_ids(model.config))
    tagger = tagger or (spacy_tagger() if tokenizer is not None else None)
    narrow = content_words(tokenizer, tagger) if tokenizer is not None and tagger is not None else None

    facts = host.facts(found, narrow)
    methods = {name: find(name)(settings, facts) for name, settings in parsed.methods}
    plug = Plug(host, parsed, Runner(host, methods, query))
    host.add(plug)
    return plug


def observe(model: Any, make: Callable[[ModelFacts], dict[str, Method]], *, processor: Any = None) -> Plug:
    """Attach methods that are in no registry, made from the model's facts: for profiling runs, which bring probes."""
    host = _host(model)
    query = TurnFinder(processor, host.family.image_ids(model.config)) if processor is not None else None
    plug = Plug(host, Config(), Runner(host, make(host.facts(None, None)), query))
    host.add(plug)
    return plug


def _host(model: Any) -> Host:
    """The model's host, a new one if nothing is attached to it."""
    return getattr(model, HOST, None) or Host(model)


def wrap(model: Any, config: Config | Mapping[str, Any] | str | Path, **options: Any) -> Any:
    """`attach`, kept on: returns the same model. A second `wrap` replaces the first. Options as for `attach`."""
    plug = attach(model, config, **options)
    previous = model.__dict__.get(WRAPPED)
    if previous is not None:
        previous.detach()
    model.__dict__[WRAPPED] = plug
    return model


def unwrap(model: Any) -> Any:
    """Undo `wrap` exactly and return the model; a model that is not wrapped is returned as it is."""
    plug = model.__dict__.pop(WRAPPED, None)
    if plug is not None:
        plug.detach()
    return model
