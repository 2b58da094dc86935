"""What a model supports: the attach check, and each method and decoder at its defaults, with the reason where one is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..common.errors import CalibrationError, SightlineError, UnsupportedModelError
from .branches.decoder import DECODERS, Decoder
from .calibration.files import Calibration, find_shipped
from .core.families.base import declared
from .core.host import Host, between_calls
from .core.layout import read_layout
from .core.method import ModelFacts, Registered, TextTools
from .core.registry import METHODS


@dataclass(frozen=True)
class Use:
    """A method or decoder on a model. `lacks`: calibration sections that its defaults need and the model has not."""

    name: str
    kind: str
    works: bool
    lacks: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Support:
    """What the attach check found of a model, and what runs on it."""

    model: str
    architecture: str
    adapter: str  # "declared", or "inferred" from the model
    layers: int
    edited: tuple[int, ...]  # the layers whose attention is edited; the others run plain
    heads: int
    images: tuple[int, ...]  # ids of picture and video placeholders
    notes: tuple[str, ...] = ()
    uses: list[Use] = field(default_factory=list)


def support(model: Any, calibration: Calibration | None = None, *, processor: Any = None) -> Support:
    """Check a model and every method and decoder on it, as `attach` with this processor would take them.

    Raises UnsupportedModelError where it cannot be edited at all.
    """
    with between_calls(model) as host:
        host.check()
    facts = host.facts(calibration or find_shipped(model), TextTools.of(processor))
    known: dict[str, type[Registered]] = {**METHODS.known(), **DECODERS.known()}
    return Support(
        model=facts.name,
        architecture=facts.architecture,
        adapter="declared" if declared(facts.architecture) else "inferred",
        layers=facts.layers,
        edited=tuple(sorted(host.attentions.keys() - host.across)),
        heads=facts.heads,
        images=tuple(sorted(host.family.image_ids(model.config))),
        notes=tuple(_notes(host)),
        uses=[_use(host, one, facts) for one in known.values()],
    )


def _notes(host: Host) -> list[str]:
    notes = []
    if host.linear:
        notes.append(f"layers without softmax attention run plain: {', '.join(map(str, sorted(host.linear)))}")
    if host.across:
        notes.append(
            f"layers that read the image by cross-attention run plain: {', '.join(map(str, sorted(host.across)))}"
        )
    if host.stage.eager:
        notes.append(
            "sdpa cannot compute its attention (learned sinks or capped logits): the model's own eager function does"
        )
    if host.family.bidirectional_prompt:
        notes.append("prompt tokens see later ones, so the prompt is read in one piece")
    if host.checked.readout is None:
        notes.append("its logits are no readout of the normed hidden state: what reads other layers out is refused")
    if len(set(host.checked.heads.values())) > 1:
        notes.append(f"query heads by layer: {', '.join(map(str, host.checked.heads.values()))}")
    return notes


def _use(host: Host, kind: type[Registered], facts: ModelFacts) -> Use:
    """Bind a method or decoder to the model with its defaults, and see."""
    lacks = tuple(section for section in kind.needs if getattr(facts.calibration, section, None) is None)
    if kind.needs_image and not host.family.image_ids(host.model.config):
        return Use(kind.name, kind.kind, False, reason="it acts on image tokens, and the model has none")
    try:
        bound = kind(kind.config(), facts)
        if isinstance(bound, Decoder):
            _check_branch(host, bound)
    except CalibrationError as error:
        return Use(kind.name, kind.kind, not lacks, lacks, str(error) if not lacks else "")
    except SightlineError as error:
        return Use(kind.name, kind.kind, False, reason=str(error))
    return Use(kind.name, kind.kind, True)


def _check_branch(host: Host, decoder: Decoder) -> None:
    """Raises UnsupportedModelError where the decoder's copy cannot ride along on the model."""
    if decoder.own_prompt:
        host.check_forks(0)
        return
    images = sorted(host.family.image_ids(host.model.config))
    ids = torch.tensor([[1, *images[:1], 1, 1]])
    try:
        branch = decoder.start(read_layout(ids, None, host.family.image_ids(host.model.config), None)).branch
    except UnsupportedModelError:
        raise
    except SightlineError:  # it wants more of a prompt than these tokens
        branch = None
    if branch is not None:
        host.check_forks(branch.first)
