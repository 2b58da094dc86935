"""Progress of long work, for a person who waits: a bar in a terminal, else a line now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 30.0
"""Seconds between two lines where standard error is no terminal."""


def progress_bar() -> Progress:
    """Progress on standard error: a bar that leaves nothing behind, or lines where standard error is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Lines(Progress):
        """Says how far the work is, at most every `EVERY` seconds; nothing of work that is done sooner."""

        begun = said = time.monotonic()

        def update(self, task_id: Any, *arguments: Any, **changes: Any) -> None:
            super().update(task_id, *arguments, **changes)
            self._say(task_id)

        def reset(self, task_id: Any, *arguments: Any, **changes: Any) -> None:
            super().reset(task_id, *arguments, **changes)
            self._say(task_id)

        def _say(self, task_id: Any) -> None:
            now = time.monotonic()
            if now - self.said < EVERY:
                return
            self.said = now
            task = next(one for one in self.tasks if one.id == task_id)
            done = f"{task.completed:g}" + ("" if task.total is None else f" of {task.total:g}")
            line = f"{task.description}: {done} done, {_minutes(now - self.begun)} so far"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if console.is_terminal:
        return Progress(*columns, console=console, transient=True)
    return Lines(*columns, console=console, disable=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
