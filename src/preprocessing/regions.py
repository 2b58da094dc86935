"""From a map over a picture to the part of the picture that it points at: pixels, connected regions, a new picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..plugin.tracing.heat import Floats, glowing

Mask = npt.NDArray[np.bool_]
Corners = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom lie outside
Refine = Literal["mask and crop", "mask", "crop"]


def strongest(heat: Floats, top: float, regions: int | None) -> Mask:
    """The pixels to keep: the share `top` with the largest values, in their strongest regions.

    Of the regions that they form those `regions` stay whose values add up to most (None: a fifth of the regions, at least
    three). A flat map keeps all. NaN is never kept.
    """
    values = heat[~np.isnan(heat)]
    count = max(1, round(top * values.size))
    kept = heat >= np.partition(values, -count)[-count]  # false for NaN
    labels, number = regions_of(kept)
    weight = np.bincount(labels.ravel(), np.where(kept, heat, 0).ravel(), number + 1)[1:]
    most = max(3, number // 5) if regions is None else regions
    return np.isin(labels, 1 + np.argsort(-weight, kind="stable")[:most])


def regions_of(mask: Mask) -> tuple[npt.NDArray[np.int64], int]:
    """Labels 1.. of the regions of a mask whose pixels touch along edges, 0 outside, and their number."""
    parents: list[int] = [0]

    def root(label: int) -> int:
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    labels = np.zeros(mask.shape, dtype=np.int64)
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            label = len(parents)
            parents.append(label)
            for above in np.unique(labels[row - 1, start:stop]) if row else ():
                if above:
                    parents[root(above)] = root(label)
            labels[row, start:stop] = label
    roots = np.array([root(label) for label in range(len(parents))])
    found, compact = np.unique(roots, return_inverse=True)
    return compact[labels], len(found) - 1


def bounds(mask: Mask) -> Corners:
    """The box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def refined(image: Image.Image, mask: Mask, refine: Refine, enlarge: bool) -> Image.Image:
    """The picture with all else black ("mask"), cut to the box around what stays ("crop"), or both; enlarged to its size."""
    new = image
    if "mask" in refine:
        new = Image.composite(image, Image.new("RGB", image.size), Image.fromarray(mask))
    if "crop" in refine:
        new = new.crop(bounds(mask))
    return new.resize(image.size, Image.Resampling.BICUBIC) if enlarge and new.size != image.size else new


def drawn(image: Image.Image, heat: Floats, boxes: Sequence[Corners] = ()) -> Image.Image:
    """The picture in grey under the map in red, from its least value to its largest, and boxes in white."""
    low, high = np.nanmin(heat), np.nanmax(heat)
    new = glowing(image, (heat - low) / max(high - low, np.finfo(np.float32).tiny))
    pen = ImageDraw.Draw(new)
    for left, top, right, bottom in boxes:
        pen.rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255))
    return new
