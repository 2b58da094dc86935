"""How a conversation becomes the text of a prompt: the one place that renders a chat template.

A turn is `{"role", "content"}`; its content is a text, or parts `{"type": "image"}` and `{"type": "text", "text"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from .errors import UnsupportedModelError

Turn = Mapping[str, Any]
_PICTURE = {"type": "image"}


def text_tokenizer(processor: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def has_template(processor: Any) -> bool:
    """Whether the processor or tokenizer has a chat template."""
    return bool(getattr(processor, "chat_template", None))


def sees(processor: Any) -> bool:
    """Whether the processor takes pictures."""
    return hasattr(processor, "image_processor")


def user(text: str, pictures: int = 0) -> dict[str, Any]:
    """A user's turn: so many pictures, then the words."""
    return {"role": "user", "content": [*[_PICTURE] * pictures, {"type": "text", "text": text}]}


def render(processor: Any, turns: Sequence[Turn]) -> str:
    """The text of a conversation up to where the answer begins.

    Templates differ in what they take as a content: parts, parts from the user only, or a text. A form counts as taken
    where the template raises nothing, prints no part as it is, and keeps the user's words; pictures are image tokens in
    a text. Without a template: the image tokens, then the bare words of each turn.

    Raises:
        UnsupportedModelError: the template takes the conversation in no form.
    """
    if not has_template(processor):
        pictures = sum(part["type"] == "image" for turn in turns for part in _parts(turn))
        return "\n".join([_image_token(processor)] * pictures + [_words(turn) for turn in turns])
    parts = [{**turn, "content": _parts(turn)} for turn in turns]
    texts = [{**turn, "content": _flat(processor, turn)} for turn in turns]
    mixed = [one if one["role"] == "user" else other for one, other in zip(parts, texts, strict=True)]
    pictured = any(part["type"] == "image" for turn in parts for part in turn["content"])
    reason = "it leaves out what the user says"
    for form in (parts, mixed, texts) if sees(processor) or pictured else (texts, parts, mixed):
        try:
            text = str(processor.apply_chat_template(form, add_generation_prompt=True, tokenize=False))
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())
            continue
        if _taken(text, parts):
            return text
    raise UnsupportedModelError(
        f"the chat template cannot write this conversation ({reason}): give the processor another chat_template"
    )


def started(tokenizer: Any, texts: Sequence[str]) -> tuple[list[str], dict[str, bool]]:
    """Prompts, and what to tell the tokenizer with them, so that each gets its start token once.

    A template that writes the start token itself must not get a second one from a tokenizer that adds one.
    """
    start = getattr(tokenizer, "bos_token", None)
    if not start or not any(text.startswith(start) for text in texts):
        return list(texts), {}
    whole = all(text.startswith(start) for text in texts)
    lacking = "" if whole or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id] else start
    return [text if text.startswith(start) else lacking + text for text in texts], {"add_special_tokens": False}


def _taken(text: str, turns: Sequence[Turn]) -> bool:
    """Whether a template understood the turns, given as parts: it prints no part as it is, and keeps the last words."""
    parts = [part for turn in turns for part in turn["content"]]
    if any(written in text for part in parts for written in (repr(part), json.dumps(part, ensure_ascii=False))):
        return False
    asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), turns[-1])
    return all(part["text"].strip() in text for part in asked["content"] if part["type"] == "text")


def _parts(turn: Turn) -> list[dict[str, Any]]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _words(turn: Turn) -> str:
    return "".join(part["text"] for part in _parts(turn) if part["type"] == "text")


def _flat(processor: Any, turn: Turn) -> str:
    """The content as one text, pictures as image tokens."""
    picture = f"{_image_token(processor)}\n"
    return "".join(picture if part["type"] == "image" else part["text"] for part in _parts(turn))


def _image_token(processor: Any) -> str:
    tokens = (getattr(one, "image_token", None) for one in (processor, text_tokenizer(processor)))
    return next((token for token in tokens if token), "<image>")
