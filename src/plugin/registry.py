"""The registry of methods. A method file registers itself; the listing, the YAML schema, the README's table and the

conformance matrix read it from here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from .errors import ConfigError
from .method import Method
from .validation import suggest

_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known under `name` (lower case, unique)."""

    def add(cls: M) -> M:
        if name != name.lower() or _METHODS.get(name, cls) is not cls:
            raise ValueError(f"method name '{name}' is taken or not lower case")
        cls.name = name
        _METHODS[name] = cls
        return cls

    return add


def methods() -> dict[str, type[Method]]:
    """Every registered method by name; the files in `methods/` are imported on the first call."""
    package = importlib.import_module(".methods", __package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))


def find(name: str) -> type[Method]:
    """The method called `name`. Raises ConfigError with the nearest and all known names."""
    known = methods()
    if name not in known:
        raise ConfigError(f"unknown method '{name}'{suggest(name, list(known))}; registered: {', '.join(known)}")
    return known[name]
