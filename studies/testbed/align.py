"""Stages 2 and 3: the text model learns how scenes are described, then, briefly, to look."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sightline.testbed.data import TOKENS
from sightline.testbed.sprites import CATEGORIES
from torch import nn

from . import tower
from .loop import autocast
from .packs import testbed
from .tower import to_pixels

SHARED = 0.6


class Speaker(nn.Module):
    """The trained parts of a LLaVA (text model, head, projector); the frozen tower hangs outside its parameters."""

    tower: nn.Module

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.text = llava.model.language_model
        self.head = llava.lm_head
        self.projector = llava.model.multi_modal_projector
        object.__setattr__(self, "tower", llava.model.vision_tower)

    def forward(self, payload: dict[str, np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood and weight of every target token of a batch of packs, two (N,) tensors.

        Where others would have been as right, `SHARED` of the target is spread over them.
        """
        logits, target, weight = self.read(payload, device)
        each = nn.functional.cross_entropy(logits, target, reduction="none")
        if "instead" in payload:
            others = torch.as_tensor(payload["instead"][payload["weight"] > 0], device=device)
            right = others >= 0
            spread = -logits.log_softmax(-1).gather(1, others.clamp(min=0)).masked_fill(~right, 0).sum(1)
            shared = (1 - SHARED) * each + SHARED * spread / right.sum(1).clamp(min=1)
            each = torch.where(right.any(1), shared, each)
        return each, weight

    def read(self, payload: dict[str, np.ndarray], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Logits (N, V) of every target token of a batch of packs, the targets (N,) and their weights (N,).

        The first packs have the pictures; those after them have none.
        """
        ids = torch.as_tensor(payload["ids"], device=device)
        weight = torch.as_tensor(payload["weight"], device=device)
        seen = torch.as_tensor(payload["seen"], device=device)
        bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -1e4)
        embedded = self.text.embed_tokens(ids)
        with autocast(device):
            if "pixels" in payload:
                learns = next(self.tower.parameters()).requires_grad
                with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                    pixels = to_pixels(payload["pixels"], device)
                    features = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
                image = self.projector(features).to(embedded.dtype)
                start, number = int(payload["image"]), len(image)
                pictured = [embedded[:number, :start], image, embedded[:number, start + TOKENS :]]
                embedded = torch.cat([torch.cat(pictured, dim=1), embedded[number:]])
            states = self.text(
                inputs_embeds=embedded,
                attention_mask=bias,
                position_ids=torch.as_tensor(payload["positions"], device=device),
                use_cache=False,
            ).last_hidden_state
            rows = weight > 0
            logits = self.head(states[rows]).float()
        return logits, torch.roll(ids, -1, dims=1)[rows], weight[rows]


class Whole(nn.Module):
    """Everything that the last stage trains: a speaker and the tower that it looks through."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        self.speaker, self.tower = speaker, speaker.tower


def loss(
    speaker: Speaker, payload: dict[str, np.ndarray], device: torch.device
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted mean over target tokens."""
    each, weight = speaker(payload, device)
    return (each * weight).sum() / weight.sum(), {}


def word_targets(speaker: Speaker) -> torch.Tensor:
    """(C + 1, D): the mean input embedding of the words of each object's name; background is zero."""
    weight = speaker.text.embed_tokens.weight.detach()
    names = [weight[list(testbed().encode(name))].mean(0) for name in CATEGORIES]
    return torch.stack([*names, torch.zeros_like(names[0])])


def projector_loss(
    speaker: Speaker, targets: torch.Tensor, payload: dict[str, np.ndarray], device: torch.device
) -> tuple[torch.Tensor, dict[str, float]]:
    """Distance of each projected patch to the words of what it shows, relative to the length of those words.

    The projector alone learns here, as in the first half of LLaVA's recipe: pictures start out in the language of the
    text model, so that the joint stage can be short.
    """
    aim = tower.targets(payload["coverage"], device) @ targets
    with autocast(device):
        with torch.no_grad():
            features = speaker.tower(to_pixels(payload["pixels"], device), output_hidden_states=True).hidden_states[-1]
        image = speaker.projector(features).float()
    return (image - aim).square().sum(-1).mean() / targets[:-1].square().sum(-1).mean(), {}
