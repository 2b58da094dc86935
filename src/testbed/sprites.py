"""The sprite atlas: one 64 x 64 RGBA picture per object, cut, turned and resized once, then cached.

The atlas ships as ``assets/sprites.png``, so that the package needs no font. ``python -m sightline.testbed.sprites
FONT`` draws it again from a Noto Color Emoji font.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SPRITE = 64
COLUMNS = 8

#: COCO category -> the emoji that shows it.
EMOJI: dict[str, str] = {
    "person": "\U0001f9cd",
    "bicycle": "\U0001f6b2",
    "car": "\U0001f697",
    "motorcycle": "\U0001f3cd",
    "airplane": "\u2708",
    "bus": "\U0001f68c",
    "train": "\U0001f686",
    "truck": "\U0001f69a",
    "boat": "\u26f5",
    "traffic light": "\U0001f6a6",
    "stop sign": "\U0001f6d1",
    "bird": "\U0001f426",
    "cat": "\U0001f408",
    "dog": "\U0001f415",
    "horse": "\U0001f40e",
    "sheep": "\U0001f411",
    "cow": "\U0001f404",
    "elephant": "\U0001f418",
    "bear": "\U0001f43b",
    "zebra": "\U0001f993",
    "giraffe": "\U0001f992",
    "backpack": "\U0001f392",
    "umbrella": "\u2602",
    "handbag": "\U0001f45c",
    "tie": "\U0001f454",
    "suitcase": "\U0001f9f3",
    "frisbee": "\U0001f94f",
    "sports ball": "\u26bd",
    "kite": "\U0001fa81",
    "skateboard": "\U0001f6f9",
    "tennis racket": "\U0001f3be",
    "bottle": "\U0001f37e",
    "wine glass": "\U0001f377",
    "cup": "\u2615",
    "knife": "\U0001f52a",
    "spoon": "\U0001f944",
    "bowl": "\U0001f963",
    "banana": "\U0001f34c",
    "apple": "\U0001f34e",
    "sandwich": "\U0001f96a",
    "orange": "\U0001f34a",
    "broccoli": "\U0001f966",
    "carrot": "\U0001f955",
    "hot dog": "\U0001f32d",
    "pizza": "\U0001f355",
    "donut": "\U0001f369",
    "cake": "\U0001f370",
    "chair": "\U0001fa91",
    "couch": "\U0001f6cb",
    "potted plant": "\U0001fab4",
    "bed": "\U0001f6cf",
    "toilet": "\U0001f6bd",
    "tv": "\U0001f4fa",
    "laptop": "\U0001f4bb",
    "mouse": "\U0001f5b1",
    "keyboard": "\u2328",
    "cell phone": "\U0001f4f1",
    "book": "\U0001f4d5",
    "clock": "\u23f0",
    "vase": "\U0001f3fa",
    "scissors": "\u2702",
    "teddy bear": "\U0001f9f8",
    "toothbrush": "\U0001faa5",
}

CATEGORIES: tuple[str, ...] = tuple(EMOJI)


def draw_atlas(font_path: str) -> Image.Image:
    """Draw every emoji of `EMOJI` from a colour bitmap font into one RGBA sheet of `COLUMNS` sprites a row."""
    font = ImageFont.truetype(font_path, 109)  # the one bitmap size of Noto Color Emoji
    rows = -(-len(CATEGORIES) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE))
    for index, name in enumerate(CATEGORIES):
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((10, 10), EMOJI[name], font=font, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        glyph.thumbnail((SPRITE, SPRITE), Image.Resampling.LANCZOS)
        left = index % COLUMNS * SPRITE + (SPRITE - glyph.width) // 2
        top = index // COLUMNS * SPRITE + (SPRITE - glyph.height) // 2
        sheet.paste(glyph, (left, top))
    return sheet


@lru_cache(maxsize=1)
def _atlas() -> Image.Image:
    with resources.files(__package__).joinpath("assets/sprites.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


@lru_cache(maxsize=40_000)
def sprite(index: int, size: int, angle: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """One object as (colour, alpha): float32 of (h, w, 3) in 0..255 and (h, w, 1) in 0..1, cut to its outline.

    `size` is the longer side of the square the sprite is drawn in before it is turned by `angle` degrees.
    """
    row, column = divmod(index, COLUMNS)
    box = (column * SPRITE, row * SPRITE, (column + 1) * SPRITE, (row + 1) * SPRITE)
    image = _atlas().crop(box)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    scale = size / SPRITE
    image = image.resize(
        (max(3, round(image.width * scale)), max(3, round(image.height * scale))), Image.Resampling.BOX
    )
    outline = image.getchannel("A").point(lambda value: 255 if value > 40 else 0).getbbox()
    pixels = np.asarray(image.crop(outline), dtype=np.float32)
    colour, alpha = pixels[..., :3].copy(), pixels[..., 3:] / 255.0
    colour.setflags(write=False)
    alpha.setflags(write=False)
    return colour, alpha


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Draw the sprite atlas from a Noto Color Emoji font.")
    parser.add_argument("font", help="path of NotoColorEmoji.ttf")
    parser.add_argument("--out", default="sprites.png")
    arguments = parser.parse_args()
    draw_atlas(arguments.font).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
