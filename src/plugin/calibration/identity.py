"""Which model a user's own calibration file is for: told by the weights, because names such as `checkpoint` repeat."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

SAMPLES = 16
"""Values of each weight that are looked at."""


def identity(model: Any) -> str:
    """Twelve letters that tell a model by its weights.

    They stay when it is moved, renamed or loaded in another number type, and fine-tuning changes them: a hash of the names
    and shapes of its weights and of the signs of some of their values.

    A model whose weights are not there as numbers (quantised, or one process's part of them) has letters of its
    own; one that is only named, not loaded yet, has none.
    """
    if not hasattr(model, "state_dict"):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_meta:  # it lies in memory or on disk until its module runs
            tensor = _offloaded(model, name)
        digest.update(_signs(tensor))
    return digest.hexdigest()[:12]


def comparable(model: Any) -> bool:
    """Whether `identity` says the same of this model as of the one that was measured."""
    whole = hasattr(model, "state_dict") and not getattr(model, "is_quantized", False)
    return whole and (getattr(model, "_tp_size", None) or 1) == 1


def _signs(tensor: Tensor) -> bytes:
    if not tensor.is_floating_point():
        return b""
    flat = getattr(tensor, "to_local", lambda: tensor)().detach().flatten()  # of a sharded weight this process's part
    some = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]
    return bytes((some > 0).to(torch.uint8).cpu().tolist())


def _offloaded(model: Any, name: str) -> Tensor:
    from accelerate.utils import align_module_device

    owner, _, own_name = name.rpartition(".")
    with align_module_device(model.get_submodule(owner), "cpu"):
        return getattr(model.get_submodule(owner), own_name).detach().clone()
