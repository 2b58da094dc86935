"""An answer as HTML: its weak words marked, and for the word under the pointer where the model looked, without a script."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from .answers import Answer

if TYPE_CHECKING:
    from PIL import Image

SIDE = 320
"""Pixels of a picture's longer side."""
STYLE = """
.answer { position: relative; }
.answer .look { position: relative; width: 100%; max-width: 320px; }
.answer img { width: 100%; display: block; border-radius: 8px; }
.answer .word { cursor: help; border-bottom: 1px dotted currentColor; }
.answer .word.weak { background: #ffd9d3; color: #8f1d12; font-weight: 600; border-radius: 4px; padding: 0 3px; }
.answer .word:is(:hover, :focus) { outline: 2px solid #ff2800; border-radius: 4px; }
.answer .heat { display: none; position: absolute; inset: 0 auto auto 0; width: 100%; max-width: 320px; z-index: 2; }
.answer .word:is(:hover, :focus) .heat { display: block; }
.answer p { margin: 8px 0 0; }
.answer .told { font-size: 13px; opacity: .75; }
.answer .error { color: #c0392b; }
"""


def card(answer: Answer, picture: Image.Image | None) -> str:
    """The answer below its picture; every text is escaped."""
    look = (
        ""
        if picture is None
        else Markup('<div class="look">{}</div>').format(_image(picture, "picture", "the picture"))
    )
    pieces, at = [], 0
    for word in answer.words:
        pieces.append(escape(answer.text[at : word.start]))
        heat = "" if word.heat is None else _image(word.heat, "heat", "where the model looked")
        pieces.append(
            Markup('<span class="word{}" tabindex="0" title="{}">{}{}</span>').format(
                " weak" if word.weak else "", word.tip, answer.text[word.start : word.end], heat
            )
        )
        at = word.end
    text = Markup("").join([*pieces, escape(answer.text[at:])])
    told = [answer.note, answer.rule, "" if answer.seconds is None else f"{answer.seconds:.1f} s"]
    lines = Markup("").join(Markup('<p class="told">{}</p>').format(one) for one in told if one)
    return Markup('<div class="answer">{}<p class="text">{}</p>{}</div>').format(look, text, lines)


def failure(error: Exception) -> str:
    """What went wrong, in the answer's place."""
    return Markup('<div class="answer"><p class="error">{}</p></div>').format(error)


def framed(page: str) -> str:
    """A whole report page inside another page."""
    return Markup('<iframe title="report" sandbox="allow-scripts" srcdoc="{}" style="{}"></iframe>').format(
        page, "width: 100%; height: 900px; border: 0"
    )


def _image(picture: Image.Image, kind: str, alt: str) -> Markup:
    from PIL import Image

    shown = picture.convert("RGB")
    scale = SIDE / max(shown.size)
    shown = shown.resize([max(1, round(edge * scale)) for edge in shown.size], Image.Resampling.BICUBIC)
    data = io.BytesIO()
    shown.save(data, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Markup('<img class="{}" alt="{}" src="{}">').format(kind, alt, source)
