"""Putting samples to a model: prompts, pictures, greedy replies, log-probabilities of choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import SightlineError
from ..common.pictures import open_image
from .samples import Reply, Sample


def ask(model: Any, processor: Any, samples: Sequence[Sample], new_tokens: int) -> list[Reply]:
    """One reply for each sample, in one left-padded batch: greedy text, or the log-probability of each choice.

    The samples are of one kind: all with a picture or none, all with choices or none.

    Raises:
        SightlineError: a picture cannot be read, or the model reads text only.
    """
    inputs = batch_inputs(model, processor, samples)
    tokenizer = getattr(processor, "tokenizer", processor)
    if samples[0].choices:
        from ..plugin.reading.score import score

        answers = [
            [tokenizer(one, add_special_tokens=False)["input_ids"] for one in sample.choices] for sample in samples
        ]
        return [[answer.logprob for answer in row] for row in score(model, inputs, answers)]
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False).cpu()  # .cpu() waits for a GPU
    replies = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def batch_inputs(model: Any, processor: Any, samples: Sequence[Sample]) -> Any:
    """Model inputs of samples, left-padded, on the model's device and in its number type."""
    opened = [open_image(one.image) if isinstance(one.image, Path) else one.image for one in samples]
    texts = [rendered(processor, sample) for sample in samples]
    return encoded(model, processor, texts, [[] if picture is None else [picture] for picture in opened])


def encoded(model: Any, processor: Any, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> Any:
    """Model inputs of whole prompts and the pictures of each, as `batch_inputs`; all have pictures or none has."""
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    shown = {"images": [list(own) for own in pictures]} if pictures[0] else {}
    # A template that writes the start token itself must not get a second one.
    special = {"add_special_tokens": False} if tokenizer.bos_token and texts[0].startswith(tokenizer.bos_token) else {}
    inputs = processor(text=list(texts), **shown, **special, padding=True, return_tensors="pt")
    return inputs.to(model.device, model.dtype) if shown else inputs.to(model.device)


def rendered(processor: Any, sample: Sample) -> str:
    """A sample's whole prompt: chat template applied, image token in place.

    Raises:
        SightlineError: a picture for a model that reads text only.
    """
    if sample.image is not None and not hasattr(processor, "image_processor"):
        raise SightlineError(
            "this model reads text only, but the benchmark shows pictures: choose a vision-language model"
        )
    return sample.text if sample.raw else turn(processor, sample.text, int(sample.image is not None))


def turn(processor: Any, text: str, pictures: int) -> str:
    """The whole prompt of one user turn: so many pictures, then the words."""
    if getattr(processor, "chat_template", None):
        spoken = [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]
        content: Any = spoken if hasattr(processor, "image_processor") else text
        said = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False))
    return f"{getattr(processor, 'image_token', '<image>')}\n" * pictures + text
