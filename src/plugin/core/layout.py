"""Where the image, the question and the padding lie in a prompt: boolean masks [batch, prompt], never offsets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...common.chat import Turn, render, user
from ...common.errors import LayoutError
from .edits import Rows

QueryFinder = Callable[[Tensor], Tensor]  # token ids [B, n] -> query mask [B, n]


@dataclass(frozen=True)
class Layout:
    """The tokens of one prompt batch. B rows, n positions (padding included).

    ids: token ids [B, n]. valid: not padding. image: image (or video) tokens. query: the user's question, the last
    token of the prompt never among them, because it is the one that begins to answer. turn: where the last turn of a
    conversation begins; what lies before was read earlier.
    """

    ids: Tensor
    valid: Tensor
    image: Tensor
    query: Tensor
    turn: int = 0

    @property
    def batch(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @cached_property
    def last(self) -> Tensor:
        """Index of each row's last valid token [B]: the position that predicts the first answer token."""
        return _last(self.valid)

    @cached_property
    def first_token(self) -> Tensor:
        """Each row's first valid token [B, n]."""
        return self.valid & (self.valid.cumsum(-1) == 1)

    @cached_property
    def last_token(self) -> Tensor:
        """Each row's last valid token [B, n], at `last`."""
        return torch.arange(self.length, device=self.ids.device) == self.last[:, None]

    def check_order(self, rows: Tensor) -> None:
        """Raises LayoutError where a new order of rows gives one another prompt: edits follow the prompt of each row."""
        rows = rows.to(self.ids.device)
        if not all(torch.equal(table[rows], table) for table in (self.ids, self.valid)):
            raise LayoutError(
                "the cache's rows were reordered across prompts, but edits follow the prompt of each row: reorder among rows"
                " of one prompt, as beams are, or read the prompts again in the new order"
            )

    def of_prompt(self, weights: Tensor, keys: slice) -> Tensor:
        """Weights [..., n] of the prompt's keys, from those [..., K] that a `WeightProbe` got: zero where it got none."""
        inside = weights[..., : keys.stop - keys.start]
        return torch.nn.functional.pad(inside, (keys.start, self.length - keys.stop))

    def require_left_padding(self) -> None:
        """Raises LayoutError where rows end at different places."""
        if bool((self.last < self.length - 1).any()):
            raise LayoutError("the prompt is padded on the right, so its rows end at different places: pad on the left")

    @cached_property
    def after_image(self) -> Tensor:
        """Valid tokens behind the row's last image token [B, n]; none where a row has no image."""
        positions = torch.arange(self.length, device=self.ids.device)
        behind = positions > _last(self.image)[:, None]
        return behind & self.valid & self.image.any(-1, keepdim=True)

    @cached_property
    def unread(self) -> Step:
        """The pass that reads what has not been read yet: the whole prompt, or its last turn."""
        return Step(self, self.turn, self.length - self.turn)

    def text_only(self) -> tuple[Tensor, Tensor]:
        """The prompt without its image tokens, left-padded anew: ids and attention mask [B, longest text]."""
        keep = self.valid & ~self.image
        width = int(keep.sum(-1).max())
        order = keep.int().argsort(dim=-1, stable=True)[:, -width:]  # dropped tokens first, the rest in their order
        return self.ids.gather(1, order), keep.gather(1, order).long()


@dataclass(frozen=True)
class Step:
    """One forward pass: query rows `start : start + count` of the sequence that `layout` begins."""

    layout: Layout
    start: int
    count: int

    @property
    def reading(self) -> bool:
        """Whether the pass holds prompt rows."""
        return self.start < self.layout.length

    @property
    def mask(self) -> Tensor:
        """The attention mask [B, n] of the prompt and of the answer up to this pass's last token, as models take it."""
        valid = self.layout.valid
        answered = valid.new_ones(len(valid), max(0, self.start + self.count - self.layout.length))
        return torch.cat([valid, answered], dim=1).long()

    def rows(self, prompt_rows: Tensor) -> Rows | None:
        """The rows of this pass that `prompt_rows` [B, n] marks; None where it marks none of them."""
        window = prompt_rows[:, self.start : self.start + self.count]
        marked = window.any(0).nonzero()
        if not len(marked):
            return None
        first, stop = int(marked[0]), int(marked[-1]) + 1
        return Rows(first, stop, window[:, first:stop])


