"""Opening pictures that users name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import SightlineError


def open_image(path: Path) -> Any:
    """An RGB image.

    Raises:
        SightlineError: there is no such file, or it is no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise SightlineError(f"no image at {path}: check --image") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise SightlineError(f"cannot read {path} as an image: give a PNG, JPEG or WebP file") from error
