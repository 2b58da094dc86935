"""Other pictures in the place of the prompt's, for a branch that sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

PIXELS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}  # and how Qwen cuts them


def redrawn(kwargs: Mapping[str, Any], draw: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The arguments of a forward pass that carry pixels, with `draw` of each picture.

    Where pictures come by row, it is of each row's, so that its prompt fares alike alone and in a batch.
    """
    changed = {}
    for name, grid in PIXELS.items():
        pixels, grids = kwargs.get(name), kwargs.get(grid)
        if isinstance(pixels, Tensor):
            pictures = [1] * len(pixels) if grids is None else grids.prod(-1).tolist()
            changed[name] = torch.cat([draw(part) for part in pixels.split(pictures)])
            if pixels.ndim > 4:  # rows of several pictures are filled up with empty ones, which must stay so
                changed[name] *= (pixels != 0).flatten(-3).any(-1)[..., None, None, None]
    return changed


def random_pixels(pixels: Tensor, seed: int) -> Tensor:
    """A picture of any shape, uniformly random between the smallest and the largest value of the given one."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(pixels.shape, generator=generator, dtype=torch.float32).to(pixels)
    return pixels.amin() + (pixels.amax() - pixels.amin()) * share
