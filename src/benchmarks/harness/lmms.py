"""The lmms-eval model `sightline`: any vision-language model of transformers, under a configuration or plain.

    python -m lmms_eval --model sightline --model_args pretrained=llava-hf/llava-1.5-7b-hf,config=vhr --tasks pope

lmms-eval finds it through an entry point. With `base=llava_hf` (or any other of its own Hugging Face models) that class
loads the model and writes the prompts, and takes all further arguments; the configuration is then put on its model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from ...common.chat import render, text_tokenizer
from ...common.errors import UnsupportedModelError
from ...common.pictures import open_image
from ...models.prompting import encoded
from ...plugin.config import Config
from .adapter import adapted

NEW_TOKENS = 1024
"""Longest reply where a task does not say; lmms-eval's own models take as many."""


@dataclass(frozen=True)
class ChatRequest:
    """What a request asks: turns in the form of chat templates, and their pictures in order."""

    turns: list[dict[str, Any]]
    pictures: list[Any]


class Sightline(lmms):
    """The model for tasks that give a text and pictures ("simple", `--force_simple`)."""

    is_simple = True

    def __init__(
        self,
        pretrained: Any,
        config: Config | Mapping[str, Any] | str | None = None,
        calibration: Path | str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        processor: Any = None,
    ):
        """Take what `adapted` takes; `max_batch_size` is passed on by lmms-eval, but nothing here is adaptive."""
        super().__init__()
        made = adapted(
            pretrained,
            processor,
            config=config,
            calibration=calibration,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
        )
        self.accelerator, self.plan = made.accelerator, made.plan
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.model, self.processor, self.batch_size = made.model, made.processor, made.batch
        self.device = made.model.device  # where the evaluator counts requests of all processes

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> lmms:
        """The model that `--model_args` describes: this class, or a model of lmms-eval with ours on top."""
        from lmms_eval.models import get_model
        from lmms_eval.utils import simple_parse_args_string

        given = simple_parse_args_string(arg_string)
        given |= {key: one for key, one in (additional_config or {}).items() if one is not None}
        base = given.pop("base", None)
        if base is None:
            return cls(**given)
        config, calibration = given.pop("config", None), given.pop("calibration", None)
        kind = get_model(base, force_simple=cls.is_simple)
        own = ",".join(f"{key}={one}" for key, one in given.items())
        return mitigate(kind.create_from_arg_string(own), config, calibration=calibration)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """One reply for each request, in the order of the requests."""
        from tqdm import tqdm

        replies: dict[int, GenerationResult] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="sightline") as bar:
            for rows, asked in self._batches(requests, [repr(self._options(one)) for one in requests]):
                said = self._generate(asked, self._options(requests[rows[0]]))
                replies.update(zip(rows, said, strict=True))
                bar.update(len(rows))
        return [replies[row] for row in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Mean negative log-probability per token of each answer, and whether it was the likeliest text.

        lmms-eval takes the *smallest* number of a multiple-choice question. Under a decoder these are its contrasted
        scores.
        """
        from ...plugin.reading.score import score

        found: dict[int, tuple[float, bool]] = {}
        for rows, asked in self._batches(requests, [None] * len(requests)):
            answers = [[self._tokens(self._answer(requests[row]))] for row in rows]
            with self.plan.attached(self.model, self.processor, blind=not asked[0].pictures):
                scores = score(self.model, self.inputs(asked), answers)
            found.update((row, (-one.mean, one.greedy)) for row, (one,) in zip(rows, scores, strict=True))
        return [found[row] for row in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UnsupportedModelError(
            "tasks of several rounds ask on from the model's own replies, which this adapter does not do: "
            "give base= with one of lmms-eval's models"
        )

    def conversation(self, request: Instance) -> ChatRequest:
        """What a request asks."""
        text, _, to_pictures, number, task, split = request.args
        pictures = list(to_pictures(self.task_dict[task][split][number]) or []) if to_pictures is not None else []
        return _conversation([{"role": "user", "content": [*map(_shown, pictures), {"type": "text", "text": text}]}])

    def _batches(
        self, requests: Sequence[Instance], keys: Sequence[Any]
    ) -> Iterator[tuple[list[int], list[ChatRequest]]]:
        """Requests that may share a batch, as (their numbers, what they ask): of one key, with pictures or without.

        Pictures are opened when their batch comes.
        """
        for key in dict.fromkeys(keys):
            rows = [row for row, one in enumerate(keys) if one == key]
            for start in range(0, len(rows), self.batch_size):
                asked = {row: self.conversation(requests[row]) for row in rows[start : start + self.batch_size]}
                for shown in (True, False):
                    some = [row for row, one in asked.items() if bool(one.pictures) == shown]
                    if some:
                        yield some, [asked[row] for row in some]

    def _options(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[1])

    def _answer(self, request: Instance) -> str:
        _, target, _, number, task, split = request.args
        return target if isinstance(target, str) else str(target(self.task_dict[task][split][number]))

    def _tokens(self, text: str) -> list[int]:
        return list(text_tokenizer(self.processor)(text, add_special_tokens=False)["input_ids"])

    def _generate(self, asked: Sequence[ChatRequest], options: Mapping[str, Any]) -> list[GenerationResult]:
        inputs = self.inputs(asked)
        with self.plan.attached(self.model, self.processor, blind=not asked[0].pictures):
            ids = self.model.generate(**inputs, **generation(self.model, options))
        ids = ids[:, inputs["input_ids"].shape[1] :].cpu()
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        stops = options.get("until") or []
        ends = [stops] if isinstance(stops, str) else list(stops)
        pad = text_tokenizer(self.processor).pad_token_id
        counts = ids.ne(pad).sum(1).tolist()
        return [
            GenerationResult(_cut(text, ends).strip(), TokenCounts(output_tokens=count))
            for text, count in zip(texts, counts, strict=True)
        ]

    def inputs(self, asked: Sequence[ChatRequest]) -> Any:
        """Model inputs of a batch, left-padded, on the model's device and in its number type.

        Raises:
            SightlineError: a picture for a model that reads text only.
        """
        texts = [render(self.processor, one.turns) for one in asked]
        return encoded(self.model, self.processor, texts, [one.pictures for one in asked])


class SightlineChat(Sightline):
    """The model for tasks that give messages; lmms-eval makes messages of every other task."""

    is_simple = False

    def conversation(self, request: Instance) -> ChatRequest:
        _, to_messages, _, number, task, split = request.args
        return _conversation(to_messages(self.task_dict[task][split][number]))

    def _options(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[2])


def manifests() -> list[Any]:
    """What lmms-eval's entry point asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest("sightline", f"{__name__}.Sightline", f"{__name__}.SightlineChat")]


def mitigate(model: lmms, config: Any, *, calibration: Any = None) -> lmms:
    """Put a configuration (None: none) on the model that an lmms-eval model holds, and return that lmms-eval model.

    Raises:
        UnsupportedModelError: it holds no model of transformers.
    """
    from ...plugin.attach import wrap

    held = getattr(model, "model", None)
    if not hasattr(held, "generate") or not hasattr(held, "config"):
        raise UnsupportedModelError(
            f"{type(model).__name__} runs no transformers model in this process: choose another base="
        )
    names = ("processor", "_processor", "_image_processor", "tokenizer")
    processor = next((getattr(model, name) for name in names if getattr(model, name, None) is not None), None)
    if config is not None:
        wrap(held, config, processor=processor, calibration=calibration)
    return model


def generation(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """A task's generation options as arguments of `generate`; what it does not know is left out, with a word."""
    left = {key: one for key, one in options.items() if key not in ("until", "max_gen_toks") and one is not None}
    sampled = bool(left.pop("do_sample", left.get("temperature", 0) > 0))
    if not sampled:
        left = {key: one for key, one in left.items() if key not in ("temperature", "top_p", "top_k")}
    known = {key: one for key, one in left.items() if hasattr(model.generation_config, key)}
    if unknown := sorted(left.keys() - known.keys()):
        logger.warning(f"generate() takes no {', '.join(unknown)}: the task's setting is left out")
    return {"max_new_tokens": options.get("max_gen_toks", NEW_TOKENS), **known, "do_sample": sampled}


def _conversation(messages: Sequence[Mapping[str, Any]]) -> ChatRequest:
    """Messages as lmms-eval writes them, pictures taken out.

    Raises:
        UnsupportedModelError: they show something else than pictures.
    """
    turns, pictures = [], []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "image":
                picture = part["url"]
                pictures.append(open_image(Path(picture)) if isinstance(picture, str) else picture.convert("RGB"))
            elif part["type"] != "text":
                raise UnsupportedModelError(
                    f"the task shows {part['type']}, but this adapter reads pictures and text only: "
                    "give base= with one of lmms-eval's models"
                )
        bare = [{"type": "image"} if part["type"] == "image" else part for part in parts]
        turns.append({"role": message["role"], "content": bare})
    return ChatRequest(turns, pictures)


def _shown(picture: Any) -> dict[str, Any]:
    """A content part for what a simple task's `doc_to_visual` returned."""
    return {"type": "image", "url": picture} if hasattr(picture, "convert") else {"type": "a file"}


def _cut(text: str, ends: Sequence[str]) -> str:
    """The text up to the first of the ends."""
    return text[: min((text.find(end) for end in ends if end and end in text), default=len(text))]
