"""The calls of an attached model: `forward` and `generate` as its users meet them, one at a time and checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from ...common.errors import CallError
from . import compat
from .families import Family
from .queue import queue_of
from .refusals import check_generate, check_pass


class Attachment(Protocol):
    """What the host asks of an attachment."""

    @property
    def active(self) -> bool:
        """Whether it edits anything; without, the model runs plain."""

    def forward(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """One forward pass of the model."""

    def generating(self, ids: Any, kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """Around `generate` of these prompt ids [B, n] (None: not given) with these arguments."""

    def generate(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], default: Any
    ) -> Any:
        """`generate` of the model, inside of that; `default` is its generation config."""

    def scoring(self) -> AbstractContextManager[None]:
        """Around passes that score given answers."""

    @property
    def reading(self) -> Any:
        """The prompt batch under way."""


class Calls:
    """What stands in for a model's `forward` and `generate` while attachments are in force; the last one is asked.

    told: what a model with another generator inside was called with. prompts: how many the `generate` under way has read;
    None outside. compiling: with which configuration the pass under way is to be compiled; None: it is not.
    """

    model: nn.Module
    family: Family
    text_config: Any

    def __init__(self, model: nn.Module):
        self.plugs: list[Attachment] = []
        self.queue = queue_of(model)
        self.told: dict[str, Any] = {}
        self.prompts: int | None = None
        self.compiling: Any = None

    def wrapped_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        named = _named(original)

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.queue.turn():
                if not self.plugs:  # the last one left while the call waited
                    return original(*args, **kwargs)
                kwargs, run = compat.renamed(named(args, kwargs)), original
                check_pass(kwargs, self.text_config)
                embeds = kwargs.get("inputs_embeds")
                if embeds is not None and kwargs.get("input_ids") is None and self.told.get("input_ids") is not None:
                    kwargs = {**kwargs, **self._told_for(embeds)}
                    run = self._handing(original, kwargs)
                with compat.image_count_named():
                    return self.plugs[-1].forward(run, kwargs)

        return forward

    def wrapped_generate(self, generator: Any) -> Callable[..., Any]:
        original = generator.generate

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            with self.queue.turn():
                if not self.plugs:  # the last one left while the call waited
                    return original(*args, **kwargs)
                if not self.plugs[-1].active:
                    with compat.image_count_named():
                        return original(*args, **kwargs)
                ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
                default = getattr(generator, "generation_config", None)
                if self.told:
                    self.told["input_ids"] = ids
                check_generate(ids, kwargs, default)
                with self._answering(), compat.image_count_named(), self.plugs[-1].generating(ids, kwargs):
                    return self.plugs[-1].generate(original, args, kwargs, default)

        return generate

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Around a `generate` with edits. Raises CallError inside another one."""
        if self.prompts is not None:
            raise CallError(
                "generate was called inside a generate of the same model (from a streamer, a logits processor, a hook),"
                " whose answer it would change: call it when the answer has come"
            )
        self.prompts = 0
        try:
            yield
        finally:
            self.prompts = None

    def opens_prompt(self) -> None:
        """A prompt is about to be read. Raises CallError where it is not that of the `generate` under way."""
        if self.prompts:
            raise CallError(
                "the model was called with a new prompt inside a generate of it (from a streamer, a logits processor, a"
                " hook), whose answer that would change: call it when the answer has come"
            )
        if self.prompts is not None:
            self.prompts += 1

    def begun_here(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What `generate` calls first: one that was taken from the model before `attach` goes round the checks."""

        @functools.wraps(original)
        def begin(*args: Any, **kwargs: Any) -> Any:
            if self.prompts is None and self.plugs and self.plugs[-1].active:
                raise CallError(
                    "this generate was taken from the model before attach, so that nothing of the call is checked: take"
                    " model.generate again while the model is attached"
                )
            return original(*args, **kwargs)

        return begin

    def compiled_call(self, generator: Any) -> Callable[..., Any]:
        """What `generate` asks for a compiled pass: the checks and the plan stay outside of the graph (`compiled.py`)."""

        def compiled(config: Any) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.queue.turn():
                    before, self.compiling = self.compiling, compat.compile_config(generator, config)
                    try:
                        return generator(*args, **kwargs)
                    finally:
                        self.compiling = before

            return call

        return compiled

    def telling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A call of a model that hands its prompt to a generator inside, noted for that one's passes."""
        named = _named(original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.queue.turn():
                before, self.told = self.told, named(args, kwargs)
                try:
                    with compat.image_count_named():
                        return original(*args, **kwargs)
                finally:
                    self.told = before

        return call

    def _told_for(self, embeds: Tensor) -> dict[str, Any]:
        """The ids, pictures and labels of the prompt that was handed over as embeddings [B, n, hidden]."""
        ids = self.told["input_ids"]
        ids = ids.repeat_interleave(len(embeds) // len(ids), dim=0)[:, -embeds.shape[1] :]
        names = (*self.family.vision_inputs, compat.ENCODED, "labels")
        return {**{name: self.told[name] for name in names if name in self.told}, "input_ids": ids}

    def _handing(self, original: Callable[..., Any], told: dict[str, Any]) -> Callable[..., Any]:
        """The generator's forward for a prompt that the model told: it takes what a pass of the model would."""

        @functools.wraps(original)
        def forward(**given: Any) -> Any:
            return original(**self.family.handed(self.model, given, told))

        return forward


def _named(function: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """Turns the arguments of a call of `function` into named ones."""
    signature = inspect.signature(function)

    def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**signature.bind_partial(*args).arguments, **kwargs} if args else dict(kwargs)

    return named
