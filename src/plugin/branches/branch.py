"""What a branch is: a weakened copy of the model beside it, as data. `fork.py` carries it through a prompt.

How the copy gets its prompt:

- "shared": it differs from the last prompt token on. That token rides as one more position of the prompt's pass, and
  in every later step the copy reads the base's own prompt keys, which are neither computed nor stored twice.
- "beside": its rows read the same prompt with their own edits, in the prompt's pass.
- a function: it reads a prompt of its own (no image, another image, no context), in a pass of its own. Its positions are
  shifted so that both prompts end at the same position; rotary attention sees only distances, so nothing else changes,
  and prompts of different length need no padding against each other.
- several functions: as many copies, each with a prompt of its own; behind the prompt they are rows like any others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..core.edits import Edits
from ..core.layout import Step

Rewrite = Callable[[dict[str, Any]], dict[str, Any]]  # arguments of the base's forward -> of the branch's


@dataclass(frozen=True)
class Branch:
    """How the weakened copy differs from the model.

    prompt: see the module. A copy that reads the base's prompt carries the methods' edits as the base does; one with a
    prompt of its own runs plain, because the edits are about the base's tokens.
    edits: its own edits for a pass, on top. first: the first layer that differs. anew: in each pass the edits are made
    anew, of what the layers before `first` show of its last row; so several tokens behind the prompt have a pass each.
    """

    prompt: Literal["shared", "beside"] | Rewrite | tuple[Rewrite, ...]
    edits: Callable[[Step], Edits] = lambda step: {}
    first: int = 0
    anew: bool = False

    @property
    def carries(self) -> bool:
        """Whether the methods' edits hold for it too."""
        return isinstance(self.prompt, str)

    @property
    def prompts(self) -> tuple[Rewrite, ...]:
        """The prompts of its copies' own."""
        if isinstance(self.prompt, str):
            return ()
        return self.prompt if isinstance(self.prompt, tuple) else (self.prompt,)
