"""Starting vLLM with a configuration: as a Python object, or as a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plugin.calibration.files import Calibration
from ..plugin.config import Config
from .plan import resolve
from .plugin import KEY, check_vllm, register

Calibrated = Calibration | Mapping[str, Any] | str | Path | None


def engine(
    model: str, config: Config | Mapping[str, Any] | str | Path, *, calibration: Calibrated = None, **options: Any
) -> Any:
    """A `vllm.LLM` that runs `model` under a configuration.

    Args:
        model: a checkpoint folder or a hub name.
        config: as for `sightline.attach`. Methods that are known before the prompt, and the decoders decore, hicd, juice.
        calibration: likewise.
        options: vLLM's own, such as `dtype` and `max_model_len`.

    A request answers as the plain model does with `SamplingParams(extra_args={"sightline": "off"})`.

    Raises:
        ConfigError: vLLM cannot carry the configuration, or an option stands against it; nothing has been loaded then.
        SightlineError: there is no vLLM, or it is too old.
    """
    check_vllm()
    asked = request(model, config, calibration)
    register()
    from vllm import LLM

    known = options.pop("additional_config", None) or {}
    return LLM(model, additional_config={**known, KEY: asked}, **options)


def serve(
    model: str, config: str, options: Sequence[str] = (), *, calibration: Path | None = None
) -> None:  # pragma: no cover - the process becomes the server
    """Run vLLM's OpenAI-compatible server with a configuration; `options` are its own. Returns when it ends.

    Raises as `engine` does.
    """
    check_vllm()
    asked = request(model, config, calibration)
    # The command `vllm serve` itself wants a distribution of the name vllm, which a build for CPUs is not.
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    command, parser = ServeSubcommand(), FlexibleArgumentParser(prog="sightline")
    command.subparser_init(parser.add_subparsers(required=True))
    more = ["--additional-config", json.dumps({KEY: asked}), "--middleware", "sightline.serving.http.Choice"]
    arguments = parser.parse_args([command.name, model, *options, *more])
    command.validate(arguments)
    command.cmd(arguments)


def request(
    model: str, config: Config | Mapping[str, Any] | str | Path, calibration: Calibrated = None
) -> dict[str, Any]:
    """What to give vLLM for a configuration as `additional_config["sightline"]`; checked to have a plan."""
    parsed = Config.load(config)
    chosen = calibration if calibration is not None else parsed.calibration
    if isinstance(chosen, Path):
        chosen = str(chosen.absolute())
    elif chosen is not None and not isinstance(chosen, str):
        chosen = Calibration.load(chosen).model_dump(by_alias=True, exclude_none=True, mode="json")
    resolve(model, parsed, chosen)
    return {"config": parsed.dump(), "calibration": chosen}