class TurnFinder:
    """Finds the words of the last user turn in token ids, by what the chat template puts around any user text.

    The template is rendered twice with different questions; the tokens that both renderings share at the end are the
    closing of the turn and the opening of the answer, the ones shared at the start, behind the image, its opening.
    """

    def __init__(self, processor: Any, image_ids: frozenset[int]):
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.image_ids = image_ids
        first, second = (self._render(processor, text) for text in ("Is it?", "Name two."))
        unknown = getattr(self.tokenizer, "unk_token_id", None)  # a small vocabulary may lack words of both questions
        self.tail = _common(first[::-1], second[::-1], unknown)[::-1]
        head = _common(first, second, unknown)
        images = [i for i, token in enumerate(head) if token in image_ids]
        self.after_image = head[images[-1] + 1 :] if images else []
        # A later turn may open otherwise: without a start token, or with a space that melts into the next word.
        first, second = (self._last_turn_head(processor, answer, unknown) for answer in ("Red.", "Two cats"))
        openers = (head[: images[0]] if images else head, _common(first[::-1], second[::-1], unknown)[::-1])
        self.openers = [opener[-4:] for opener in openers if opener]  # enough to know a turn by

    def _last_turn_head(self, processor: Any, answer: str, unknown: int | None) -> list[int]:
        """Token ids up to the second question of a conversation with `answer` in between."""
        earlier = [user("Why?"), {"role": "assistant", "content": answer}]
        first, second = (self._ids(processor, [*earlier, user(question)]) for question in ("Is it?", "Name two."))
        return _common(first, second, unknown)

    def _render(self, processor: Any, question: str) -> list[int]:
        return self._ids(processor, [user(question, pictures=int(bool(self.image_ids)))])

    def _ids(self, processor: Any, turns: list[Turn]) -> list[int]:
        return list(self.tokenizer(render(processor, turns), add_special_tokens=False)["input_ids"])

    def __call__(self, ids: Tensor) -> Tensor:
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(ids.tolist()):
            start, stop = self._bounds(tokens)
            mask[row, start:stop] = True
        return mask

    def _bounds(self, tokens: list[int]) -> tuple[int, int]:
        stop = len(tokens)
        if self.tail and tokens[-len(self.tail) :] == self.tail:
            stop -= len(self.tail)
        images = [i for i, token in enumerate(tokens) if token in self.image_ids]
        start = images[-1] + 1 if images else 0
        if tokens[start : start + len(self.after_image)] == self.after_image:
            start += len(self.after_image)
        if start >= stop:  # the image stands behind the question
            start = 0
        for i in range(stop, start, -1):
            if any(i - len(o) >= start and tokens[i - len(o) : i] == o for o in self.openers):
                return i, stop
        return start, stop


def read_layout(
    ids: Tensor, attention_mask: Any, image_ids: frozenset[int], query: QueryFinder | None, turn: int = 0
) -> Layout:
    """Layout of a prompt. `attention_mask` as the model's forward takes it: [B, n], [B, 1, n, K], a dict of these, None.

    `query` None takes every text token behind the last image; of a further turn, which begins at position `turn` and whose
    prepared mask has rows for itself alone, those of the turn. Raises LayoutError for an empty batch, or for a mask or a
    query mask whose shape does not fit.
    """
    if ids.ndim != 2 or 0 in ids.shape:
        raise LayoutError(
            f"the prompt batch is empty (input_ids of shape {list(ids.shape)}): pass at least one row with one token"
        )
    valid = _valid(ids, attention_mask, turn)
    image = torch.zeros_like(valid)
    for token in image_ids:
        image |= ids == token
    image &= valid
    layout = Layout(ids=ids, valid=valid, image=image, query=valid)
    if query is not None:
        asked = query(ids)
        if not isinstance(asked, Tensor):
            raise LayoutError(
                f"the query function returned {type(asked).__name__}: return a boolean mask [batch, prompt]"
            )
        asked = asked.to(ids.device).bool()
        if asked.shape != ids.shape:
            raise LayoutError(f"the query mask has shape {list(asked.shape)} but input_ids {list(ids.shape)}")
    else:
        asked = torch.where(image.any(-1, keepdim=True), layout.after_image, valid)
        asked = asked & (torch.arange(layout.length, device=ids.device) >= turn)
    before_last = torch.arange(layout.length, device=ids.device) < layout.last[:, None]
    return Layout(ids=ids, valid=valid, image=image, query=asked & valid & ~image & before_last, turn=turn)


def _valid(ids: Tensor, mask: Any, turn: int) -> Tensor:
    """Which tokens are not padding [B, n]. In a prepared mask (static caches) a token that sees itself is valid."""
    if isinstance(mask, Mapping):
        mask = next((m for m in mask.values() if m is not None), None)
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    batch, length = ids.shape
    if (
        turn
        and mask.ndim == 4
        and mask.shape[0] == batch
        and mask.shape[2] == length - turn
        and length <= mask.shape[3]
    ):
        seen = mask[:, 0, -1, :length]
        return seen if seen.dtype == torch.bool else seen == 0
    if mask.ndim == 4 and mask.shape[0] == batch and min(mask.shape[2:]) >= length:
        diagonal = mask[:, 0].diagonal(dim1=1, dim2=2)[:, :length]
        return diagonal if diagonal.dtype == torch.bool else diagonal == 0
    if mask.shape != ids.shape:
        raise LayoutError(
            f"attention_mask has shape {list(mask.shape)} but input_ids {list(ids.shape)}: pass the processor's mask"
        )
    return mask.bool()


def _last(mask: Tensor) -> Tensor:
    """Index of the last True of each row [B]; -1 where there is none."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, positions, torch.full_like(positions, -1)).max(-1).values


def _common(first: list[int], second: list[int], barrier: int | None) -> list[int]:
    """The longest common beginning, at most up to the token `barrier`."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b or a == barrier:
            break
        length += 1
    return first[:length]
