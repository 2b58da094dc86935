"""What the adapters of both harnesses do before the first request: this process's place, the model, the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ...common.errors import ConfigError
from ...models.loading import check_whole, load_model
from ...plugin.config import Config
from ..runner.plan import RunPlan


@dataclass(frozen=True)
class Adapted:
    """A model in this process of all, its processor, the rows of a batch, and the plan that it runs under."""

    accelerator: Accelerator
    model: Any
    processor: Any
    batch: int
    plan: RunPlan


def adapted(
    pretrained: Any,
    processor: Any = None,
    *,
    config: Config | Mapping[str, Any] | str | None = None,
    calibration: Path | str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    batch_size: int | str = 1,
) -> Adapted:
    """Load what a harness's arguments name.

    Args:
        pretrained: see `loading.load_model`; or a model in eval mode, which brings its `processor`.
        config: a method's name, a YAML file, a dict of that shape; None for the plain model.
        calibration: a calibration file instead of the configuration's or the shipped one.
        dtype: number type of the model.
        device: a torch device or "auto"; by default, and for "cuda", the one that accelerate gives this process.
        batch_size: rows of one batch.

    Raises:
        SightlineError: the model cannot be loaded, or the configuration does not fit it.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # else torchrun's processes would each do all
    if isinstance(pretrained, str):
        place = str(accelerator.device) if device in (None, "cuda") else str(device)
        pretrained, processor = load_model(pretrained, dtype=dtype, device=place)
    check_whole(pretrained, accelerator.num_processes)
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ConfigError(f"--batch_size {batch_size!r}: give a number of rows")
    plan = RunPlan()
    if config is not None:
        plan = RunPlan.of(Config.load(config), None if calibration is None else Path(calibration), pretrained)
    with plan.attached(pretrained, processor):
        pass  # a configuration that does not fit should fail now
    return Adapted(accelerator, pretrained, processor, int(batch_size), plan)
