"""One training stage: batches that depend on the step alone, AdamW, a schedule, checkpoints, a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_state, save_state


@dataclass(frozen=True)
class StageConfig:
    """`steps` of `batch` scenes at peak rate `lr`; `save_every` seconds between checkpoints.

    With `minutes` the schedule runs over so much training time instead of `steps`, which then only bound it: a machine
    that is shared gives an unknown number of steps. `decay` is "cosine" or "linear".
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.02
    floor: float = 0.05
    save_every: float = 90.0
    log_every: int = 50
    minutes: float | None = None
    decay: str = "cosine"

    def done(self, step: int, seconds: float) -> float:
        """The share of the schedule after the warm-up that lies behind."""
        if self.minutes is not None:
            return min(1.0, seconds / 60 / self.minutes)
        return min(1.0, max(0, step - self.warmup) / max(1, self.steps - self.warmup))

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Linear warm-up, then down from `lr` to `floor * lr`."""
        done = self.done(step, seconds)
        left = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * (self.floor + (1 - self.floor) * left)

    def over(self, step: int, seconds: float) -> bool:
        """Nothing is left to do."""
        return step >= self.steps or (self.minutes is not None and seconds >= 60 * self.minutes)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 matrix products where the hardware has them: two to three times faster, parameters stay float32."""
    fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def stands(stage: str, given: Sequence[str], order: Sequence[str]) -> bool:
    """Whether what was learned in a stage earlier still counts: no stage before it is given to be trained now."""
    return not set(given) & set(order[: order.index(stage)])


def run_stage(
    name: str,
    config: StageConfig,
    module: torch.nn.Module,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[Any], tuple[torch.Tensor, dict[str, float]]],
    path: Path,
    *,
    resume: bool,
    device: torch.device,
    quiet: bool = False,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train `module` and return its progress {"step", "seconds", "losses"}; `batches(start)` yields from a step on.

    `stop_after` ends early after that many steps of this call (with a checkpoint), as an interruption would.
    """
    decay = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": []}
    if resume and path.exists():
        progress = load_state(path, module, optimizer)
    if config.over(progress["step"], progress["seconds"]):
        return progress
    module.train()
    first, began, saved = progress["step"], time.monotonic() - progress["seconds"], time.monotonic()
    running: dict[str, float] = {}
    with _bar(name, config.steps, first, quiet) as bar:
        for step, payload in zip(range(first, config.steps), batches(first), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step, progress["seconds"])
            value, parts = loss(payload)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            for key, part in {"loss": float(value.detach()), **parts}.items():
                running[key] = part if key not in running else 0.95 * running[key] + 0.05 * part
            progress["step"], progress["seconds"] = step + 1, time.monotonic() - began
            over = config.over(step + 1, progress["seconds"])
            if (step + 1) % config.log_every == 0 or over:
                progress["losses"].append({"step": step + 1, **{k: round(v, 4) for k, v in running.items()}})
            bar(step + 1, running, progress["seconds"])
            last = over or (stop_after is not None and step + 1 - first >= stop_after)
            if last or time.monotonic() - saved > config.save_every:
                save_state(path, module, optimizer, progress)
                saved = time.monotonic()
            if last:
                break
    module.eval()
    return progress


class _bar:
    """A rich progress bar on a terminal; one line every 50 steps elsewhere, so that logs stay short."""

    def __init__(self, name: str, total: int, first: int, quiet: bool) -> None:
        self.name, self.total, self.first, self.quiet = name, total, first, quiet
        self.rich: Any = None

    def __enter__(self) -> _bar:
        from rich.console import Console
        from rich.progress import Progress

        if not self.quiet and Console().is_terminal:
            self.rich = Progress(transient=False)
            self.rich.start()
            self.task = self.rich.add_task(self.name, total=self.total, completed=self.first)
        return self

    def __call__(self, step: int, parts: dict[str, float], seconds: float) -> None:
        text = " ".join(f"{key} {value:.3f}" for key, value in parts.items())
        if self.rich is not None:
            self.rich.update(self.task, completed=step, description=f"{self.name} {text}")
        elif not self.quiet and (step % 50 == 0 or step == self.total):
            print(f"{self.name} {step}/{self.total} {text} {seconds:.0f} s", flush=True)

    def __exit__(self, *_: object) -> None:
        if self.rich is not None:
            self.rich.stop()
