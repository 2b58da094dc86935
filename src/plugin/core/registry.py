"""The registries of methods, of decoders and of preprocessors.

A file registers what it holds; the listing, the YAML schema, the README's table and the conformance matrix read it from
here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from ...common.errors import ConfigError
from ...common.validation import suggest
from .method import Method, Preprocessor, Registered

R = TypeVar("R", bound=Registered)
C = TypeVar("C", bound=type[Registered])


class Registry(Generic[R]):
    """Classes by name. The files of `package` are imported when somebody first asks."""

    def __init__(self, kind: str, package: str):
        self.kind, self._package = kind, package
        self._known: dict[str, type[R]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: make it known under `name` (lower case, unique)."""

        def add(cls: C) -> C:
            if name != name.lower() or self._known.get(name, cls) is not cls:
                raise ValueError(f"{self.kind} name '{name}' is taken or not lower case")
            cls.name = name
            self._known[name] = cls  # type: ignore[assignment]
            return cls

        return add

    def known(self) -> dict[str, type[R]]:
        """Every registered class by name."""
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        return dict(sorted(self._known.items()))

    def find(self, name: str) -> type[R]:
        """The class called `name`. Raises ConfigError with the nearest and all known names."""
        known = self.known()
        if name not in known:
            raise ConfigError(
                f"unknown {self.kind} '{name}'{suggest(name, list(known))}; registered: {', '.join(known)}"
            )
        return known[name]


METHODS: Registry[Method] = Registry("method", "sightline.plugin.methods")
PREPROCESSORS: Registry[Preprocessor] = Registry("preprocessor", "sightline.preprocessing")
register = METHODS.register
register_preprocessor = PREPROCESSORS.register
