"""The model types that were tried (`known.json`, written by `tests/zoo/table.py`): what works on each, and what does not."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

CHECKS = {  # what is checked of each type -> what that means to a user
    "empty": "an empty plan leaves the bits",
    "gain": "head gains",
    "bias": "biases on keys",
    "mass": "attention mass",
    "reweight": "explicit weights",
    "decore": "contrast with masked heads",
    "padded": "left-padded batches",
    "picture": "a picture in the prompt",
    "detach": "detaching leaves no trace",
}


@dataclass(frozen=True)
class KnownType:
    """A model type. results: check -> "ok", or why not. checkpoint: one that its documentation names."""

    name: str
    reads: str  # "pictures" or "text"
    checkpoint: str = ""
    results: dict[str, str] = field(default_factory=dict)

    @property
    def searched(self) -> str:
        return f"{self.name} {self.checkpoint}".lower()

    @property
    def works(self) -> bool:
        """Whether methods run on it, with a picture where it reads pictures: shown on a tiny model of it."""
        needed = ("attach", "empty", "gain", "bias", *(["picture"] if self.reads == "pictures" else []))
        return all(self.results.get(check) == "ok" for check in needed)

    @property
    def refused(self) -> dict[str, str]:
        """The checks that do not hold, each with its reason."""
        return {name: reason for name, reason in self.results.items() if reason != "ok"}

    @property
    def summary(self) -> str:
        """One line for a table."""
        if not self.works:
            return "no: " + "; ".join(self.refused.values())
        return "all" if not self.refused else "all but " + ", ".join(CHECKS.get(name, name) for name in self.refused)

    def lines(self) -> list[str]:
        """What there is to say of it."""
        said = [f"reads {self.reads}" + (f"; such as {self.checkpoint}" if self.checkpoint else "")]
        good = [text for name, text in CHECKS.items() if self.results.get(name) == "ok"]
        if good:
            said.append(f"works: {', '.join(good)}")
        return said + [f"{CHECKS.get(name, name)}: {reason}" for name, reason in self.refused.items()]

    def result(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"name": self.name, "reads": self.reads, "checkpoint": self.checkpoint, "results": self.results}


@functools.cache
def tried() -> dict[str, Any]:
    """The file as it is: the release of transformers that was tried, and its types."""
    return json.loads(files(__package__ or "").joinpath("known.json").read_text(encoding="utf-8"))


@functools.cache
def known_types() -> tuple[KnownType, ...]:
    """Every type that was tried, those that read pictures first."""
    return tuple(KnownType(**one) for one in tried()["types"])


def doubt(model_type: str, check: str) -> str | None:
    """Why a type that nobody declared is not trusted with something; None where its tiny model passed the check."""
    results = next((one.results for one in known_types() if one.name == model_type), {})
    said = results.get(check, "it was not tried")
    return None if said == "ok" else said
