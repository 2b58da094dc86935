"""A map over the cells of a picture's grid: its value at every pixel, and the picture under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .grid import Grid

if TYPE_CHECKING:
    from PIL import Image

Floats = npt.NDArray[np.float32]
HOT, STRENGTH = (255, 40, 0), 0.75  # colour of the heat and its largest opacity


def stretched(cells: Floats, grid: Grid, size: tuple[int, int]) -> Floats:
    """A map [rows, columns] at every pixel of a picture of `size` (width, height), bilinear: [height, width].

    The value of a cell stands at its middle; beyond the middles of the outer cells the map goes on flat. NaN outside the
    grid's window.
    """
    left, top, right, bottom = grid.window
    along = []
    for low, high, count, pixels in ((top, bottom, grid.rows, size[1]), (left, right, grid.columns, size[0])):
        place = (np.arange(pixels) + 0.5 - low) / (high - low)
        inside = (place > 0) & (place < 1)
        cell = np.clip(place * count - 0.5, 0, count - 1)
        first = np.minimum(cell.astype(int), max(0, count - 2))
        weights = np.zeros((pixels, count))
        weights[np.arange(pixels), first] = 1 - (cell - first)
        weights[np.arange(pixels), np.minimum(first + 1, count - 1)] += cell - first
        weights[~inside] = np.nan
        along.append(weights)
    return (along[0] @ cells.astype(np.float64) @ along[1].T).astype(np.float32)


def glowing(picture: Image.Image, share: Floats) -> Image.Image:
    """The picture in grey under heat [height, width] between 0, transparent, and 1; NaN is 0."""
    from PIL import Image

    opacity = Image.fromarray((255 * STRENGTH * np.nan_to_num(share)).round().astype(np.uint8))
    return Image.composite(Image.new("RGB", picture.size, HOT), picture.convert("L").convert("RGB"), opacity)
