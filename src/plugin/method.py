"""What a method is: settings, and the edits it makes of them for each prompt.

A `Method` lives as long as its attachment and holds nothing of any prompt. For every prompt batch it opens a `Session`,
which holds all state of that prompt and is dropped with it, so that nothing can leak from one call into the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from .calibration import Calibration
from .edits import Edit
from .errors import CalibrationError
from .layout import Layout, Step


class Settings(BaseModel):
    """Base of a method's settings; a field's description is its documentation everywhere."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class ModelFacts:
    """What a method may know of the model: the shape of its text decoder and the calibration, if there is one."""

    name: str
    architecture: str
    layers: int
    heads: int
    hidden: int
    calibration: Calibration | None = None
    query_words: Any = None  # content-word finder: (ids [B, n], query mask [B, n]) -> narrower mask

    def need(self, section: str, method: str) -> Any:
        """A calibration section. Raises CalibrationError that says which method lacks what."""
        value = getattr(self.calibration, section) if self.calibration is not None else None
        if value is None:
            have = (
                f"the calibration of '{self.calibration.model}' has none"
                if self.calibration
                else "there is no calibration"
            )
            raise CalibrationError(
                f"method '{method}' needs the calibration section '{section}' and {have}: pass calibration=PATH with that"
                f" section for '{self.name}', or give the values in the method's settings"
            )
        return value

    def check_layers(self, numbers: Sequence[int], what: str) -> tuple[int, ...]:
        """Sorted distinct layer numbers. Raises CalibrationError for one that the model does not have."""
        for number in numbers:
            if not 0 <= number < self.layers:
                raise CalibrationError(
                    f"{what} names layer {number}, but '{self.name}' has {self.layers} (0..{self.layers - 1})"
                )
        return tuple(sorted(set(numbers)))


class Session:
    """One method on one prompt batch."""

    def read_text_edits(self) -> Mapping[int, Sequence[Edit]]:
        """Probes for the extra pass over the prompt without its image; empty means no such pass is needed."""
        return {}

    def edits(self, step: Step) -> Mapping[int, Sequence[Edit]]:
        """Edits by layer for one forward pass.

        Asked for every pass that holds prompt rows (`step.reading`), then once for all decode passes, whose rows are
        all answer rows. What depends on a single pass belongs into the edits' functions.
        """
        raise NotImplementedError

    #: The edits of the last prompt row need something that the whole prompt's pass yields first (GIFT's saliency).
    hold_back: bool = False
    #: `edits` must see the last prompt row in the same pass as the other rows (VHR's choice of heads).
    whole_prompt: bool = False

    def report(self) -> dict[str, Any]:
        """What the method decided for this prompt, for reports."""
        return {}


class Method:
    """A registered method. Subclasses are made by the registry's decorator and describe themselves.

    summary, source: one line each for listings. cost: extra passes and what runs per token. needs: calibration
    sections. needs_image: refuses prompts without any image.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    needs_image: ClassVar[bool] = True
    config: ClassVar[type[Settings]]

    def __init__(self, settings: Any, facts: ModelFacts):
        """Bind settings to a model. Raises CalibrationError where a value is missing or does not fit."""
        self.settings = settings
        self.facts = facts

    def start(self, layout: Layout) -> Session:
        """Open a session for a prompt batch."""
        raise NotImplementedError
