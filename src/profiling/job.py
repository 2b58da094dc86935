"""A measurement that takes a while: a few examples at a time, added up, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..common.documents import parse_json
from ..common.errors import SightlineError, shown
from ..common.files import replacing
from ..models.observe import Batch
from ..models.samples import Example
from ..plugin.calibration.sections import SourcedSection
from ..plugin.core.method import ModelFacts
from .pace import Pace

T = TypeVar("T")
Sums = dict[str, Tensor]  # what a stage has added up over the examples so far, float64
SAVE_EVERY = 20.0  # seconds between two writes of the partial file


class Partial:
    """The file that keeps what is measured until all is: sums by stage, and over how many examples they run.

    `request` is what was asked for; a file of another request is not continued. Tensors only, in safetensors. Without a
    path nothing is written.
    """

    def __init__(self, path: Path | None, request: Mapping[str, Any], *, resume: bool):
        self.path, self.request = path, json.loads(json.dumps(request, default=str))
        self.done: dict[str, int] = {}
        self.seconds: dict[str, float] = {}  # wall time by profile, over all runs
        self._sums: dict[str, Sums] = {}
        self._saved = time.monotonic()
        if resume and path is not None and path.is_file():
            self._load(path)

    def get(self, stage: str) -> tuple[Sums, int]:
        return self._sums.get(stage, {}), self.done.get(stage, 0)

    def put(self, stage: str, sums: Sums, done: int) -> None:
        self._sums[stage], self.done[stage] = sums, done
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file in one step; nothing where nothing was measured."""
        from safetensors.torch import save

        if self.done and self.path is not None:
            tensors = {
                f"{s}/{key}": value.contiguous() for s, sums in self._sums.items() for key, value in sums.items()
            }
            head = {"request": self.request, "done": self.done, "seconds": self.seconds}
            with replacing(self.path) as new:
                new.write_bytes(save(tensors, {key: json.dumps(value) for key, value in head.items()}))
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
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        """Raises SightlineError where the file is damaged or of another request."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                head = file.metadata()
                request, done, seconds = (_object(head[key], path) for key in ("request", "done", "seconds"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, SightlineError, OSError, TypeError, KeyError, ValueError) as error:
            raise SightlineError(f"cannot continue from {path}, it is damaged: start anew without --resume") from error
        for key, value in self.request.items():
            if request.get(key) != value:
                raise SightlineError(
                    f"cannot continue from {path}: it was begun with {key} {shown(request.get(key))}, not {shown(value)}; ask"
                    " for the same again, or start anew without --resume"
                )
        self.done, self.seconds = done, seconds
        for name, tensor in tensors.items():
            stage, _, key = name.rpartition("/")
            self._sums.setdefault(stage, {})[key] = tensor


def _object(written: str, path: Path) -> dict[str, Any]:
    found = parse_json(written, str(path))
    if not isinstance(found, dict) or not all(isinstance(one, int | float | str) for one in found.values()):
        raise ValueError("no object of plain values")
    return found


class Job:
    """What a profile is given: the model, the examples to show it, and how to add up over them.

    batch: examples at a time, fewer where memory runs out. known: the sections found so far, by name. say: tells the user
    something. advance: called with the profile, the number of examples done and that of all.
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
        known: dict[str, SourcedSection] | None = None,
        say: Callable[[str], None] = lambda _: None,
        advance: Callable[[str, int, int], None] = lambda name, done, total: None,
    ):
        self.model, self.processor, self.examples, self.facts = model, processor, examples, facts
        self.partial, self.seed, self.pace = partial, seed, Pace(batch, say)
        self.known = {} if known is None else known
        self.say, self.advance = say, advance
        self.profile = ""
        self.samples = 0  # behind the section that was measured last

    def total(
        self, stage: str, look: Callable[[Batch], Mapping[str, Tensor]], examples: Sequence[Example] | None = None
    ) -> Sums:
        """The sums of what `look` finds in every batch of the examples."""
        shown = self.examples if examples is None else examples
        return self.add(stage, lambda some: look(Batch(self.model, self.processor, some)), shown)

    def add(self, stage: str, look: Callable[[Sequence[T]], Mapping[str, Tensor]], items: Sequence[T]) -> Sums:
        """The sums of what `look` finds in the items, a few at a time; what the partial file has is not looked at again."""
        key = f"{self.profile}/{stage}"
        sums, start = self.partial.get(key)
        self.advance(self.profile, start, len(items))
        for found, done in self.pace.over(items, look, name=self.profile, start=start):
            sums = {name: value.double().cpu() + sums.get(name, 0) for name, value in found.items()}
            self.partial.put(key, sums, done)
            self.advance(self.profile, done, len(items))
        self.samples = len(items)
        return sums


def rounded(scores: Tensor) -> list[list[float]]:
    """[layers, heads] for a file."""
    return [[float(f"{value:.5g}") for value in row] for row in scores.tolist()]
