"""What a decoder is: settings, and the contrast that it makes of them for each prompt.

The same split as between a method and its session: a `Decoder` lives as long as its attachment and holds nothing of
any prompt; a `Contrast` holds all state of one prompt batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor

from ...common.errors import ConfigError
from ..core.edits import Edit
from ..core.layout import Layout, Step
from ..core.method import Registered
from ..core.registry import Registry
from .branch import Branch


class Contrast:
    """One decoder on one prompt batch. `branch` is the weakened copy; None where the model alone is looked at (DoLa)."""

    branch: Branch | None = None

    #: The first layer from which passes that `combine` scores keep a graph, for gradients of their logits; None: no
    #: graph. A prompt's last row then gets a pass of its own where that can be, so that the graph is of one row.
    graph: int | None = None
    #: What goes from one pass into the next, a row of each tensor per batch row: it follows the beams, and what scoring
    #: an answer puts in is taken back. Replaced as a whole, never changed in place.
    memory: Mapping[str, Tensor] = MappingProxyType({})

    def begin(self, step: Step, ids: Tensor | None) -> None:
        """Before each pass: its rows, and the tokens [B, count] of one behind the prompt."""

    #: How many of the likeliest next tokens are read ahead, each in a pass of its own whose keys are dropped again. Before
    #: them `accept` is called, behind each `tried`, and `watch` sees their passes.
    candidates: int = 0

    def accept(self) -> None:
        """The pass of the chosen tokens has run."""

    def tried(self, tokens: Tensor) -> None:
        """A pass that read the candidates [B] ahead has run."""

    #: Which rows [B] it contrasts; the others keep the model's own scores. None: all.
    contrasted: Tensor | None = None
    #: The redrawn pictures as forward arguments, while the branch reads its prompts.
    redrawn: Mapping[str, Any] = MappingProxyType({})

    def watch(self, step: Step) -> Mapping[int, Sequence[Edit]]:
        """Probes on the model's own rows, behind the methods' edits; asked for as `Session.edits` is."""
        return {}

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        """The scores [B, T, V] that the caller gets for logits, from the float32 logits of the model and the copy."""
        raise NotImplementedError

    def idle(self) -> dict[int, str]:
        """Why the decoder can do nothing for a batch row, by row; empty where it acts on all."""
        return {}

    def report(self) -> dict[str, Any]:
        """What the decoder decided for this prompt, for reports."""
        return {}


@dataclass(frozen=True)
class FixedCopy:
    """A copy that reads the model's own tokens and differs in what is known before any prompt: heads, or the pictures.

    change: what happens to the heads: "disperse" (their query is zero), "silence" (their output is zero) or "add" (the
    model's own output of the head, times its factor, is added). factors: [layers, H]; 0 for a head that is left alone.
    rows: where it does: in all rows, from the last prompt token on, or in the prompt's alone. pictures: those of the
    prompt ("same"), what `redraw` makes of them ("redrawn"), or none, their tokens being left out ("none").
    """

    change: Literal["disperse", "silence", "add"] | None = None
    factors: Tensor | None = None
    rows: Literal["all", "last", "prompt"] = "all"
    pictures: Literal["same", "redrawn", "none"] = "same"


class Decoder(Registered):
    """A registered decoder; at most one is attached, behind any methods."""

    kind = "decoder"

    own_prompt: ClassVar[bool] = False  # the copy reads a prompt of its own, without the methods' edits
    redraws: bool = False  # the copy sees other pictures
    fixed_copy: ClassVar[FixedCopy | None] = None  # its copy, where that is the same under all settings

    @classmethod
    def redraw(cls, settings: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` with other pictures for the copy, if the decoder redraws (VCD)."""
        return {}

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        """Open a contrast for a prompt batch; `scoring` where given answers are scored (`sightline.score`)."""
        raise NotImplementedError

    @classmethod
    def check_fixed(cls, settings: Any) -> None:
        """Raises ConfigError where it has no copy, or one that is not `FixedCopy`."""
        if cls.fixed_copy is not None:
            return
        what = "contrasts with a prompt of its own" if cls.own_prompt else "has no copy, or one that each token changes"
        raise ConfigError(
            f"decoder '{cls.name}' {what}, and a served model carries only a copy that reads the same tokens with fixed heads"
            " changed (decore, hicd, juice), other pictures (vcd) or none (m3id, pai_guidance): use one of these, or generate"
            " with transformers"
        )

    def fixed(self) -> FixedCopy:
        """Its copy in a generation, where `check_fixed` passes; its scores are `combined`. `sightline serve` carries it."""
        if self.fixed_copy is None:
            raise NotImplementedError
        return self.fixed_copy

    @classmethod
    def combined(cls, settings: Any, base: Tensor, weak: Tensor, written: Tensor | None = None) -> Tensor:
        """The scores of a `fixed` copy [.., V], from float32 logits of the model and of the copy.

        written: how many tokens of the answer each row has read [.., 1].
        """
        raise NotImplementedError


DECODERS: Registry[Decoder] = Registry("decoder", "sightline.decoders")
register_decoder = DECODERS.register
