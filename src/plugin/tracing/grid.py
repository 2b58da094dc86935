"""Where a prompt's image tokens lie in the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...common.errors import UnsupportedModelError

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the original picture


@dataclass(frozen=True)
class Grid:
    """The picture as its image tokens see it: rows x columns of cells over a `window` of it, counted row by row."""

    rows: int
    columns: int
    window: Box

    def cells(self, box: Box) -> set[int]:
        """Numbers of the cells that a box touches; none where it lies outside."""
        left, top, right, bottom = self.window
        across, down = (right - left) / self.columns, (bottom - top) / self.rows
        x0, y0, x1, y1 = box
        columns = range(max(0, math.floor((x0 - left) / across)), min(self.columns, math.ceil((x1 - left) / across)))
        rows = range(max(0, math.floor((y0 - top) / down)), min(self.rows, math.ceil((y1 - top) / down)))
        return {row * self.columns + column for row in rows for column in columns}


def grid(processor: Any, inputs: Mapping[str, Any], row: int, tokens: int, size: tuple[int, int]) -> Grid:
    """The grid of the only picture of a batch row, from the processor's settings.

    Args:
        inputs: the processor's output.
        tokens: how many image tokens the row has.
        size: width and height of the picture.

    Raises:
        UnsupportedModelError: the order of the image tokens is not known.
    """
    images, (width, height) = processor.image_processor, size
    whole = (0.0, 0.0, float(width), float(height))
    if "image_grid_thw" in inputs:  # Qwen-VL
        _, high, wide = (int(edge) for edge in inputs["image_grid_thw"][row])
        merge = int(images.merge_size)
        return Grid(high // merge, wide // merge, whole)
    side, pixels = math.isqrt(tokens), inputs["pixel_values"]
    crops = math.prod(pixels.shape[:-3]) // len(inputs["input_ids"])
    padded = getattr(images, "do_pad", False) or "pixel_attention_mask" in inputs
    queries = hasattr(processor, "num_query_tokens")  # a Q-Former's tokens have no places, however many they are
    if side * side != tokens or crops != 1 or "image_sizes" in inputs or padded or queries:
        raise UnsupportedModelError(
            f"how the {tokens} image tokens of {crops} crops lie in the picture is not known for this model, so places in it"
            " cannot be told: use one whose pictures are one square of tokens, or Qwen-VL"
        )
    if getattr(images, "do_center_crop", False):  # CLIP: the shorter edge is scaled, the middle is cut out
        scale = _edge(images.size, "shortest_edge") / min(width, height)
        across, down = _edge(images.crop_size, "width") / scale, _edge(images.crop_size, "height") / scale
        left, top = (width - across) / 2, (height - down) / 2
        return Grid(side, side, (left, top, left + across, top + down))
    return Grid(side, side, whole)


def _edge(size: Any, name: str) -> float:
    """A size of an image processor, which keeps it as a number, a mapping or an object."""
    if isinstance(size, int | float):
        return float(size)
    found = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    if found is None:
        raise UnsupportedModelError(f"the image processor has no {name}, so places in the picture cannot be told")
    return float(found)
