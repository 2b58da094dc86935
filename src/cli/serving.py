"""The commands `sightline serve` and `sightline export`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shell import CalibrationFile, JsonFile, show, write_json, wrote

ConfigFile = Annotated[str, typer.Option("--config", metavar="FILE|METHOD", help="A YAML file or a method's name.")]


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder or a hub name.")],
    config: ConfigFile,
    calibration: CalibrationFile = None,
) -> None:
    """Serve a model under a configuration by vLLM, as an OpenAI-compatible server; all other options are vLLM's own."""
    from ..serving.launch import serve as run

    run(model, config, context.args, calibration=calibration)


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="'embedded', 'smollm2', a checkpoint folder, or a hub name.")
    ],
    config: ConfigFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the checkpoint.")],
    fold: Annotated[bool, typer.Option("--fold", help="Scale the heads' columns of the output projections.")] = False,
    calibration: CalibrationFile = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: the checkpoint's own.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Write a checkpoint with head gains folded into its weights, for transformers, vLLM, llama.cpp's converter, SGLang."""
    if not fold:
        raise typer.BadParameter("say how with --fold: factors on heads become part of the weights")
    from ..benchmarks.runner.evaluate import fingerprint
    from ..models.loading import load_model, quiet
    from ..models.naming import OURS
    from ..plugin.config import Config
    from ..serving.fold import MARKER
    from ..serving.fold import export as write
    from ..serving.plan import check_unfolded, resolve, stored_dtype

    quiet()
    parsed = Config.load(config)
    check_unfolded(model)
    number_type = dtype or ("float32" if model in OURS else stored_dtype(model))
    loaded, processor = load_model(model, dtype=number_type)
    plan = resolve(loaded.name_or_path or model, parsed, calibration, loaded=loaded.config)
    record = write(loaded, processor, plan, out, fingerprint=fingerprint)
    heads = len(record["folded"]["heads"])
    show(f"folded the factors of {heads} head{'s'[: heads != 1]} into {record['folded']['into']} ({record['dtype']})")
    if record["note"]:
        show(f"note: {record['note']}")
    show(wrote(out), wrote(out / MARKER))
    write_json(json, record)
