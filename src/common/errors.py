"""What goes wrong on the user's side. Every message says what, where and how to mend it, on one line."""

from __future__ import annotations

import reprlib

LONGEST = 1000
"""Characters of a message; what is longer loses its middle, so that a file never comes back as its own error."""
LINE = 80
"""Characters of a value that a message shows."""
DISTRIBUTION = "sightline-lvlm"
"""What pip knows the package by; `sightline` there is another project."""


class SightlineError(Exception):
    """Base of every error that a user can mend; the shell prints it as one line and exits with status 2."""

    def __init__(self, message: object = ""):
        super().__init__(shortened(" ".join(str(message).split()), LONGEST))


class ConfigError(SightlineError):
    """A configuration names something that does not exist, or gives it a value that it does not take."""


class CalibrationError(SightlineError):
    """A calibration file is missing, malformed, made for another model, or lacks a value that a method needs."""


class UnsupportedModelError(SightlineError):
    """The model, or the way it was loaded, cannot be edited faithfully."""


class ScoresError(SightlineError):
    """What a method or a decoder made of the model gives no finite scores."""


class LayoutError(SightlineError):
    """The prompt lacks what a method acts on: no image, no rows, or positions that do not fit."""


class DataError(SightlineError):
    """A data file is missing, malformed, or does not belong to the others."""


class CallError(SightlineError):
    """A call of an attached model comes where it would change another one's answer, or could not be edited."""


class UncompiledWarning(UserWarning):
    """`generate` compiles, and what is attached cannot be: its passes run as they are."""


class NoEffectWarning(UserWarning):
    """A method or a decoder that is attached changes nothing of a prompt, and why."""


def install(extra: str) -> str:
    """The command that installs what an extra of the package names."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def shortened(text: str, limit: int) -> str:
    """A text of at most `limit` characters: a longer one loses its middle."""
    if len(text) <= limit:
        return text
    tail = (limit - 5) // 3
    return f"{text[: limit - 5 - tail]} ... {text[len(text) - tail :]}"


def shown(value: object, limit: int = LINE) -> str:
    """A value as a message shows it: its `repr`, but never more than a line, however large or deep it is."""
    try:
        return shortened(_Repr().repr(value), limit)
    except Exception:  # a value that cannot be written down, such as a number of 5,000 digits
        return f"a value of type {type(value).__name__}"


class _Repr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, LINE, LINE, LINE
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8
