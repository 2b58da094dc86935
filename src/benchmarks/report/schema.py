"""The shape of a `result.json`, as far as the report relies on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...common.errors import DataError
from ...common.validation import describe

Grid = list[list[float]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class ReportedRun(_Part):
    """What a result says of one run; the scores of each benchmark stand beside these keys."""

    name: str
    config: dict[str, Any]
    intervals: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]
    against: str | None = None
    head_maps: dict[str, Grid] = Field(default_factory=dict)


class Calibrated(_Part):
    model: str
    head_tables: dict[str, Grid]


class Common(_Part):
    """Every result says how to make it again."""

    command: str
    versions: dict[str, str]
    hashes: dict[str, str]


class Result(Common):
    """Of `sightline eval` or `demo`."""

    runs: list[ReportedRun]
    n: int | None = None
    seed: int = 0
    label: str = ""
    about: str = ""
    notes: list[str] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    calibrations: dict[str, Calibrated] = Field(default_factory=dict)


class Harness(Common):
    """Of `sightline eval --engine`: task -> run -> score."""

    engine: str
    version: str
    tasks: dict[str, dict[str, dict[str, float | int]]]


def check(result: Mapping[str, Any], place: Path, maker: str) -> None:
    """Raises DataError where a result is not of that shape, naming the file, the key and who makes such files."""
    kind = Harness if "tasks" in result else Result
    try:
        kind.model_validate(dict(result))
    except ValidationError as error:
        raise DataError(f"{describe(error, str(place), kind)}; not a result of {maker}") from None
