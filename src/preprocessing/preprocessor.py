"""What a preprocessor is to the registry: settings and facts, as of a method. How it is called is its own affair."""

from __future__ import annotations

from ..plugin.method import Registered


class Preprocessor(Registered):
    """A registered step before `generate`."""

    kind = "preprocessor"
