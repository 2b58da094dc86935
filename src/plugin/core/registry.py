"""The registries of methods, of decoders and of preprocessors: classes by name, found by being there.

A class lives in a file of its package called after it, or in another distribution that names it under an entry point
group (`sightline.methods`, `sightline.decoders`, `sightline.preprocessors`). The listing, the YAML schema, the README's
table and the tests read it from here.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from ...common.errors import ConfigError
from ...common.validation import suggest
from .method import Method, Preprocessor, Registered

R = TypeVar("R", bound=Registered)
C = TypeVar("C", bound=type[Registered])


class Registry(Generic[R]):
    """Classes of one kind by name; a file is imported when its name is first asked for."""

    def __init__(self, kind: str, package: str):
        self.kind, self._package = kind, package
        self._registered: dict[str, type[R]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: make it known under `name` (lower case, unique). Raises ValueError for another."""

        def add(cls: C) -> C:
            if name != name.lower() or self._registered.get(name, cls) is not cls:
                raise ValueError(f"{self.kind} name '{name}' is taken or not lower case")
            cls.name = name
            self._registered[name] = cls  # type: ignore[assignment]
            return cls

        return add

    def known(self) -> dict[str, type[R]]:
        """Every class by name; warns of what another distribution brings and cannot be loaded, and leaves it out."""
        for name in {**self._files, **self._foreign}:
            try:
                self._load(name)
            except ConfigError as error:
                warnings.warn(str(error), stacklevel=2)
        return dict(sorted(self._registered.items()))

    def find(self, name: str) -> type[R]:
        """The class called `name`. Raises ConfigError with the nearest and all known names."""
        if name not in self:
            known = self.known()
            raise ConfigError(
                f"unknown {self.kind} '{name}'{suggest(name, list(known))}; registered: {', '.join(known)}"
            )
        return self._registered[name]

    @cached_property
    def _files(self) -> dict[str, str]:
        """Modules of the package, by their last name."""
        package = importlib.import_module(self._package)
        return {module.name: f"{self._package}.{module.name}" for module in pkgutil.iter_modules(package.__path__)}

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        """What other distributions bring, by name."""
        return {point.name: point for point in entry_points(group=f"sightline.{self.kind}s")}

    def __contains__(self, name: object) -> bool:
        """Whether a class is called that."""
        if not isinstance(name, str):
            return False
        self._load(name)
        return name in self._registered

    def _load(self, name: str) -> None:
        """Import what registers `name`, if there is such a thing."""
        if name in self._registered:
            return
        if name in self._files:
            importlib.import_module(self._files[name])
        elif name in self._foreign:
            point = self._foreign[name]
            try:
                found = point.load()
            except Exception as error:  # whatever a stranger's module raises when it is imported
                raise ConfigError(
                    f"{self.kind} '{name}' of {_origin(point)} cannot be loaded: {type(error).__name__}: {error}; mend or"
                    " uninstall it"
                ) from error
            if name not in self._registered:
                raise ConfigError(
                    f"{_origin(point)} names {found!r} as the {self.kind} '{name}', but it registers none of that name:"
                    f" decorate the class with @register{'' if self.kind == 'method' else '_' + self.kind}('{name}')"
                )


def _origin(point: EntryPoint) -> str:
    """The distribution of an entry point, for messages."""
    return f"'{point.dist.name}'" if point.dist is not None else f"'{point.value}'"


METHODS: Registry[Method] = Registry("method", "sightline.plugin.methods")
PREPROCESSORS: Registry[Preprocessor] = Registry("preprocessor", "sightline.preprocessing")
register = METHODS.register
register_preprocessor = PREPROCESSORS.register
