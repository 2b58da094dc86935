"""Calibration files: what short profiling runs, or papers, say about one model. YAML, read with `safe_load`.

`schema, model, architecture, layers, heads, source`, then one section per fact (`sections.py`). A section is absent
where nothing is known; a method that needs it says so by name. Files of older schema versions are migrated when read.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from ...common.documents import parse_yaml, read_yaml
from ...common.errors import CalibrationError, shortened
from ...common.files import config_hash
from ...common.validation import describe
from .identity import comparable, identity
from .sections import (
    BoxHeads,
    ConflictHeads,
    FirstToken,
    FocusHeads,
    GateThresholds,
    Gaze,
    Grounding,
    HeadGates,
    HeadTable,
    ImageHeads,
    InducingHeads,
    PremiseHeads,
    Replies,
    RetrievalHeads,
    Section,
    Sink,
    Source,
    SourcedSection,
    VisualHeads,
    WordHeads,
)

SCHEMA = 2
FOLDER = "SIGHTLINE_CALIBRATION"  # environment variable: the user's own calibration files


class Calibration(Section):
    """One model's calibration. `architecture` is `config.model_type`; `layers` and `heads` are the text decoder's."""

    schema_version: int = Field(default=SCHEMA, alias="schema", ge=SCHEMA, le=SCHEMA)
    model: str
    aliases: list[str] = Field(default_factory=list, description="other names under which `auto` finds the file")
    architecture: str
    layers: int = Field(gt=0)
    heads: int = Field(gt=0, description="query heads per layer")
    source: Source | None = None
    sink: Sink | None = None
    gaze: Gaze | None = None
    visual_heads: VisualHeads | None = None
    replies: Replies | None = None
    image_heads: ImageHeads | None = None
    ocr_heads: BoxHeads | None = None
    concept_heads: BoxHeads | None = None
    retrieval_heads: RetrievalHeads | None = None
    inducing_heads: InducingHeads | None = None
    conflict_heads: ConflictHeads | None = None
    first_token: FirstToken | None = None
    focus_heads: FocusHeads | None = None
    premise_heads: PremiseHeads | None = None
    head_gates: HeadGates | None = None
    word_heads: WordHeads | None = None
    grounding: Grounding | None = None
    gate_thresholds: GateThresholds | None = None

    def facts(self) -> dict[str, SourcedSection]:
        """The sections that are there, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if isinstance(value, SourcedSection)}

    def head_tables(self) -> dict[str, HeadTable]:
        """Every [layer][head] table, by its dotted name."""
        return {f"{name}.{key}": table for name, fact in self.facts().items() for key, table in fact.tables().items()}

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        """Data of an older schema in the form of the present one; data without a version is taken to have it."""
        version = data.get("schema", SCHEMA) if isinstance(data, Mapping) else SCHEMA
        if isinstance(version, int) and version > SCHEMA:
            raise ValueError(f"schema {version} is later than this release of sightline reads ({SCHEMA}): upgrade it")
        return _from_1(data) if version == 1 and not isinstance(version, bool) else data

    @model_validator(mode="after")
    def _inside(self) -> Calibration:
        """Every section must fit the model that the file says it is for."""
        for name, fact in self.facts().items():
            fault = fact.fault(self.layers, self.heads)
            if fault is not None:
                raise ValueError(f"{name}.{fault}")
        return self

    @classmethod
    def load(cls, source: Calibration | Mapping[str, Any] | str | Path, model: Any = None) -> Calibration:
        """Read a calibration: an object, a dict of the file's shape, a path, or "auto" for the file known for `model`.

        Raises CalibrationError naming the file, the key and what it takes, or, for "auto", the names that are shipped.
        """
        if isinstance(source, Calibration):
            return source
        if isinstance(source, Mapping):
            return cls._parse(source, "the calibration dict")
        if source == "auto":
            found = find_shipped(model)
            if found is None:
                raise CalibrationError(
                    f"no calibration file is shipped for '{model_name(model)}' (shipped: {', '.join(shipped())}):"
                    f" run `sightline calibrate {shlex.quote(model_name(model))} --profile all`, pass calibration=PATH, or"
                    " the values in the method's own settings"
                )
            return found
        if not isinstance(source, str | Path):
            raise CalibrationError(
                f"a calibration is a path, a dict, a Calibration or auto, not {type(source).__name__}"
            )
        where = f"calibration file '{shortened(str(source), 200)}'"
        return cls._parse(read_yaml(Path(source), error=CalibrationError, where=where), where)

    @classmethod
    def _parse(cls, data: Any, where: str) -> Calibration:
        if not isinstance(data, Mapping):
            raise CalibrationError(f"{where} must be a mapping of keys such as model, architecture, layers, heads")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise CalibrationError(describe(error, where, cls)) from error

    def check(self, architecture: str, layers: int, heads: int, hidden: int) -> None:
        """Refuse a model that this calibration was not made for. Raises CalibrationError with both values."""
        for name, mine, theirs in (
            ("architecture", self.architecture, architecture),
            ("layer count", self.layers, layers),
            ("head count", self.heads, heads),
        ):
            if mine != theirs:
                raise CalibrationError(
                    f"the calibration of '{self.model}' does not fit this model: {name} {mine} in the file, {theirs} in the"
                    " model; pass the file made for it"
                )
        if self.sink is not None and not all(0 <= dim < hidden for dim in self.sink.dims):
            raise CalibrationError(
                f"the calibration of '{self.model}' names sink dimension {max(self.sink.dims)}, but the model's hidden size"
                f" is {hidden}; pass the file made for it"
            )

    def dump(self) -> str:
        """The YAML text of the file."""
        data = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True, default_flow_style=None)


