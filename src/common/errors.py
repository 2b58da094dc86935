"""What goes wrong on the user's side. Every message says what, where and how to mend it, on one line."""

from __future__ import annotations


class SightlineError(Exception):
    """Base of every error that a user can mend; the shell prints it as one line and exits with status 2."""


class ConfigError(SightlineError):
    """A configuration names something that does not exist, or gives it a value that it does not take."""


class CalibrationError(SightlineError):
    """A calibration file is missing, malformed, made for another model, or lacks a value that a method needs."""


class UnsupportedModelError(SightlineError):
    """The model, or the way it was loaded, cannot be edited faithfully."""


class LayoutError(SightlineError):
    """The prompt lacks what a method acts on: no image, no rows, or positions that do not fit."""
