"""Heads that look at the image: VHR's divergence over many pictures, and how often it chooses a head.

Source: arXiv 2412.13949.
scores: VHD, the squared distance between a head's output at the last prompt position with and without the image (Eq.
4), mean over the prompts, of the plain model. chosen: the share of prompts in which VHR itself, with its outlier rule
and with earlier layers already reinforced, takes the head; `vhr: {static: true}` chooses by it. layers: VHR's rule, the
second layer and the last 14 of 32 in proportion (the paper found them by trying).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...models.observe import Batch
from ...plugin.calibration.sections import VisualHeads
from ...plugin.core.edits import Edit, OutputProbe
from ...plugin.core.layout import Layout, Step
from ...plugin.core.method import Method, ModelFacts, Session
from ...plugin.methods.vhr import VHR, VHRSettings, default_layers
from ..job import Job, Sums, rounded


def measure_visual_heads(job: Job) -> VisualHeads:
    """The section of the calibration file."""
    seen = job.total("heads", _look)
    return VisualHeads(
        layers=default_layers(job.facts),
        scores=rounded(seen["divergence"] / seen["prompts"]),
        chosen=rounded(seen["chosen"] / seen["prompts"]),
    )


def _look(batch: Batch) -> Sums:
    prompts = len(batch.examples)
    divergence = batch.read(_Divergence).found
    with batch.attached(_vhr) as plug:
        batch.forward()
        chosen = torch.tensor(plug.report()["vhr"]["head_map"]) * prompts
    return {"divergence": divergence, "chosen": chosen, "prompts": torch.tensor(float(prompts))}


def _vhr(facts: ModelFacts) -> dict[str, Method]:
    return {"vhr": VHR(VHRSettings.model_validate({"layers": default_layers(facts)}), facts)}


class _Divergence(Session):
    """found: VHD of every head, summed over the batch [layers, heads]."""

    def __init__(self, layout: Layout, facts: ModelFacts):
        self.layout = layout
        self.text: dict[int, Tensor] = {}  # head outputs [B, H, d] at the last position, without the image
        self.found = torch.zeros(facts.layers, facts.heads)

    def read_text_edits(self) -> dict[int, list[Edit]]:
        return {layer: [OutputProbe(partial(self._without, layer))] for layer in range(len(self.found))}

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return {layer: [OutputProbe(partial(self._with, layer))] for layer in range(len(self.found))}

    def _without(self, layer: int, output: Tensor) -> None:
        self.text[layer] = output[:, -1].float()

    def _with(self, layer: int, output: Tensor) -> None:
        rows = torch.arange(len(output), device=output.device)
        last = output[rows, self.layout.last.to(output.device)].float()
        self.found[layer] = (last - self.text.pop(layer)).square().sum(-1).sum(0).cpu()
