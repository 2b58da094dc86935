"""Putting prompts to a model: samples become inputs, and inputs greedy replies or log-probabilities of choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

from ..common.chat import has_template, render, sees, started, text_tokenizer, user
from ..common.errors import SightlineError
from ..common.pictures import open_image
from .samples import Reply, Sample

LEAST_LONGER = 16
"""Tokens that a longer reply goes on by at least."""


def ask(model: Any, processor: Any, samples: Sequence[Sample], new_tokens: int, least: int = 0) -> list[Reply]:
    """One reply for each sample, in one left-padded batch: greedy text, or the log-probability of each choice.

    A reply has at most `new_tokens` tokens and does not end before `least`.

    The samples are of one kind: all with a picture or none, all with choices or none, all longer or none.

    Raises:
        SightlineError: a picture cannot be read, or the model reads text only.
    """
    inputs = batch_inputs(model, processor, samples)
    tokenizer = text_tokenizer(processor)
    if samples[0].choices:
        from ..plugin.reading.score import score

        answers = [
            [tokenizer(one, add_special_tokens=False)["input_ids"] for one in sample.choices] for sample in samples
        ]
        return [[answer.logprob for answer in row] for row in score(model, inputs, answers)]
    prompt = inputs["input_ids"].shape[1]
    more: dict[str, Any] = {"min_new_tokens": least} if least else {}
    if samples[0].longer:
        more["logits_processor"] = [_Longer(_ends(model, tokenizer), prompt)]
        new_tokens += max(LEAST_LONGER, new_tokens // 2)
    ids = model.generate(**inputs, **more, max_new_tokens=new_tokens, do_sample=False).cpu()  # .cpu() waits for a GPU
    replies = tokenizer.batch_decode(ids[:, prompt:], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


class _Longer(LogitsProcessor):
    """Forbids a reply's end for half as many tokens as the reply had when it first wanted to end, and no fewer than some."""

    def __init__(self, ends: Sequence[int], prompt: int):
        self.ends, self.prompt = list(ends), prompt
        self.ended: torch.Tensor | None = None
        """How many tokens each reply had when it first wanted to end; -1 where it has not."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        said = input_ids.shape[1] - self.prompt
        if self.ended is None:
            self.ended = torch.full((len(scores),), -1, device=scores.device)
        wants = torch.isin(scores.argmax(-1), torch.tensor(self.ends, device=scores.device))
        self.ended = torch.where((self.ended < 0) & wants, said, self.ended)
        held = (self.ended >= 0) & (said < self.ended + (self.ended // 2).clamp(min=LEAST_LONGER))
        barred = torch.zeros_like(scores, dtype=torch.bool)
        barred[:, self.ends] = held[:, None]
        return scores.masked_fill(barred, float("-inf"))  # type: ignore[return-value]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a reply."""
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known = tokenizer.eos_token_id if known is None else known
    return list(known) if isinstance(known, Sequence) else [known]


def batch_inputs(model: Any, processor: Any, samples: Sequence[Sample]) -> Any:
    """Model inputs of samples, as `encoded` makes them."""
    opened = [open_image(one.image) if isinstance(one.image, Path) else one.image for one in samples]
    pictures = [[] if picture is None else [picture] for picture in opened]
    texts = [
        one.text if one.raw else turn(processor, one.text, len(shown))
        for one, shown in zip(samples, pictures, strict=True)
    ]
    return encoded(model, processor, texts, pictures)


def encoded(model: Any, processor: Any, texts: Sequence[str], pictures: Sequence[Sequence[Any]] = ()) -> Any:
    """Model inputs of whole prompts and the pictures of each, all with pictures or none.

    Left-padded, each prompt with its start token once, on the model's device and in its number type.

    Raises:
        SightlineError: a picture for a model that reads text only.
    """
    if any(pictures) and not sees(processor):
        raise SightlineError(
            "this model reads text only, but it is to be shown pictures: leave them out, or choose a vision-language model"
        )
    tokenizer = text_tokenizer(processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    shown = {"images": [list(own) for own in pictures]} if any(pictures) else {}
    prompts, special = started(tokenizer, texts)
    inputs = processor(text=prompts, **shown, **special, padding=True, return_tensors="pt")
    return inputs.to(model.device, model.dtype) if shown else inputs.to(model.device)


def turn(processor: Any, text: str, pictures: int = 0) -> str:
    """The whole prompt of one user turn: so many pictures, then the words."""
    return render(processor, [user(text, pictures)])


def cloze(processor: Any, text: str, opening: str = "") -> str:
    """A user turn and the beginning of its answer; without a chat template a word opens the answer."""
    prompt = turn(processor, text) if has_template(processor) else f"{text}\nAnswer:"
    return join(prompt, opening) if opening else prompt


def join(prompt: str, answer: str) -> str:
    """A prompt with the beginning of its answer; the line end of a template serves as the space between them."""
    return prompt + ("" if prompt[-1:].isspace() else " ") + answer


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a whole prompt, its start token once."""
    tokenizer = text_tokenizer(tokenizer)
    (text,), special = started(tokenizer, [prompt])
    return list(tokenizer(text, **special)["input_ids"])


def encode_answer(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of an answer that follows it, tokenised together."""
    ids = encode(tokenizer, join(prompt, answer))
    shared = common(encode(tokenizer, prompt), ids)
    return ids[:shared], ids[shared:]


def common(first: list[int], second: list[int]) -> int:
    """The length of the longest common beginning."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
