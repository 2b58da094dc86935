"""What a configuration does to a model, as plain numbers that another engine can carry.

A configuration has a plan if all of it is known before any prompt is read: factors by head, and a copy that differs in
fixed heads or in its pictures (`Method.fixed`, `Decoder.fixed`). Everything else is refused here, before any weight is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..common.errors import ConfigError, SightlineError, UnsupportedModelError
from ..plugin.branches.decoder import DECODERS
from ..plugin.calibration.files import Calibration, calibration_hash, find_shipped
from ..plugin.calibration.folded import MARKER, is_folded
from ..plugin.config import Config
from ..plugin.core.families import declared_family
from ..plugin.core.families.base import families
from ..plugin.core.method import FixedGains, ModelFacts
from ..plugin.core.registry import METHODS

Heads = tuple[tuple[int, int, float], ...]  # (layer, query head, number); all other heads are left alone


class Copy(BaseModel):
    """The decoder's copy of the model (`FixedCopy`), and how its scores come about: the decoder and its settings."""

    model_config = ConfigDict(frozen=True)

    decoder: str
    settings: dict[str, Any]
    change: Literal["disperse", "silence", "add"] | None
    heads: Heads
    rows: Literal["all", "last", "prompt"]
    pictures: Literal["same", "redrawn", "none"] = "same"

    @property
    def first(self) -> int:
        """The first layer that differs."""
        return 0 if self.bare else min(layer for layer, _, _ in self.heads)

    @property
    def bare(self) -> bool:
        """Whether it sees other pictures or none, which it does without the methods' factors."""
        return self.pictures != "same"


