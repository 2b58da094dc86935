"""Prompts of a branch's own, made from the base's: the arguments of a forward pass in, those of the branch's out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...common.errors import LayoutError
from ..core.compat import CACHE
from ..core.layout import Layout
from .branch import Rewrite

PREPARED = ("attention_mask", "position_ids", CACHE, "cache_position", "inputs_embeds")
# Arguments [B, n] beside the ids and their mask.
PER_TOKEN = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
SEEN = "cross_attention_mask"  # which tokens see which tiles of which image [B, n, images, tiles]


def same(kwargs: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """The base's prompt once more, for a branch whose pictures or embeddings differ."""
    return {**kwargs, "attention_mask": layout.valid.long()}


def without(kwargs: dict[str, Any], layout: Layout, drop: Tensor, pictures: Sequence[str] = ()) -> dict[str, Any]:
    """The prompt without the tokens that `drop` [B, n] marks: text, or all images, which `pictures` names.

    Raises LayoutError where a row has no other.
    """
    kept = [(valid & ~gone).nonzero().flatten().tolist() for valid, gone in zip(layout.valid, drop, strict=True)]
    if not all(kept):
        what = "image tokens" if pictures else "what is taken away"
        raise LayoutError(
            f"row {kept.index([])} of the prompt has nothing but {what}, so that nothing is left for the copy to read: put a"
            " question beside it, or run this prompt outside the attachment"
        )
    gone_with = (*pictures, "position_ids") if pictures else ()  # text alone is simply counted
    return _rebuilt({k: v for k, v in kwargs.items() if k not in gone_with}, layout, kept)


def without_image(layout: Layout, pictures: Sequence[str]) -> Rewrite:
    """What makes of a prompt the same one without any image, which `pictures` carry."""
    return lambda kwargs: without(kwargs, layout, layout.image, pictures)


def unasked(kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a Q-Former that reads the question [pictures, m] gets of empty text: the first and the last token."""
    ids, mask = kwargs.get("qformer_input_ids"), kwargs.get("qformer_attention_mask")
    if ids is None:
        return {}
    seen = torch.ones_like(ids) if mask is None else mask
    last = ids.shape[1] - 1 - seen.flip(-1).argmax(-1)
    ends = torch.stack([seen.argmax(-1), last], dim=-1)
    return {"qformer_input_ids": ids.gather(1, ends), "qformer_attention_mask": torch.ones_like(ends)}


def inserted(kwargs: dict[str, Any], layout: Layout, places: Sequence[int], tokens: Sequence[int]) -> dict[str, Any]:
    """The prompt with `tokens` put in front of position `places[b]` of each row b."""
    rows = []
    for valid, place in zip(layout.valid, places, strict=True):
        own = valid.nonzero().flatten().tolist()
        rows.append([i for i in own if i < place] + [-1 - t for t in tokens] + [i for i in own if i >= place])
    return _rebuilt(kwargs, layout, rows)


def _rebuilt(kwargs: dict[str, Any], layout: Layout, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A prompt of other tokens, padded on the left.

    A row lists positions in the base's prompt, or -1 - id of a token that is new.
    """
    width, device = max(map(len, rows)), layout.ids.device
    picks = torch.tensor([[-1] * (width - len(row)) + list(row) for row in rows], device=device)
    valid = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    old, source = picks >= 0, picks.clamp(min=0)
    changed = {k: v for k, v in kwargs.items() if k not in PREPARED}
    changed["input_ids"] = torch.where(old, layout.ids.gather(1, source), -1 - picks) * valid
    changed["attention_mask"] = valid
    for name in PER_TOKEN:
        if isinstance(kwargs.get(name), Tensor):
            changed[name] = torch.where(old, kwargs[name].gather(1, source), 0)
    if isinstance(kwargs.get(SEEN), Tensor):  # a new token sees what the one behind it does
        behind = [[next(pick for pick in row[i:] if pick >= 0) for i in range(len(row))] for row in rows]
        places = torch.tensor([[0] * (width - len(row)) + row for row in behind], device=device)
        seen = kwargs[SEEN]
        changed[SEEN] = seen.gather(1, places[..., None, None].expand(-1, -1, *seen.shape[2:])) * valid[..., None, None]
    if isinstance(kwargs.get("position_ids"), Tensor):
        moved = [_moved(row, valid) for row, valid in zip(rows, layout.valid.tolist(), strict=True)]
        anchors, steps = (
            torch.tensor([[0] * (width - len(row)) + [pair[i] for pair in row] for row in moved], device=device)
            for i in range(2)
        )
        before = kwargs["position_ids"]
        before = before.expand(*before.shape[:-2], len(rows), -1)
        changed["position_ids"] = before.gather(-1, anchors.expand(*before.shape[:-1], -1)) + steps
    return changed


def _moved(row: Sequence[int], valid: Sequence[bool]) -> list[tuple[int, int]]:
    """For each token of a rebuilt row, a token of the base's prompt and how far its position lies from that one's.

    Text advances positions by one a token, in every axis; what is left of an image moves as a whole.
    """
    moved, shift, following = [], 0, 0  # `following`: the first token of the base that has not been passed
    for number, pick in enumerate(row):
        if pick < 0:
            next_old = next(later for later in row[number:] if later >= 0)
            shift -= sum(valid[following:next_old])
            following = next_old
            moved.append((next_old, shift))
            shift += 1
        else:
            shift -= sum(valid[following:pick])
            following = pick + 1
            moved.append((pick, shift))
    return moved
