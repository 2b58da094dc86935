"""`sightline generate --explain`: which words of an answer are weakly grounded, and where the model looked for each.

The picture that is written shows, beside the original, one panel for each marked word: the attention on the image tokens
while the word's tokens were chosen, mean over the traced heads, scaled to its largest value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import UnsupportedModelError
from .attach import Plug
from .tracing.grid import Grid, grid
from .tracing.grounding import UNSURE
from .tracing.heat import glowing, stretched

if TYPE_CHECKING:
    from PIL import Image

PANEL = 288  # pixels of a panel's longer edge
LINE = 22  # pixels of the text below a panel
COLUMNS = 4


def explained(plug: Plug, processor: Any, inputs: Mapping[str, Any], picture: Image.Image) -> dict[str, Any]:
    """What `Plug.words` says of the only answer, to show it.

    `marked`, the text; `words`; `rule`, in a sentence; and `sheet`, the panels, or None and a `note` that says why there
    are none.
    """
    words = plug.words
    weak = [word for word in words if word["weak"]]
    text = marked(plug.texts[0], words).strip()
    found: dict[str, Any] = {"marked": text, "words": words, "rule": rule(plug), "sheet": None, "note": None}
    if not weak:
        return found | {"note": "no word is weakly grounded, so no picture was written"}
    maps = plug.image_maps[0].numpy()
    try:
        cells = grid(processor, inputs, 0, maps.shape[1], picture.size)
    except UnsupportedModelError as error:
        return found | {"note": f"no picture was written: {error}"}
    panels = [("picture", picture)]
    for word in weak:
        heat = maps[word["position"] : word["last"] + 1].mean(0)
        title = f"{word['word']}   image {word['image']:.2f}   p {word['probability']:.2f}"
        panels.append((title, heated(picture, heat, cells)))
    return found | {"sheet": contact_sheet(panels)}


def rule(plug: Plug) -> str:
    """What makes a word weak, in a sentence."""
    known = plug.grounding
    if known is None:
        return (
            f"weak (a rule of thumb, this model's calibration has no section grounding for these heads): entropy above"
            f" {UNSURE:.2f} and less attention on the image than the answer's words have on average"
        )
    formula = " ".join(f"{weight:+.3g} {name}" for name, weight in known.weights.items())
    return f"weak (calibrated): {formula} < {known.threshold:.3g}"


def marked(text: str, words: Sequence[Mapping[str, Any]]) -> str:
    """The text with brackets around the weak words."""
    for word in sorted((word for word in words if word["weak"]), key=lambda word: -word["start"]):
        text = f"{text[: word['start']]}[{text[word['start'] : word['end']]}]{text[word['end'] :]}"
    return text


def heated(picture: Image.Image, heat: np.ndarray, cells: Grid) -> Image.Image:
    """The picture in grey under the heat [image tokens], which is transparent where there is none; of its size."""
    shares = (heat.reshape(cells.rows, cells.columns) / max(float(heat.max()), 1e-12)).astype(np.float32)
    return glowing(picture, stretched(shares, cells, picture.size))


def contact_sheet(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one size side by side, each above its title."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = panels[0][1].size
    scale = PANEL / max(width, height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + 8) + 8, rows * (height + LINE + 8) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (title, panel) in enumerate(panels):
        x, y = 8 + number % columns * (width + 8), 8 + number // columns * (height + LINE + 8)
        sheet.paste(panel.resize((width, height), Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + height + 3), title, fill="black", font=font)
    return sheet
