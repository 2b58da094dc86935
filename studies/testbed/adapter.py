"""Low-rank adapters of a frozen language model, merged for every pass so that a step costs no extra layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

SCALE = 2.0
PLACES = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


class _Merged(torch.autograd.Function):
    """``x @ (W + s B A)^T`` with gradients for x, A and B only: no gradient of W's size is ever made."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        merged = torch.addmm(weight, b, a, alpha=SCALE)
        ctx.save_for_backward(x, merged, a, b)
        return x @ merged.t()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, merged, a, b = ctx.saved_tensors
        a, b = a.to(grad.dtype), b.to(grad.dtype)
        rows, out = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        rows = rows.to(grad.dtype)
        return grad @ merged, None, SCALE * ((out @ b).t() @ rows), SCALE * (out.t() @ (rows @ a.t()))


class Adapted(nn.Module):
    """A linear layer without bias, its weight frozen, plus a product of rank `rank` that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", base.weight.detach(), persistent=False)
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Merged.apply(x, self.weight, self.a, self.b)


def adapt(text: Any, rank: int) -> nn.ModuleDict:
    """Put adapters on every linear layer of a `LlamaModel`, in place; returns them by "layer_part_name"."""
    adapters = nn.ModuleDict()
    for index, block in enumerate(text.layers):
        for part, names in PLACES.items():
            for name in names:
                adapted = Adapted(getattr(getattr(block, part), name), rank)
                setattr(getattr(block, part), name, adapted)
                adapters[f"{index}_{part}_{name}"] = adapted
    return adapters


def tensors(adapters: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """What `sightline.testbed.smol.merge` adds to the language model: ``X.down`` and ``X.up`` for each weight ``X``."""
    found = {}
    for key, adapted in adapters.items():
        index, rest = key.split("_", 1)
        part = next(part for part in PLACES if rest.startswith(part))
        name = f"model.layers.{index}.{part}.{rest[len(part) + 1 :]}"
        found[f"{name}.down"] = adapted.a.detach()
        found[f"{name}.up"] = SCALE * adapted.b.detach()
    return found
