"""One prompt batch under way: its layout, a session per method, and the edits of its passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..core.attention import Plan, merge
from ..core.edits import PROBES, Edits
from ..core.layout import Layout, Step
from ..core.method import Session
from ..core.partial import late, partly
from ..tracing.record import Record
from .gates import Gates


class Prompt:
    """What is known of a prompt batch.

    record: of its answer, while one is traced. placed: brings edits' tensors to the devices of their layers.
    """

    def __init__(
        self,
        layout: Layout,
        sessions: list[Session],
        gates: Gates,
        record: Record | None = None,
        placed: Callable[[Edits], Edits] = lambda edits: edits,
    ):
        self.layout, self.sessions, self.gates, self.record, self._placed = layout, sessions, gates, record, placed
        self.edited = [False] * len(sessions)  # whether each had an edit for a pass
        self._decode_edits: list[Edits] = []
        self._decode_plan: Plan | None = None

    def edits(self, step: Step) -> list[Edits]:
        """The methods' edits of a pass, in their order, by the strength that their gates leave them."""
        if step.reading or not self._decode_edits:
            made = [session.edits(step) for session in self.sessions]
            if not step.reading:
                self._decode_edits = made = [self._placed(edits) for edits in made]
        else:
            made = self._decode_edits
        for number, edits in enumerate(made):
            self.edited[number] |= any(not isinstance(edit, PROBES) for some in edits.values() for edit in some)
        return [self.gated(number, edits, step) for number, edits in enumerate(made)]

    def gated(self, number: int, edits: Edits, step: Step) -> Edits:
        """What is left of a method's edits where its gate is not open."""
        gate = self.gates.of[number]
        if gate is not None and gate.when.by == "layer":
            return late(edits, gate.at_layer, step)
        return edits if gate is None else partly(edits, gate.strength, step, self.gates.unseen)

    def plan(self, step: Step, watched: Sequence[Edits] = ()) -> Plan:
        """The plan of a pass. watched: what a decoder adds."""
        if not step.reading and self._decode_plan is not None:
            return self._decode_plan
        looked = () if self.record is None else (self.record.watch(step),)
        plan = merge([*self.edits(step), *watched, *self.gates.watch(step), *looked])
        if not step.reading and not self.gates:
            self._decode_plan = plan
        return plan

    def note(self, logits: Tensor, weak: Tensor | None) -> None:
        """Tell the record what a pass and its branch say [.., T, V]."""
        if self.record is not None:
            self.record.read(logits[:, -1], None if weak is None else weak[:, -1])

    def stop_recording(self) -> None:
        """The answer is complete; what follows on its cache is no part of it."""
        self.record, self._decode_plan = None, None
