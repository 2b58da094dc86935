"""Secondary attention sinks: tokens that point where the first token, the true sink, points. No boost should raise them.

Source: arXiv 2512.22213. In the layers where the first token is a sink, a later token is a secondary one if its hidden
state x, as it enters the layer, has |cos(x, x_first)| > 0.9. The paper looks for them; keeping them out of what raises
attention on the image is ours.

The calibration lists them: `sink.first` names the layers, `sink.secondary.visual` says how many image tokens they are in a
mean prompt, `sink.cosine` overrides 0.9. Where it counts none, or nothing was measured, every image token is boostable
and no probe runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..core.edits import Edit, InputProbe
from ..core.layout import Layout, Step
from ..core.method import ModelFacts

ALIGNED = 0.9  # cosine of a secondary sink

#: The setting of every method that raises attention on image tokens.
SkipSecondary = Annotated[bool, Field(description="leave out the secondary sinks that the calibration lists")]


class Boostable:
    """The image tokens that a boost may raise, layer by layer, of one prompt batch.

    `probes` finds the secondary sinks while the prompt is read; the mask of a layer holds from the moment its own probe
    has looked, so an edit of that layer must ask for it when it runs.
    """

    def __init__(self, layout: Layout, facts: ModelFacts, layers: Iterable[int], skip: bool = True):
        """layers: those that are boosted. skip: false makes every image token boostable, as for an unlisted model."""
        sink = facts.calibration.sink if skip and facts.calibration is not None else None
        listed = sink is not None and sink.secondary is not None and sink.secondary.visual > 0
        self.layout = layout
        self.cosine = ALIGNED if sink is None or sink.cosine is None else sink.cosine
        self.layers = sorted({*layers} & {*(sink.first or ())}) if listed and sink is not None else []
        self._first = layout.first_token
        self._state: dict[int, Tensor] = {}  # the first token's [B, hidden], by layer
        self._masks: dict[int, Tensor] = {}

    def resume(self, earlier: Boostable) -> None:
        """Take over what was found in the part of a conversation that is not read again."""
        self._state = dict(earlier._state)
        for layer, mask in earlier._masks.items():
            image = self.layout.image.to(mask.device)
            self._masks[layer] = torch.cat([mask, image[:, mask.shape[1] :]], dim=1)

    def __getitem__(self, layer: int) -> Tensor:
        """The image tokens [B, n] that may be raised in a layer."""
        return self._masks.get(layer, self.layout.image)

    def along(self, layer: int) -> Callable[[], tuple[Tensor]]:
        """The same for an edit of the layer that asks for it along the prompt (`Reweight.along`)."""
        return lambda: (self[layer],)

    def probes(self, step: Step) -> dict[int, list[Edit]]:
        """What must look in a pass, in front of the method's own edits."""
        if not step.reading:
            return {}
        return {layer: [InputProbe(partial(self._see, layer, step.start))] for layer in self.layers}

    def _see(self, layer: int, start: int, hidden: Tensor) -> None:
        """Note the secondary sinks among the prompt tokens of this pass; hidden [B, q, hidden]."""
        state = hidden[:, : self.layout.length - start]
        window = slice(start, start + state.shape[1])
        first = self._first[:, window].to(state.device)
        own = state[torch.arange(len(state), device=state.device), first.int().argmax(-1)]
        if start:  # the first token may have come in an earlier part of the prompt
            own = torch.where(first.any(-1, keepdim=True), own, self._state[layer])
        self._state[layer] = own
        found = alignment(state, own) > self.cosine
        boostable = self._masks.get(layer, self.layout.image).to(state.device).clone()
        boostable[:, window] = self.layout.image[:, window].to(state.device) & (~found | first)
        self._masks[layer] = boostable


def alignment(hidden: Tensor, first: Tensor) -> Tensor:
    """|cos| [B, q] between hidden states [B, q, hidden] and the first token's [B, hidden], in float32."""
    return cosine_similarity(hidden.float(), first[:, None].float(), dim=-1).abs()
