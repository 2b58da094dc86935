"""Reading prompts while probes look: the plain model, nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch

from ..common.chat import has_template, text_tokenizer
from ..plugin.attach import Plug, observe
from ..plugin.core.layout import Layout
from ..plugin.core.method import Method, ModelFacts, Session, Settings
from .prompting import batch_inputs
from .samples import Example

S = TypeVar("S", bound=Session)
Watch = Callable[[Layout, ModelFacts], S]  # opens a session of probes for a prompt batch


class Enough(Exception):
    """A probe that has seen all it wants raises it: the pass of `read` ends there."""


class _Watcher(Method, Generic[S]):
    """An unregistered method whose sessions are those of `watch`."""

    name, summary, source, cost, config = "watcher", "", "", "", Settings
    needs_image = False

    def __init__(self, facts: ModelFacts, watch: Watch[S]):
        super().__init__(Settings(), facts)
        self.watch = watch

    def start(self, layout: Layout) -> S:
        self.session = self.watch(layout, self.facts)
        return self.session


@dataclass
class Batch:
    """Some examples, and the model that reads them."""

    model: Any
    processor: Any
    examples: Sequence[Example]

    @cached_property
    def inputs(self) -> Any:
        """The model's inputs, left-padded."""
        return batch_inputs(self.model, self.processor, self.examples)

    def forward(self) -> None:
        """Read the prompts once."""
        self.model(**self.inputs, use_cache=False, logits_to_keep=1)

    def read(self, watch: Watch[S]) -> S:
        """Read the prompts once and return the session that looked."""
        with self._watched(watch) as session, suppress(Enough):
            self.forward()
        return session()

    def answer(self, watch: Watch[S], new_tokens: int, **how: Any) -> tuple[S, list[list[int]]]:
        """Answer greedily; the session that looked, and the token ids of each row up to its end token.

        how: more arguments of `generate`.
        """
        with self._watched(watch) as session:
            ids = self.model.generate(**self.inputs, max_new_tokens=new_tokens, do_sample=False, **how)
        tokenizer = text_tokenizer(self.processor)
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        stop = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, tokenizer.pad_token_id}
        rows = ids[:, self.inputs["input_ids"].shape[1] :].tolist()
        return session(), [row[: next((i for i, token in enumerate(row) if token in stop), len(row))] for row in rows]

    @contextmanager
    def attached(self, make: Callable[[ModelFacts], dict[str, Method]]) -> Iterator[Plug]:
        """The methods that `make` gives, for the block; nothing inside keeps gradients."""
        templated = self.processor if has_template(self.processor) else None
        with observe(self.model, make, processor=templated) as plug, torch.no_grad():
            yield plug

    @contextmanager
    def _watched(self, watch: Watch[S]) -> Iterator[Callable[[], S]]:
        made: list[_Watcher[S]] = []

        def make(facts: ModelFacts) -> dict[str, Method]:
            made.append(_Watcher(facts, watch))
            return {"watcher": made[0]}

        with self.attached(make):
            yield lambda: made[0].session
