"""Resumable training state in one safetensors file: weights, AdamW moments and, in its header, step and losses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save_state(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write module and optimizer atomically: a reader sees the old file or the new one, never half of one."""
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in _named(module)}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = torch.as_tensor(value).detach().clone().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"progress": json.dumps(progress)})
    os.replace(partial, path)


def load_state(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restore what `save_state` wrote, in place; returns its `progress`."""
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        with torch.no_grad():
            for name, value in _named(module):
                value.copy_(file.get_tensor(f"model.{name}"))
        if optimizer is not None:
            for name, parameter in module.named_parameters():
                state = {
                    key: file.get_tensor(f"adam.{key}.{name}")
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{key}.{name}" in keys
                }
                if state:
                    optimizer.state[parameter] = {k: v.to(parameter.device) if v.ndim else v for k, v in state.items()}
        return json.loads(file.metadata()["progress"])


def _named(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters once each (tied ones share a name); buffers of these models are all recomputed, so they stay out."""
    return list(module.named_parameters())
