"""Head gains folded into a checkpoint, for any engine that reads one.

A factor on a head's output, before the output projection, is the same factor on that head's columns of the projection's
weight. Only factors on outputs that are the same in every row of every prompt can go there (`Method.fixed`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import ConfigError, SightlineError, UnsupportedModelError
from ..common.files import provenance, write_json
from ..plugin.calibration.folded import MARKER
from ..plugin.core.families import find_family
from .plan import ServedPlan

SCHEMA = 1
PROJECTION = "o_proj"
SEEING_NOTE = (
    "the factors hold for prompts with a picture: without one, vhr would leave the heads as they are, and these weights do"
    " not"
)


def export(
    model: Any, processor: Any, plan: ServedPlan, out: Path, *, fingerprint: Callable[[Any], str] | None = None
) -> dict[str, Any]:
    """Fold a plan into the weights of a loaded model, which is changed, and write model and processor into a folder.

    Args:
        model: in memory, its weights not quantised.
        processor: the model's processor or tokenizer.
        plan: head gains only.
        out: a new or an empty folder; it appears when it is complete.
        fingerprint: makes a hash of a model's weights, for the record.

    Returns:
        What lies in the folder's `sightline.json`: what was folded, from which configuration and calibration.

    Raises:
        ConfigError: the plan has more than head gains.
        UnsupportedModelError: the weights do not take them.
        SightlineError: the folder is taken or cannot be written.
    """
    if plan.copied is not None:
        raise ConfigError(
            f"decoder '{plan.copied.decoder}' compares two runs at each token, which no weights can hold: leave it out, or"
            " use sightline serve, which carries it"
        )
    if plan.first:
        raise ConfigError(
            "factors on the attention to the first token ('zerotuning') are no weights: leave it out, or use sightline serve,"
            " which carries it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SightlineError(f"cannot write {out}: it is there already; choose a new folder")
    weights = projections(model, plan)
    hashes = {} if fingerprint is None else {"model": fingerprint(model)}
    table = plan.table(plan.seen, 1.0)
    for weight, factors in zip(weights, table, strict=True):
        fold(weight, factors)
    hashes |= {} if fingerprint is None else {"folded": fingerprint(model)}
    hashes |= {} if plan.calibration is None else {"calibration": plan.calibration}
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "model": plan.model,
        "config": plan.config,
        "folded": {"into": PROJECTION, "heads": [list(one) for one in plan.seen]},
        "dtype": str(weights[0].dtype).removeprefix("torch."),
        "note": SEEING_NOTE if plan.looks else None,
        **provenance(hashes),
    }
    if getattr(model, "quantization_method", None) is not None or hasattr(model.config, "quantization_config"):
        _forget_quantisation(model)  # of a GGUF file, which was read into plain weights
    _write(model, processor, record, out)
    return record


def fold(weight: Tensor, factors: Tensor) -> None:
    """Scale the columns of each head in a projection's weight [hidden, H * d] by its factor [H], in place."""
    if bool((factors == 1).all()):
        return
    columns = factors.double().repeat_interleave(weight.shape[1] // len(factors)).to(weight.device)
    with torch.no_grad():
        weight.copy_((weight.double() * columns).to(weight.dtype))


def projections(model: Any, plan: ServedPlan) -> list[Tensor]:
    """The weight of each layer's output projection. Raises UnsupportedModelError where one takes no factors."""
    family = find_family(model)
    found: list[Tensor] = []
    for number, layer in enumerate(family.layers(model)):
        if number in family.across(model.config):
            found.append(torch.empty(1, plan.heads))  # it has no factors
            continue
        linear = getattr(family.attention(layer), PROJECTION, None)
        if type(linear) is not nn.Linear or not linear.weight.is_floating_point() or linear.weight.dtype.itemsize < 2:
            kind = type(linear).__name__ if linear is not None else f"no '{PROJECTION}'"
            raise UnsupportedModelError(
                f"layer {number} of '{plan.model}' has {kind}, whose weights take no factors: export the checkpoint that"
                " is not quantised and quantise what comes out, or use sightline serve"
            )
        if linear.weight.is_meta:
            raise UnsupportedModelError(f"the weights of '{plan.model}' are not in memory: load it on one device")
        found.append(linear.weight)
    if len({id(weight) for weight in found}) != plan.layers or len(found) != plan.layers:
        raise UnsupportedModelError(
            f"'{plan.model}' does not have one output projection for each of {plan.layers} layers: use sightline serve"
        )
    return found


def _forget_quantisation(model: Any) -> None:
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)


def _write(model: Any, processor: Any, record: dict[str, Any], out: Path) -> None:
    """The whole folder, in one step."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            model.save_pretrained(new)
            processor.save_pretrained(new)
            write_json(new / MARKER, record)
            new.chmod(0o755)
            if out.is_dir():
                out.rmdir()
            os.replace(new, out)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise SightlineError(f"cannot write {out}: {error.strerror or error}; choose another place") from error
