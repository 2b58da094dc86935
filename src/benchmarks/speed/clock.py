"""What one `generate` call takes: time and memory of its prefill and of each later token."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """One `generate` call: milliseconds (decode: per token) and peak memory in MB, by phase."""

    ms: dict[str, float]
    peak_mb: dict[str, float | None]


class Clock:
    """A stopping criterion that stops nothing: it notes the first and the last token, in seconds."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.memory = Memory(device)
        self.tokens = 0
        self.began = self.prefill = self.decode_began = self.last = 0.0
        self.prefill_peak: float | None = None

    def start(self) -> None:
        """Begin the prefill."""
        self.memory.reset()
        self.began = self._now()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        self.last = self._now()
        self.tokens += 1
        if self.tokens == 1:
            self.prefill = self.last - self.began
            self.prefill_peak = self.memory.peak_mb()
            self.memory.reset()
            self.decode_began = self._now()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def sample(self) -> Timing:
        """What was measured since `start`."""
        return Timing(
            {"prefill": 1000 * self.prefill, "decode": 1000 * (self.last - self.decode_began) / (self.tokens - 1)},
            {"prefill": self.prefill_peak, "decode": self.memory.peak_mb()},
        )

    def _now(self) -> float:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Memory:
    """Peak memory since the last reset: CUDA's own count, or the process's resident memory.

    Only Linux can reset the resident peak (and some containers forbid it); elsewhere there is no number per phase.
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self.resettable = True

    def reset(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.resettable = False

    def peak_mb(self) -> float | None:
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if not self.resettable:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**10
        return None
