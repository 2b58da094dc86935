"""The configuration: which methods and which decoder with which settings, from a name, a dict, or a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..common.documents import is_file, read_yaml
from ..common.errors import ConfigError, shortened, shown
from ..common.validation import describe, suggest
from .branches.decoder import DECODERS
from .calibration.files import Calibration
from .composition import check
from .core.method import Registered, Settings
from .core.registry import METHODS, PREPROCESSORS, Registry

KEYS = ("calibration", "when", "methods", "decoder")


class Config(BaseModel):
    """Parsed configuration. `methods` are (name, settings) in the order in which their edits compose; `decoder` is one.

    A gate of the whole (`when`) is that of each part that has none of its own.
    `calibration` is "auto", a path (relative ones are taken from the file's folder), a dict of the file's shape, or None
    for "auto if a file is shipped".
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    methods: tuple[tuple[str, Settings], ...] = ()
    decoder: tuple[str, Settings] | None = None
    calibration: str | dict[str, Any] | None = None

    @classmethod
    def load(cls, source: Config | Mapping[str, Any] | str | Path) -> Config:
        """Read a configuration: an object, a dict of the YAML's shape, a path to a YAML file, or a registered name.

        Raises ConfigError naming the file, the key and what it takes.
        """
        if isinstance(source, Config):
            return source
        if isinstance(source, Mapping):
            return _parse(source, "the configuration", None)
        if isinstance(source, str) and source in DECODERS:
            return cls(decoder=(source, DECODERS.find(source).config()))
        if isinstance(source, str) and source in METHODS:
            return cls(methods=((source, METHODS.find(source).config()),))
        if not isinstance(source, str | Path):
            raise ConfigError(
                f"a configuration is a method's name, a path, a dict or a Config, not {type(source).__name__}"
            )
        path, name = Path(source), shortened(str(source), 200)
        if not is_file(path):
            if path.suffix or path.name != str(source):
                raise ConfigError(f"configuration file '{name}' does not exist: check the path")
            _refuse_preprocessor(source)
            raise ConfigError(
                f"unknown method or decoder '{name}'{suggest(str(source), list(methods()))}; registered:"
                f" {', '.join(methods())}"
            )
        where = f"configuration file '{name}'"
        data = read_yaml(path, where=where)
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where} must be a mapping with the keys {', '.join(KEYS)}")
        return _parse(data, where, path.parent)

    @property
    def needs_image(self) -> bool:
        """Whether it refuses a prompt without a picture."""
        names = [name for name, _ in (*self.methods, *([self.decoder] if self.decoder else []))]
        return any(methods()[name].needs_image for name in names)

    def dump(self) -> dict[str, Any]:
        """The dict of the YAML's shape, with every setting that differs from its default."""
        chosen: dict[str, Any] = {"calibration": self.calibration} if self.calibration else {}
        chosen["methods"] = [{name: settings.model_dump(exclude_defaults=True)} for name, settings in self.methods]
        if self.decoder is not None:
            name, settings = self.decoder
            chosen["decoder"] = {name: settings.model_dump(exclude_defaults=True)}
        return chosen


def named_configs(given: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Config]:
    """The configurations of a suite, by name. Raises ConfigError naming the file `where` and the entry."""
    return {name: _parse(config, f"{where}: {name}", None) for name, config in given.items()}


def check_calibrations(configs: Iterable[Config], calibration: Path | None) -> None:
    """Read the calibration files that will be used; a mistake in one should not wait for the model.

    Raises:
        CalibrationError: one cannot be read, or is malformed.
    """
    chosen = [calibration] if calibration is not None else [config.calibration for config in configs]
    for one in chosen:
        if one is not None and one != "auto":
            Calibration.load(one)


def _parse(data: Mapping[str, Any], where: str, folder: Path | None) -> Config:
    for key in data:
        if key not in KEYS:
            raise ConfigError(
                f"{where}: unknown key {shown(key)}{suggest(str(key), list(KEYS))}; allowed: {', '.join(KEYS)}"
            )
    entries = data.get("methods")
    entries = [] if entries is None else entries
    if not isinstance(entries, list | tuple):
        raise ConfigError(
            f"{where}: 'methods' must be a list such as [{{vhr: {{alpha: 2.0}}}}], not {type(entries).__name__}"
        )
    when = data.get("when")
    parsed = tuple(_entry(METHODS, entry, f"methods[{i}]", where, when) for i, entry in enumerate(entries))
    names = [name for name, _ in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: 'methods' lists '{name}' more than once: give it one entry")
    decoder = data.get("decoder")
    chosen = None if decoder is None else _entry(DECODERS, decoder, "decoder", where, when)
    check([*map(METHODS.find, names), *([] if chosen is None else [DECODERS.find(chosen[0])])], where)
    calibration = data.get("calibration")
    if calibration is not None and not isinstance(calibration, str | Path | Mapping):
        raise ConfigError(f"{where}: 'calibration' must be auto, a path or a mapping (got {shown(calibration)})")
    if isinstance(calibration, str | Path):
        calibration = str(folder / calibration if folder is not None and str(calibration) != "auto" else calibration)
    return Config(
        methods=parsed,
        decoder=chosen,
        calibration=dict(calibration) if isinstance(calibration, Mapping) else calibration,
    )


def _entry(registry: Registry[Any], entry: Any, key: str, where: str, when: Any = None) -> tuple[str, Settings]:
    """One entry. when: the gate of the whole, for what has none of its own."""
    kind = registry.kind
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(
            f"{where}: '{key}' must be a {kind}'s name or one name with its settings (got {shown(entry)})"
        )
    ((name, values),) = entry.items()
    other = DECODERS if registry is METHODS else METHODS
    if name not in registry and name in other:
        home = "decoder: NAME" if other is DECODERS else "methods: [NAME]"
        raise ConfigError(
            f"{where}: '{key}': '{name}' is a {other.kind}: write it as {home.replace('NAME', str(name))}"
        )
    if name not in registry:
        _refuse_preprocessor(name, f"{where}: '{key}': ")
    try:
        schema = registry.find(str(name)).config
    except ConfigError as error:
        raise ConfigError(f"{where}: '{key}': {error}") from None
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: '{key}.{name}' must be a mapping of settings (got {shown(values)}); allowed: {', '.join(schema.model_fields)}"
        )
    own = schema.model_fields["when"].default if "when" in schema.model_fields else None
    gate = {"when": when} if when is not None and own is None else {}
    try:
        return str(name), schema.model_validate({**gate, **dict(values or {})})
    except ValidationError as error:
        raise ConfigError(describe(error, where, schema, f"{key}.{name}")) from error


def _refuse_preprocessor(name: Any, where: str = "") -> None:
    """Say where a name belongs that is no part of a configuration."""
    if name in PREPROCESSORS:
        raise ConfigError(
            f"{where}'{name}' is a preprocessor, which runs before generate: call sightline.{name}(...), or pass --{name} to"
            " sightline generate"
        )


def methods() -> dict[str, type[Registered]]:
    """Every attention method, every decoder and every preprocessor by name."""
    return {**METHODS.known(), **DECODERS.known(), **PREPROCESSORS.known()}
