"""What of an attachment acted on a prompt, and what could do nothing: said in reports, and once as a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import NoEffectWarning
from ..branches.decoder import Contrast
from ..core.layout import Layout
from ..core.method import Method, Registered, Session, lacking
from .gates import Gate
from .strategies import Contrasted, Reading

UNEDITED = "it made no edit: its settings change nothing, or nothing in the prompt and its answer was there to act on"


@dataclass
class Effects:
    """Who is attached, and which warnings have been given. quiet: none are."""

    methods: dict[str, Method]
    decoder: Any  # Decoder, None without
    quiet: bool = False
    _given: set[tuple[str, str]] = field(default_factory=set)

    def report(self, reading: Reading) -> dict[str, dict[str, Any]]:
        """What each decided for the prompt batch, whether it `acted`, and, by batch row, why it was `idle`."""
        return {
            one.name: {
                **decided.report(),
                **({} if gate is None else gate.report()),
                "acted": acted,
                **({"idle": idle} if idle else {}),
            }
            for one, decided, gate, acted, idle in self._all(reading)
        }

    def warn(self, reading: Reading) -> None:
        """Say once what could do nothing for a prompt."""
        for one, _, gate, acted, idle in self._all(reading):
            if not acted and not idle and (gate is None or gate.opened):
                self._say(one, f"{one.kind} '{one.name}' changed nothing of this prompt: {UNEDITED}")
            for row, reason in idle.items():
                self._say(one, f"{one.kind} '{one.name}' can do nothing for row {row} of the prompt: {reason}", reason)

    def _say(self, one: Registered, text: str, reason: str = UNEDITED) -> None:
        if not self.quiet and (one.name, reason) not in self._given:
            self._given.add((one.name, reason))
            warnings.warn(text, NoEffectWarning, stacklevel=2)

    def _all(
        self, reading: Reading
    ) -> Iterator[tuple[Registered, Session | Contrast, Gate | None, bool, dict[int, str]]]:
        prompt, gates = reading.prompt, reading.gates
        methods = zip(self.methods.values(), prompt.sessions, gates.of, prompt.edited, strict=True)
        for method, session, gate, edited in methods:
            idle = _idle(method, session, prompt.layout)
            acted = edited and (gate is None or gate.opened)
            yield method, session, gate, acted and len(idle) < prompt.layout.batch, idle
        if isinstance(reading, Contrasted):
            idle = _idle(self.decoder, reading.contrast, prompt.layout)
            acted = gates.decoder is None or gates.decoder.opened
            yield self.decoder, reading.contrast, gates.decoder, acted and len(idle) < prompt.layout.batch, idle


def _idle(one: Registered, decided: Session | Contrast, layout: Layout) -> dict[int, str]:
    """Why it can do nothing, by batch row."""
    blind = lacking(layout.image.any(-1), "it has no image") if one.needs_image else {}
    return dict(sorted({**decided.idle(), **blind}.items()))
