"""What is put to a model, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.pictures import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

TESTBED = "testbed"
Reply = str | list[float]
"""What came back for a sample: generated text, or the log-probability of each of its choices."""


@dataclass(frozen=True)
class Sample:
    """One prompt.

    id: unique in its benchmark. text: the user's words, or with `raw` the whole prompt, which then gets no chat template.
    image: a file, opened when its turn comes, or a picture. choices: texts to score as the reply, instead of generating.
    longer: the reply goes on where the model would end it, with what it finds likeliest next, by half as much again.
    """

    id: str
    text: str
    image: Path | Image | None = None
    choices: tuple[str, ...] = ()
    raw: bool = False
    longer: bool = False


@dataclass(frozen=True)
class Region:
    """A thing in a picture: its name, or the words written there, and its box (left, top, right, bottom) in pixels."""

    label: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Example(Sample):
    """A prompt, and what is known of its picture: objects, written words, a caption by people."""

    objects: tuple[Region, ...] = ()
    texts: tuple[Region, ...] = ()
    caption: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        image = open_image(self.image) if isinstance(self.image, Path) else self.image
        assert image is not None
        return image.size
