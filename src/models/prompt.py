"""Prompts for any tokenizer: with its chat template, or bare where it has none."""

from __future__ import annotations

from typing import Any


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, or that of a processor."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def as_turn(tokenizer: Any, text: str) -> str:
    """The prompt with `text` as the user's turn; the bare text, and a word to open the answer, without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return f"{text}\nAnswer:"
    content: Any = [{"type": "text", "text": text}] if hasattr(tokenizer, "image_processor") else text
    turn = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)


def encode(tokenizer: Any, prompt: str, *, bare: bool = False) -> list[int]:
    """Token ids of a prompt of `as_turn`, whose template writes its special tokens itself, or of a `bare` text."""
    special = bare or not getattr(tokenizer, "chat_template", None)
    return list(text_tokenizer(tokenizer)(prompt, add_special_tokens=special)["input_ids"])


def encode_answer(tokenizer: Any, prompt: str, answer: str, *, bare: bool = False) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of an answer that follows it, tokenised together."""
    ids = encode(tokenizer, join(prompt, answer), bare=bare)
    shared = common(encode(tokenizer, prompt, bare=bare), ids)
    return ids[:shared], ids[shared:]


def join(prompt: str, answer: str) -> str:
    """A prompt with the beginning of its answer; the line end of a template serves as the space between them."""
    return prompt + ("" if prompt[-1:].isspace() else " ") + answer


def common(first: list[int], second: list[int]) -> int:
    """The length of the longest common beginning."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
