"""`sightline generate`: one prompt, one reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..common.errors import SightlineError
from ..common.files import provenance, replacing
from ..common.pictures import open_image
from ..models.loading import load_model
from ..models.prompting import batch_inputs
from ..models.samples import Sample
from .shell import own_calibration


def reply(
    name: str,
    prompt: str,
    image: Path | None,
    config: str | None,
    *,
    calibration: Path | None = None,
    new_tokens: int = 128,
    dtype: str = "float32",
    device: str = "cpu",
    carve: Path | None = None,
    carving: Mapping[str, Any] | None = None,
    explain: Path | None = None,
    say: Callable[[str | None], None] = lambda _: None,
) -> dict[str, Any]:
    """Ask a model once, greedily; returns `model`, `config`, `prompt`, `reply`, `seconds` and where it comes from.

    With `explain` also `marked`, the reply with its weakly grounded words in brackets; `words`, a row for each word;
    `rule`, what makes one weak; `picture`, the file that was written; and a `note` why there is none.

    Args:
        name: see `loading.load_model`.
        prompt: the user's words; the chat template is added.
        image: an image file, or None for a text-only prompt.
        config: a method's name or a YAML file; None for the plain model.
        calibration: a calibration file instead of the configuration's or the shipped one.
        new_tokens: longest reply.
        dtype: number type of the model.
        device: a torch device, or "auto".
        carve: show the model what CARVE makes of the image, and draw what it looked at into this PNG file; `box` and
            `carve_seconds` are returned, too.
        carving: settings of CARVE.
        explain: where to write the picture with the heat of each weakly grounded word.
        say: tells the user something.

    Raises:
        SightlineError: image, configuration or model cannot be read, or do not fit each other.
    """
    if explain is not None and image is None:
        raise SightlineError("--explain says how an answer is grounded in a picture: give one with --image")
    picture = None if image is None else open_image(image)
    from ..plugin.attach import attach
    from ..plugin.config import Config, check_calibrations

    settings = None if config is None else Config.load(config)  # a typing mistake should not wait for the model
    check_calibrations([settings] if settings else [], calibration)
    if settings is not None and settings.needs_image and picture is None:
        raise SightlineError(f"{config} works on a picture, and there is none: give --image")
    if carve is not None:
        from ..preprocessing.carve import carve as look
        from ..preprocessing.carve import checked

        checked(carving or {})
        if picture is None:
            raise SightlineError("--carve looks at a picture: give --image")
        if explain is not None:
            raise SightlineError(
                "--carve shows the model another picture than --explain could draw on: use one of them"
            )
    model, processor = load_model(name, dtype=dtype, device=device)
    if picture is None and hasattr(processor, "image_processor"):
        say(f"note: {name} sees, but there is no picture: without --image it answers the words alone")
    if calibration is None and settings is not None and settings.calibration in (None, "auto"):
        say(own_calibration(model))
    start, found = time.perf_counter(), {}
    if carve is None or picture is None:
        inputs = batch_inputs(model, processor, [Sample("", prompt, picture)])
    else:
        carved = look(model, processor, picture, prompt, **carving or {})
        inputs = carved.inputs(model, processor)
        found = {"box": carved.box, "carve_seconds": time.perf_counter() - start}
        with replacing(carve) as file:
            carved.drawn().save(file, format="png")
    options: dict[str, Any] = {"calibration": calibration, "processor": processor}
    if explain is not None:
        options["trace"] = {"maps": True}
    idle = settings is None and explain is None
    with nullcontext() if idle else attach(model, settings or Config(), **options) as plug:
        start = time.perf_counter()
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False).cpu()
        seconds = time.perf_counter() - start
    text = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    said = {"model": name, "config": config, "prompt": prompt, "reply": text, "seconds": seconds}
    if explain is not None and picture is not None and plug is not None:
        from ..plugin.explain import explained

        explanation = explained(plug, processor, inputs, picture)
        sheet = explanation.pop("sheet")
        if sheet is not None:
            with replacing(explain) as new:
                sheet.save(new, "PNG")
        said |= explanation | {"picture": None if sheet is None else str(explain)}
    return said | found | provenance({})