def json_schema() -> dict[str, Any]:
    """The file's format as JSON Schema."""
    schema = Calibration.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "required": ["schema", *schema["required"]],
    }


def _from_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 1: a section's source was a line of text, published or measured as the file."""
    kind = data["source"].get("kind") if isinstance(data.get("source"), Mapping) else None
    new = {**data, "schema": 2}
    for name, section in data.items():
        if isinstance(section, Mapping) and isinstance(section.get("source"), str):
            new[name] = {**section, "source": {"kind": kind, "reference": section["source"]}}
    return new


@cache
def shipped() -> dict[str, Calibration]:
    """The calibration files of the package, by model name."""
    found = {}
    for entry in sorted(files("sightline.calibration").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            where = f"shipped file '{entry.name}'"
            calibration = Calibration._parse(parse_yaml(entry.read_text(encoding="utf-8"), where), where)
            found[calibration.model] = calibration
    return found


def find_shipped(model: Any) -> Calibration | None:
    """The file known for a model: the user's own (`found_own`), else the one shipped for its name or path.

    A shipped file is for the model if the name's last part is that of the file's `model`, or it ends in an alias.
    """
    own = found_own(model)
    return _find_in_package(model) if own is None else _read_own(own, own.stat().st_mtime_ns)


def found_at(model: Any) -> str | None:
    """Which file `find_shipped` takes: the path of the user's own, or whose shipped one."""
    own, shipped_one = found_own(model), _find_in_package(model)
    return str(own) if own is not None else f"shipped for {shipped_one.model}" if shipped_one is not None else None


def found_own(model: Any) -> Path | None:
    """The user's own file for these weights under this name, if there is one.

    Where the weights cannot be compared (quantised, spread over processes, or not loaded yet), the only file of that
    name will do.

    Raises:
        CalibrationError: several would do.
    """
    stem = _own_stem(model)
    known = sorted(own_folder().glob(f"{stem}-{'[0-9a-f]' * 12}.yaml"))
    mine = own_folder() / f"{stem}-{identity(model)}.yaml" if known else None
    if mine in known:
        return mine
    if not known or comparable(model):
        return None
    if len(known) > 1:
        raise CalibrationError(
            f"{len(known)} calibration files could be meant for '{model_name(model)}', first {known[0]}: say which with"
            " calibration=PATH (--calibration)"
        )
    return known[0]


def own_file(model: Any) -> Path:
    """Where `sightline calibrate` writes a model's file, and where it is found.

    It lies in the `own_folder`, under the last part of the model's name and the letters of its weights (`identity`)."""
    return own_folder() / f"{_own_stem(model)}-{identity(model)}.yaml"


def own_folder() -> Path:
    """The folder that the environment variable SIGHTLINE_CALIBRATION names, else one in the user's data folder."""
    folder = os.environ.get(FOLDER)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(folder) if folder else Path(data) / "sightline" / "calibration"


def _own_stem(model: Any) -> str:
    known = _find_in_package(model)
    parts = _parts(model_name(model) if known is None else known.model)
    return re.sub(r"[^\w.+-]+", "_", parts[-1])[:100] if parts else "model"


def model_name(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


@cache
def _read_own(path: Path, changed: int) -> Calibration:
    """A file as it was at time `changed`."""
    return Calibration.load(path)


def _find_in_package(model: Any) -> Calibration | None:
    parts = _parts(model_name(model))
    for calibration in shipped().values():
        endings: Iterator[list[str]] = (_parts(name) for name in calibration.aliases)
        if any(parts[-len(ending) :] == ending for ending in (_parts(calibration.model)[-1:], *endings)):
            return calibration
    return None


def _parts(name: str) -> list[str]:
    return [part.lower() for part in name.replace("\\", "/").split("/") if part]


def calibration_hash(calibration: Calibration | None) -> str:
    """SHA-256 of what a calibration says, "none" without one."""
    return "none" if calibration is None else config_hash(calibration.model_dump(mode="json", exclude_none=True))
