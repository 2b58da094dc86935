"""Stage 1: the vision tower learns what each patch shows, before any language (the tower of a real LVLM is trained too).

The target of a patch is the mix of objects in it; background counts a third, so that small things are worth learning.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from sightline.testbed.data import draw_batch, stream
from sightline.testbed.sprites import CATEGORIES
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from .loop import autocast


class PatchLabeller(nn.Module):
    """A SigLIP vision model with a linear reading of every patch; the reading is dropped after this stage."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.reading = nn.Linear(config.hidden_size, len(CATEGORIES) + 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 96, 96) pixels in -1..1 -> (B, 64, C + 1) logits, from the state LLaVA reads (before the last norm)."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
        return self.reading(self.norm(states))


def to_pixels(array: Any, device: torch.device) -> torch.Tensor:
    """(B, 96, 96, 3) uint8 -> (B, 3, 96, 96) float in -1..1, as the processor does."""
    return torch.as_tensor(array, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1


def batches(start: int, batch: int, seed: int, workers: int, offset: int = 0) -> Iterator[dict[str, Any]]:
    """Scenes of step `start` on: step s shows training scenes s * batch to (s + 1) * batch, counted from `offset`."""
    return stream(draw_batch, (("train", offset + step * batch, batch, seed) for step in count(start)), workers)


def targets(coverage: Any, device: torch.device) -> torch.Tensor:
    """(B, 64, C + 1) pixels of each object -> the mix of each patch, background counting a third."""
    counts = torch.as_tensor(coverage, device=device).float()
    counts[..., -1] /= 3
    return counts / counts.sum(-1, keepdim=True)


def emphasis(target: torch.Tensor) -> torch.Tensor:
    """How much each patch of a mix counts: those with nothing but background less."""
    return 0.3 + 0.7 * (target[..., -1] < 1)


def labelling(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy against the mix of objects in each patch; also the share of object patches named right."""
    per_patch = -(target * logits.log_softmax(-1)).sum(-1)
    has_object = target[..., -1] < 0.5
    value = (per_patch * emphasis(target)).mean()
    with torch.no_grad():
        right = (logits.argmax(-1) == target.argmax(-1))[has_object].float().mean()
    return value, {"objects_right": float(right)}


def loss(model: PatchLabeller, payload: dict[str, Any], device: torch.device) -> tuple[torch.Tensor, dict[str, float]]:
    """How badly each patch of a batch of scenes is named."""
    with autocast(device):
        logits = model(to_pixels(payload["pixels"], device)).float()
    return labelling(logits, targets(payload["coverage"], device))
