"""Models inside wrappers: what is edited is the model whose own passes and `generate` run.

A wrapper that forwards to a model inside (peft, torch.compile, data parallelism) has no passes of its own to edit: edits
of the model inside are in force whichever of the two is called.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...common.errors import UnsupportedModelError
from . import compat


def inner_model(model: Any) -> Any:
    """The transformers model in any wrappers. Raises UnsupportedModelError for a wrapper that cannot be seen through."""
    seen: list[Any] = []
    while not compat.is_model(model):
        seen.append(model)
        inside = _inside(model)
        if inside is None or any(inside is one for one in seen):
            return _refuse_foreign(seen[0])
        model = inside
    return model


def _inside(wrapper: Any) -> Any:
    """What a known wrapper holds, None for another object."""
    model: Any = wrapper
    if not isinstance(wrapper, nn.Module):
        return None
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):  # torch.compile
        return model._orig_mod
    if callable(getattr(model, "get_base_model", None)):  # peft
        learned = [kind for kind, one in dict(getattr(model, "peft_config", {})).items() if one.is_prompt_learning]
        if learned:
            raise UnsupportedModelError(
                f"the peft adapter '{learned[0]}' puts learned tokens before the prompt, whose places are not known here:"
                " attach to a model without it; LoRA and other adapters of weights are fine"
            )
        return model.get_base_model()
    if name.startswith(("FullyShardedDataParallel", "FSDP")):
        raise UnsupportedModelError(
            "the model is wrapped in FSDP, which collects weights in passes that all processes must make alike, and methods"
            " add some: load it with device_map='auto' or transformers' tensor parallel plan"
        )
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise UnsupportedModelError(
            "nn.DataParallel copies the model for every pass, and the copies carry no edits: attach to model.module and call"
            " that, or spread the model with device_map='auto'"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    return None


def _refuse_foreign(model: Any) -> Any:
    """Say why an object that is no transformers model cannot be attached to."""
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    name = next((name for name, part in parts if compat.is_model(part)), None)
    kind = type(model).__name__
    if name is None:
        raise UnsupportedModelError(f"{kind} is no transformers model: pass what AutoModel...from_pretrained returns")
    raise UnsupportedModelError(
        f"{kind} wraps a transformers model, and what it runs is not known, so that edits might do nothing: attach to the"
        f" model inside, here model.{name}"
    )
