"""`sightline generate`: one prompt, one reply."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .files import provenance
from .loading import load_model, open_image, prompt_inputs


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
) -> dict[str, Any]:
    """Ask a model once, greedily; returns `model`, `config`, `prompt`, `reply`, `seconds` and where it comes from.

    Args:
        name: see `loading.load_model`.
        prompt: the user's words; the chat template is added.
        image: an image file, or None for a text-only prompt.
        config: a method's name or a YAML file; None for the plain model.
        calibration: a calibration file instead of the configuration's or the shipped one.
        new_tokens: longest reply.
        dtype: number type of the model.
        device: a torch device.

    Raises:
        SightlineError: image, configuration or model cannot be read, or do not fit each other.
    """
    picture = None if image is None else open_image(image)
    settings = None
    if config is not None:
        from .. import Config, attach

        settings = Config.load(config)  # a typing mistake should not wait for the model
    model, processor = load_model(name, dtype=dtype, device=device)
    inputs = prompt_inputs(model, processor, prompt, picture)
    with nullcontext() if settings is None else attach(model, settings, calibration=calibration, processor=processor):
        start = time.perf_counter()
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False).cpu()
        seconds = time.perf_counter() - start
    text = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    said = {"model": name, "config": config, "prompt": prompt, "reply": text, "seconds": seconds}
    return said | provenance({})
