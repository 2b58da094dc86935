"""Forward passes under edits given by hand, and greedy decoding from prompts whose common beginning is read once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...common.chat import text_tokenizer
from ...common.errors import UnsupportedModelError
from ...models.prompting import common
from ...plugin.attach import observe
from ...plugin.branches.prompts import PER_TOKEN, SEEN
from ...plugin.core.attention import merge
from ...plugin.core.compat import CACHE
from ...plugin.core.edits import Edit
from ...plugin.core.host import HOST, Host
from ...plugin.core.method import Method, ModelFacts
from ..data.needles import ANSWER

Edits = Mapping[int, Sequence[Edit]]  # by layer


def pictures_of(inputs: Mapping[str, Any], vision: Sequence[str]) -> dict[str, Tensor]:
    """What of a processor's output for one prompt carries its pictures, and what tells of each token whether it is theirs."""
    return {name: inputs[name] for name in (*vision, *PER_TOKEN, SEEN) if isinstance(inputs.get(name), Tensor)}


def row_by_row(pictures: Sequence[Mapping[str, Tensor]], width: int) -> dict[str, Any]:
    """The pictures of several rows of `width` tokens, those behind a prompt being of an answer.

    What differs in size (tiles, questions of a Q-Former) is filled up with zeros, as processors do.
    """
    rows = [{name: _grown(name, one, width) for name, one in row.items()} for row in pictures]
    return {name: _together([row[name] for row in rows]) for name in rows[0]}


def _together(tensors: Sequence[Tensor]) -> Tensor:
    most = [max(sizes) for sizes in zip(*(one.shape[1:] for one in tensors), strict=True)]
    lacks = [[want - has for has, want in zip(one.shape[1:], most, strict=True)] for one in tensors]
    fill = [[more for lack in reversed(one) for more in (0, lack)] for one in lacks]
    return torch.cat([nn.functional.pad(one, more) for one, more in zip(tensors, fill, strict=True)])


def _grown(name: str, one: Tensor, width: int) -> Tensor:
    """What is told of each token of a prompt with pictures, told of an answer's, too; other things as they are."""
    if name == SEEN:  # they see what the last one does
        return torch.cat([one, one[:, -1:].expand(-1, width - one.shape[1], -1, -1)], dim=1)
    if name in PER_TOKEN:  # text is 0 where pictures are marked; PaliGemma marks none, and what follows its prefix is 1
        return nn.functional.pad(one, (0, width - one.shape[1]), value=int(not one.any()))
    return one


class Direct:
    """A model whose passes each carry out the edits they are called with. A context manager.

    A method's edits belong to one prompt and its cache; here the caller owns the cache, so that one prompt can be
    continued under many edits, also as rows of one batch.
    """

    def __init__(self, model: Any):
        self.model = model

    def __enter__(self) -> Direct:
        self._plug = observe(self.model, self._without_methods)
        self._host: Host = self.model.__dict__[HOST]
        return self

    def __exit__(self, *error: object) -> None:
        self._plug.detach()

    def _without_methods(self, facts: ModelFacts) -> dict[str, Method]:
        self.facts = facts
        return {}

    def need_gradients(self, what: str) -> None:
        """Raises UnsupportedModelError where no gradients can be taken through the model."""
        if self.facts.no_gradients is not None:
            raise UnsupportedModelError(
                f"{what} need gradients through '{self.facts.name}', but {self.facts.no_gradients}"
            )

    def __call__(
        self, edits: Edits, ids: Tensor, *, cache: DynamicCache | None = None, named: int = 0, **inputs: Any
    ) -> Tensor:
        """Logits [B, q, vocabulary] of one pass over token ids [B, q] under `edits`.

        `cache` is read and added to; `named`: of how many first keys the edits speak; `inputs` are further arguments of
        the model's forward.
        """
        start = 0 if cache is None else int(cache.get_seq_length())
        place = {"input_ids": ids.to(self.model.device), CACHE: cache, "use_cache": cache is not None}
        family = self._host.family  # a model that hands its prompt on puts the pictures into it first
        reads = self.model if inputs.keys() & {*family.vision_inputs} else family.generator(self.model)
        with self._host.staged(merge([edits]), start, named):
            return reads(**place, **inputs).logits

    @contextmanager
    def without_layers(self, stop: int) -> Iterator[None]:
        """Inside, layers below `stop` hand on what enters them: for passes that bring layer `stop` its input."""
        with ExitStack() as undo:
            for layer in self._host.layers[:stop]:
                attributes = layer.__dict__
                if "forward" in attributes:  # of a model that is spread over devices
                    undo.callback(attributes.__setitem__, "forward", attributes["forward"])
                else:
                    undo.callback(attributes.pop, "forward", None)
                attributes["forward"] = _hand_on
            yield


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


class Reader:
    """Reads prompts one after the other, each from where it parts from the one before, and answers them greedily."""

    def __init__(self, direct: Direct, tokenizer: Any):
        self.direct, self.tokenizer = direct, text_tokenizer(tokenizer)
        self._cache = DynamicCache()  # without a config, so that no sliding layer drops what the next prompt shares
        self._read: list[int] = []
        config = getattr(direct.model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        self._ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> None:
        """Read a prompt plainly, all but its last token, with which the answer begins."""
        prompt = list(ids[:-1])
        shared = common(self._read, prompt)
        self._cache.crop(-(int(self._cache.get_seq_length()) - shared))
        if prompt[shared:]:
            self._pass({}, torch.tensor([prompt[shared:]]), self._cache)
        self._read, self._last = prompt, int(ids[-1])

    @torch.no_grad()
    def answer(
        self, edits: Edits, rows: int = 1, *, most: int = ANSWER, each: Callable[[list[int]], None] | None = None
    ) -> list[str]:
        """The greedy answers of `rows` copies of the prompt that was read, with `edits` from its last token on.

        An answer ends with an end token, a line or `most` tokens. `each` gets the token of every row after each step.
        """
        cache = self._cache
        if rows > 1:
            cache = copies(cache, rows)
        tokens = torch.full((rows, 1), self._last)
        said: list[list[int]] = [[] for _ in range(rows)]
        texts, ended = [""] * rows, [False] * rows
        for _ in range(most):
            tokens = self._pass(edits, tokens, cache)
            for row, token in enumerate(tokens[:, 0].tolist()):
                if ended[row]:
                    continue
                said[row].append(token)
                text = self.tokenizer.decode(said[row], skip_special_tokens=True).lstrip()
                texts[row] = text.split("\n")[0]
                ended[row] = token in self._ends or "\n" in text
            if each is not None:
                each(tokens[:, 0].tolist())
            if all(ended):
                break
        return texts

    def _pass(self, edits: Edits, ids: Tensor, cache: DynamicCache) -> Tensor:
        """The next token [B, 1] after `ids` [B, q]."""
        start = int(cache.get_seq_length())
        positions = torch.arange(start, start + ids.shape[1], device=self.direct.model.device).expand(len(ids), -1)
        try:
            logits = self.direct(edits, ids, cache=cache, position_ids=positions, logits_to_keep=1)
        except BaseException:
            self._cache, self._read = DynamicCache(), []  # some layers have got the new tokens, others not
            raise
        return logits[:, -1].argmax(-1, keepdim=True)


def copies(cache: DynamicCache, rows: int) -> DynamicCache:
    """A cache of `rows` copies of a cache of one row."""
    copies = copy.deepcopy(cache)
    copies.batch_repeat_interleave(rows)
    return copies
