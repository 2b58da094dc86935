"""Pictures for an HTML page: small copies inside it, as large as a limit allows, or links to the files."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ...common.errors import SightlineError
from ...common.pictures import opened
from ...common.readers import Notes

SIDES = (320, 256, 192, 144, 112)
"""Longest sides to choose from, in pixels: the largest whose copies fit."""
QUALITY = 72
TRIED = 24
"""Pictures that are copied at each size to see how large all of them would be."""
Mode = Literal["embed", "link", "none"]


def show(
    files: Sequence[Path],
    page: Path,
    notes: Notes,
    *,
    mode: Mode = "embed",
    limit: int,
    advance: Callable[[int], None] = lambda total: None,
) -> list[str | None]:
    """A source for each picture, None where the page has to do without; why is counted in the notes.

    Args:
        files: the pictures.
        page: where the page will lie, for links.
        notes: gets a line for each reason.
        mode: "embed" copies, "link" to the files, or "none".
        limit: bytes that all copies together may take in the page.
        advance: called after each picture with the number of all of them.
    """
    if mode == "none":
        return [None] * len(files)
    there = [path.is_file() for path in files]
    notes.add("a picture is not where it was: give --images DIR", there.count(False))
    if mode == "link":
        links = [quote(Path(os.path.relpath(path.resolve(), page.resolve())).as_posix()) for path in files]
        return [link if found else None for link, found in zip(links, there, strict=True)]
    return _copies([path if found else None for path, found in zip(files, there, strict=True)], notes, limit, advance)


def _copies(files: Sequence[Path | None], notes: Notes, limit: int, advance: Callable[[int], None]) -> list[str | None]:
    known = [path for path in files if path is not None]
    some = known[:: max(1, len(known) // TRIED)]
    side = SIDES[0]
    for side in SIDES:
        sizes = [len(one) for one in (_copy(path, side) for path in some) if one]
        if not sizes or sum(sizes) / len(sizes) * len(known) <= limit:
            break
    sources: list[str | None] = []
    taken = unread = left = 0
    for path, source in zip(files, _all(files, side), strict=True):
        if path is not None and source is None:
            unread += 1
        elif source is not None and taken + len(source) > limit:
            source, left = None, left + 1
        taken += len(source or "")
        sources.append(source)
        advance(len(files))
    notes.add("a picture cannot be read", unread)
    notes.add(
        f"a picture is left out: the page holds {limit / 1e6:g} MB of them (--picture-limit, or --pictures link)", left
    )
    return sources


def _all(files: Sequence[Path | None], side: int) -> Iterator[str | None]:
    """Copies in order, some ahead on other threads; decoding needs no interpreter lock."""
    waiting = iter(files)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while block := list(islice(waiting, 64)):
            yield from pool.map(lambda path: None if path is None else _copy(path, side), block)


def _copy(path: Path, side: int) -> str | None:
    """A picture as a data URI with at most `side` pixels a side; None where it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with opened(path) as found:
            found.draft("RGB", (side, side))
            picture = ImageOps.exif_transpose(found).convert("RGB")
    except SightlineError:
        return None
    small = max(picture.size) <= side
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    made = {"jpeg": io.BytesIO()}
    picture.save(made["jpeg"], "JPEG", quality=QUALITY, optimize=True)
    if small:  # drawings are smaller, and exact, as PNG
        made["png"] = io.BytesIO()
        picture.save(made["png"], "PNG", optimize=True)
    name, data = min(made.items(), key=lambda one: one[1].tell())
    return f"data:image/{name};base64,{base64.b64encode(data.getvalue()).decode()}"
