"""Under what a benchmark runs: the plain model, and configurations with the calibration that each uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError
from ...common.files import inside
from ...plugin.calibration.files import Calibration, calibration_hash, find_shipped
from ...plugin.config import Config

PLAIN, ANSWERS = "plain", "answers"
"""The names of the run without a configuration, and of replies that were made elsewhere."""
Attach = Callable[..., AbstractContextManager[Any]]
"""What stands in for `sightline.attach`."""


@dataclass(frozen=True)
class RunPlan:
    """A configuration (None: the plain model) and the calibration it uses."""

    config: Config | None = None
    calibration: Calibration | None = None

    @classmethod
    def of(cls, config: Config, calibration: Path | None, model: Any) -> RunPlan:
        """The calibration is found as `attach` finds it. Raises CalibrationError."""
        chosen = calibration if calibration is not None else config.calibration
        return cls(config, Calibration.load(chosen, model) if chosen is not None else find_shipped(model))

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as a file would hold it; empty for the plain model."""
        return {} if self.config is None else self.config.dump()

    @property
    def identity(self) -> dict[str, Any]:
        """What a folder of results is continued by, and only by."""
        known = None if self.calibration is None else calibration_hash(self.calibration)
        return {"config": None if self.config is None else self.config.dump(), "calibration": known}

    @property
    def needs_image(self) -> bool:
        """Whether the configuration refuses a prompt without a picture."""
        return self.config is not None and self.config.needs_image

    def attached(self, model: Any, processor: Any, *, blind: bool = False) -> Any:
        """The attachment for a batch; none for the plain model, or where there is no picture to work on."""
        if self.config is None or (blind and self.needs_image):
            return nullcontext()
        from ...plugin.attach import attach

        return attach(model, self.config, calibration=self.calibration, processor=processor)


def plans(
    configs: Mapping[str, Config], model: Any, processor: Any, *, calibration: Path | None = None
) -> dict[str, RunPlan]:
    """The plain model, then each configuration, by name. Raises SightlineError where one does not fit the model."""
    found = {PLAIN: RunPlan()} | {name: RunPlan.of(config, calibration, model) for name, config in configs.items()}
    for plan in found.values():  # a configuration that does not fit should fail now, not after minutes
        with plan.attached(model, processor):
            pass
    return found


def named(configs: Sequence[str | Path | Mapping[str, Any]]) -> dict[str, Config]:
    """Configurations by name: a method's name, or a file's without its ending.

    Raises:
        ConfigError: one cannot be read, or two have one name.
    """
    found: dict[str, Config] = {}
    for number, one in enumerate(configs):
        name = f"config-{number}" if isinstance(one, Mapping) else Path(one).stem
        inside(Path(), name)
        if name in found or name in (PLAIN, ANSWERS):
            raise ConfigError(f"two runs would be called {name!r}: rename the file of one")
        found[name] = Config.load(one)
    return found
