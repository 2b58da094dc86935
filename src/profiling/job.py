"""A measurement that takes a while: batch by batch, resumable, with half the batch where memory runs out."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..benchmarks.files import replacing
from ..plugin.errors import SightlineError
from ..plugin.method import ModelFacts
from ..plugin.sections import Fact
from .data import Example
from .observe import Batch

Sums = dict[str, Tensor]  # what a stage has added up over the examples so far, float64
SAVE_EVERY = 20.0  # seconds between two writes of the partial file
STARVED = "out of memory with one example at a time: use --dtype bfloat16, smaller pictures, or --device auto"


class Partial:
    """The file that keeps what is measured until all is: sums by stage, and over how many examples they run.

    `request` is what was asked for; a file of another request is not continued. Tensors only, in safetensors.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], *, resume: bool):
        self.path, self.request = path, json.loads(json.dumps(request, default=str))
        self.done: dict[str, int] = {}
        self.seconds: dict[str, float] = {}  # wall time by profile, over all runs
        self._sums: dict[str, Sums] = {}
        self._saved = time.monotonic()
        if resume and path.is_file():
            self._load()

    def get(self, stage: str) -> tuple[Sums, int]:
        return self._sums.get(stage, {}), self.done.get(stage, 0)

    def put(self, stage: str, sums: Sums, done: int) -> None:
        self._sums[stage], self.done[stage] = sums, done
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file in one step; nothing where nothing was measured."""
        from safetensors.torch import save_file

        if self.done:
            tensors = {
                f"{s}/{key}": value.contiguous() for s, sums in self._sums.items() for key, value in sums.items()
            }
            head = {"request": self.request, "done": self.done, "seconds": self.seconds}
            with replacing(self.path) as new:
                save_file(tensors, new, metadata={key: json.dumps(value) for key, value in head.items()})
        self._saved = time.monotonic()

    @contextmanager
    def timed(self, profile: str) -> Iterator[None]:
        """Count the time inside for a profile."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[profile] = self.seconds.get(profile, 0.0) + time.monotonic() - started

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        """Raises SightlineError where the file is damaged or of another request."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                head = file.metadata()
                request, done, seconds = (json.loads(head[key]) for key in ("request", "done", "seconds"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise SightlineError(
                f"cannot continue from {self.path}, it is damaged: start anew without --resume"
            ) from error
        for key, value in self.request.items():
            if request.get(key) != value:
                raise SightlineError(
                    f"cannot continue from {self.path}: it was begun with {key} {request.get(key)}, not {value}; ask"
                    " for the same again, or start anew without --resume"
                )
        self.done, self.seconds = done, seconds
        for name, tensor in tensors.items():
            stage, _, key = name.rpartition("/")
            self._sums.setdefault(stage, {})[key] = tensor


class Job:
    """What a profile is given: the model, the examples to show it, and how to add up over them.

    known: the sections found so far, by name. say: tells the user something. advance: called with a name, the number of
    steps done and that of all.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        examples: Sequence[Example],
        facts: ModelFacts,
        partial: Partial,
        *,
        seed: int = 0,
        batch: int = 8,
        known: dict[str, Fact] | None = None,
        say: Callable[[str], None] = lambda _: None,
        advance: Callable[[str, int, int], None] = lambda name, done, total: None,
    ):
        self.model, self.processor, self.examples, self.facts = model, processor, examples, facts
        self.partial, self.seed, self.batch = partial, seed, batch
        self.known = {} if known is None else known
        self.say, self.advance = say, advance
        self.profile = ""
        self.samples = 0  # behind the section that was measured last

    def total(
        self, stage: str, look: Callable[[Batch], Mapping[str, Tensor]], examples: Sequence[Example] | None = None
    ) -> Sums:
        """The sums of what `look` finds in every batch of the examples."""
        shown = self.examples if examples is None else examples
        key = f"{self.profile}/{stage}"
        sums, done = self.partial.get(key)
        while done < len(shown):
            self.advance(self.profile, done, len(shown))
            found = self._try(look, shown[done : done + self.batch])
            if found is None:
                continue
            done += min(self.batch, len(shown) - done)
            sums = {name: value.double().cpu() + sums.get(name, 0) for name, value in found.items()}
            self.partial.put(key, sums, done)
        self.advance(self.profile, done, len(shown))
        self.samples = done
        return sums

    def keep(self, stage: str, make: Callable[[], Mapping[str, Tensor]]) -> Sums:
        """What `make` finds, unless the partial file has it; for what is measured in one piece."""
        key = f"{self.profile}/{stage}"
        sums, done = self.partial.get(key)
        if not done:
            try:
                sums = dict(make())
            except (RuntimeError, MemoryError) as error:
                if out_of_memory(error):
                    raise SightlineError(STARVED) from error
                raise
            self.partial.put(key, sums, 1)
        return sums

    def _try(
        self, look: Callable[[Batch], Mapping[str, Tensor]], shown: Sequence[Example]
    ) -> Mapping[str, Tensor] | None:
        """None where memory ran out; the batch is then halved. Raises SightlineError where it cannot be."""
        try:
            return look(Batch(self.model, self.processor, shown))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if len(shown) == 1:
            raise SightlineError(STARVED)
        self.batch = max(1, len(shown) // 2)
        self.say(f"{self.profile}: out of memory with {len(shown)} examples at once, continuing with {self.batch}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def rounded(scores: Tensor) -> list[list[float]]:
    """[layers, heads] for a file."""
    return [[float(f"{value:.5g}") for value in row] for row in scores.tolist()]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so; on the CPU torch raises a plain RuntimeError."""
    said = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said or "allocate memory" in said
    )