class ServedPlan(BaseModel):
    """A configuration for a model of `layers` x `heads`.

    gains: factors on the outputs of heads, in every row. seen: the same for prompts with a picture, which methods that
    look at pictures add to. first: factors on the heads' attention to the first token. copied: the copy that the model is
    contrasted with. config, calibration: where it all comes from, the second as a hash.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    layers: int
    heads: int
    gains: Heads = ()
    seen: Heads = ()
    first: Heads = ()
    copied: Copy | None = None
    config: dict[str, Any]
    calibration: str | None = None

    @property
    def looks(self) -> bool:
        """Whether a prompt with a picture is treated unlike one without."""
        return self.gains != self.seen or (self.copied is not None and self.copied.bare)

    @property
    def widened(self) -> bool:
        """Whether queries and keys have one dimension more, whose product raises or hides keys."""
        return bool(self.first) or (self.copied is not None and self.copied.pictures == "none")

    def table(self, heads: Heads, rest: float) -> Tensor:
        """[layers, H]: the numbers of `heads`, and `rest` for all others."""
        found = torch.full((self.layers, self.heads), rest)
        for layer, head, number in heads:
            found[layer, head] = number
        return found


def resolve(
    model: str,
    config: Config | Mapping[str, Any] | str | Path,
    calibration: Calibration | Mapping[str, Any] | str | Path | None = None,
    *,
    loaded: Any = None,
) -> ServedPlan:
    """The plan of a configuration for a model.

    Args:
        model: a checkpoint folder or a hub name; of its files only the configuration is read.
        config: as for `sightline.attach`.
        calibration: likewise.
        loaded: the model's `config`, where it is at hand.

    Raises:
        ConfigError: the configuration has no effect, or does what is not known before the prompt.
        CalibrationError, UnsupportedModelError: as `attach` does.
    """
    parsed = Config.load(config)
    check_unfolded(model)
    for name, settings in parsed.methods:  # before a calibration is asked for
        METHODS.find(name).check_fixed(settings)
    if parsed.decoder is not None:
        DECODERS.find(parsed.decoder[0]).check_fixed(parsed.decoder[1])
    for name, settings in (*parsed.methods, *([] if parsed.decoder is None else [parsed.decoder])):
        if settings.when is not None:
            raise ConfigError(
                f"'{name}' has a gate ('when: {settings.when.signal}'), which decides token by token, and what is folded or"
                " served is the same at every token: leave 'when' out, or generate with transformers"
            )
    facts = facts_of(model, read_config(model) if loaded is None else loaded, parsed, calibration)
    fixed = [METHODS.find(name)(settings, facts).fixed() for name, settings in parsed.methods]
    if not facts.pictures:  # a method of pictures leaves a model alone that has none
        fixed = [one for one in fixed if not one.seeing]
    outputs = [one for one in fixed if one.of == "outputs"]
    copied = None
    if parsed.decoder is not None:
        name, settings = parsed.decoder
        copy = DECODERS.find(name)(settings, facts).fixed()
        if copy.pictures != "same" and not facts.pictures:
            raise ConfigError(f"'{name}' takes pictures away, and '{model}' reads none: choose a vision-language model")
        copied = Copy(
            decoder=name,
            settings=settings.model_dump(),
            change=copy.change,
            heads=() if copy.factors is None else _listed(copy.factors, 0.0),
            rows=copy.rows,
            pictures=copy.pictures,
        )
    plan = ServedPlan(
        model=facts.name,
        layers=facts.layers,
        heads=facts.heads,
        gains=_listed(_product([one for one in outputs if not one.seeing], facts), 1.0),
        seen=_listed(_product(outputs, facts), 1.0),
        first=_listed(_product([one for one in fixed if one.of == "first"], facts), 1.0),
        copied=copied,
        config=parsed.dump(),
        calibration=None if facts.calibration is None else calibration_hash(facts.calibration),
    )
    if not (plan.seen or plan.gains or plan.first) and copied is None:
        raise ConfigError(
            f"the configuration has no effect on '{facts.name}' (no head's factor differs from 1): serve the model without"
            " it, or give it a method that does something"
        )
    return plan


def facts_of(
    model: str,
    config: Any,
    parsed: Config,
    calibration: Calibration | Mapping[str, Any] | str | Path | None,
) -> ModelFacts:
    """What methods may know of a model that is not loaded."""
    named = SimpleNamespace(config=config, name_or_path=model)
    family, text = declared_family(config, config.model_type), config.get_text_config()
    if family is None:  # what a model tells of itself takes its weights
        raise UnsupportedModelError(
            f"model type '{config.model_type}' has no declaration, which a plan made before the model is loaded needs: serve one"
            f" that has ({', '.join(families())}), or use transformers with sightline.attach"
        )
    chosen = calibration if calibration is not None else parsed.calibration
    found = Calibration.load(chosen, named) if chosen is not None else find_shipped(named)
    if found is not None:
        found.check(config.model_type, text.num_hidden_layers, text.num_attention_heads, text.hidden_size)
    return ModelFacts(
        name=model,
        architecture=str(config.model_type),
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        calibration=found,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        across=family.across(config),
        pictures=family.vision_inputs,
    )


def check_unfolded(model: str) -> None:
    """Raises ConfigError for a folder that `sightline export` wrote: what is folded in would act twice."""
    if is_folded(model):
        raise ConfigError(
            f"'{model}' already has a configuration folded into its weights (see {MARKER} there): serve it as it is, or"
            " name the model that it was made from"
        )


def read_config(model: str, revision: str | None = None) -> Any:
    """A model's configuration. Raises SightlineError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SightlineError(
            f"cannot read the configuration of model {model!r}: {reason.rstrip('.')}; give a checkpoint folder, or a hub name"
            " that is cached or reachable"
        ) from error


def stored_dtype(model: str) -> str:
    """The number type of a checkpoint's weights; float32 where it does not say."""
    config = read_config(model)
    return str(
        getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or "float32"
    ).removeprefix("torch.")


def _product(fixed: list[FixedGains], facts: ModelFacts) -> Tensor:
    factors = torch.ones(facts.layers, facts.heads)
    for one in fixed:
        factors = factors * one.factors
    factors[list(facts.across)] = 1  # nothing edits a layer that reads the image by cross-attention
    return factors


def _listed(table: Tensor, rest: float) -> Heads:
    return tuple((layer, head, float(table[layer, head])) for layer, head in (table != rest).nonzero().tolist())
