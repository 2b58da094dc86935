"""Opening pictures that users name: raster formats only, and none that is too large to decode."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import SightlineError, shortened

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened, whatever a file is called; none of them starts another program or runs what a file says."""
PIXELS = 100_000_000
"""Pixels that a picture may have."""


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    """A picture that is open, not decoded yet; what goes wrong while it is decoded inside the block is typed, too.

    Raises:
        SightlineError: there is no such file, it is no picture of `FORMATS`, is damaged, or has more than `PIXELS`.
    """
    from PIL import Image

    name = shortened(str(path), 200)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SightlineError(f"cannot read {name} as an image: it is no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below its error's
            picture = Image.open(path, formats=FORMATS)
        with picture:
            width, height = picture.size
            if width * height > PIXELS:
                raise SightlineError(
                    f"cannot read {name} as an image: {width} x {height} pixels are more than {PIXELS:,}; make it smaller"
                )
            yield picture
    except SightlineError:
        raise
    except FileNotFoundError:
        raise SightlineError(f"no image at {name}: check --image") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise SightlineError(f"cannot read {name} as an image: give a PNG, JPEG or WebP file") from error


def open_image(path: Path) -> Image:
    """An RGB image.

    Raises:
        SightlineError: as `opened`.
    """
    with opened(path) as picture:
        return picture.convert("RGB")
