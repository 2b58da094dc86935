"""One prompt batch under way: its layout, a session per method, and the edits of its passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..core.attention import Plan, merge
from ..core.edits import PROBES, Edit
from ..core.layout import Layout, Step
from ..core.method import Session
from ..tracing.record import Record

Edits = Mapping[int, Sequence[Edit]]


class Prompt:
    """What is known of a prompt batch. `record`: of its answer, while one is traced."""

    def __init__(self, layout: Layout, sessions: list[Session], record: Record | None = None):
        self.layout, self.sessions, self.record = layout, sessions, record
        self.edited = [False] * len(sessions)  # whether each has changed anything of a pass
        self._decode_plan: Plan | None = None

    def edits(self, step: Step) -> list[Edits]:
        """The methods' edits of a pass, in their order."""
        made = [session.edits(step) for session in self.sessions]
        for number, edits in enumerate(made):
            self.edited[number] |= any(not isinstance(edit, PROBES) for some in edits.values() for edit in some)
        return made

    def plan(self, step: Step, watched: Sequence[Edits] = (), lasting: bool = True) -> Plan:
        """The plan of a pass. watched: what a decoder adds; lasting: it is the same in every decode step."""
        if not step.reading and self._decode_plan is not None:
            return self._decode_plan
        looked = () if self.record is None else (self.record.watch(step),)
        plan = merge([*self.edits(step), *watched, *looked])
        if not step.reading and lasting:
            self._decode_plan = plan
        return plan

    def note(self, logits: Tensor, weak: Tensor | None) -> None:
        """Tell the record what a pass and its branch say [.., T, V]."""
        if self.record is not None:
            self.record.read(logits[:, -1], None if weak is None else weak[:, -1])

    def stop_recording(self) -> None:
        """The answer is complete; what follows on its cache is no part of it."""
        self.record = self._decode_plan = None
