"""What a caller's cache holds, turn by turn: tokens, and the pictures that came with them.

A second turn goes on behind the cache of the first: its prompt is the whole conversation, of which the model reads the new
part alone. Sessions and contrasts are opened anew on that prompt; what a session knew of the earlier part it takes over
(`Session.resume`), and a branch with a prompt of its own reads the whole conversation again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...common.errors import LayoutError
from ..branches.prompts import PER_TOKEN
from ..core.compat import CACHE, ENCODED
from ..core.families import Family
from ..core.host import Host

AGAIN = "pass the whole conversation without past_key_values"


class Conversation:
    """The tokens [B, seen] in the cache, and the pictures and token types of each turn."""

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._types: dict[str, list[Tensor]] = {}
        self._pictures: list[dict[str, Any]] = []
        self._known = True  # whether every pass came with its tokens, row for row

    def hear(self, kwargs: Mapping[str, Any]) -> None:
        """A pass with these arguments has been read."""
        ids = kwargs.get("input_ids")
        if not isinstance(ids, Tensor) or (self._ids and len(self._ids[0]) != len(ids)):
            self._known = False
            return
        for name in PER_TOKEN:
            given = kwargs.get(name)
            if isinstance(given, Tensor):
                self._types.setdefault(name, [ids.new_zeros(part.shape) for part in self._ids]).append(
                    given[:, -ids.shape[1] :]
                )  # Gemma's are those of all turns
            elif name in self._types:
                self._types[name].append(ids.new_zeros(ids.shape))
        self._ids.append(ids)

    def saved(self) -> Callable[[], None]:
        """What takes back all that is heard from now on."""
        ids, types = list(self._ids), {name: list(parts) for name, parts in self._types.items()}

        def restore() -> None:
            self._ids, self._types = ids, types

        return restore

    def see(self, pictures: Mapping[str, Any]) -> None:
        """A turn has brought these pictures, as forward arguments."""
        if pictures:
            self._pictures.append(dict(pictures))

    def clear(self) -> None:
        """Let go of all of it: the cache is gone, so that no turn can follow."""
        self._ids, self._types, self._pictures = [], {}, []

    def with_turn(self, ids: Tensor, start: int) -> Tensor:
        """The tokens of the whole conversation, of which the pass brings the new ones [B, count].

        Raises LayoutError where the cache does not hold what this attachment has read.
        """
        held = torch.cat(self._ids, dim=1) if self._known and self._ids else None
        if held is None or held.shape[1] != start or len(held) != len(ids):
            raise LayoutError(
                f"a turn of {len(ids)} rows goes on from a cache of {start} tokens that were not all read, row for row, by"
                f" this attachment (a beam search, or a cache that was cropped or selected from): {AGAIN}"
            )
        return torch.cat([held.to(ids.device), ids], dim=1)

    def check(self, ids: Tensor | None, start: int, count: int) -> None:
        """Raises LayoutError where the conversation [B, n] that `generate` got begins otherwise than the cache.

        start: tokens in the cache; count: those that are read behind it. `generate` may get these alone.
        """
        if ids is None or ids.shape[1] != start + count or not self._known:
            return
        held = torch.cat(self._ids, dim=1)
        if held.shape != ids[:, :start].shape:
            return
        differs = (held.to(ids.device) != ids[:, :start]).any(0).nonzero()
        if len(differs):
            raise LayoutError(
                f"the conversation differs from what the cache holds, first at token {int(differs[0])}: build the turn on"
                f" the token ids that generate returned, or {AGAIN}"
            )

    def whole(self, kwargs: Mapping[str, Any], valid: Tensor, family: Family) -> dict[str, Any]:
        """The arguments that would read the whole conversation at once, from those of the turn's pass."""
        own = {name: value for name, value in kwargs.items() if name not in (*family.vision_inputs, ENCODED)}
        own |= {"input_ids": torch.cat(self._ids, dim=1), "attention_mask": valid.long(), CACHE: None}
        own |= {"position_ids": None, "inputs_embeds": None}
        own |= {name: torch.cat(parts, dim=1) for name, parts in self._types.items()}
        return {**own, **self._all_pictures(len(valid), family)}

    def _all_pictures(self, rows: int, family: Family) -> dict[str, Any]:
        if len(self._pictures) < 2:
            return self._pictures[0] if self._pictures else {}
        names = {name for turn in self._pictures for name in turn}
        try:
            if rows > 1 or ENCODED in names:
                raise ValueError("they lie row by row, or came encoded")
            dim = 1 if family.pictures_by_row else 0
            return {name: torch.cat([turn[name] for turn in self._pictures], dim=dim) for name in names}
        except (ValueError, KeyError, RuntimeError) as error:
            raise LayoutError(
                "the decoder's branch reads the pictures of all turns again, and these cannot be put together"
                f" ({str(error).splitlines()[0]}): {AGAIN}"
            ) from error


def check_turn(host: Host, pictures: Mapping[str, Any], start: int, seen: int, again: bool) -> None:
    """Refuse a turn that cannot go on from a cache of `start` tokens.

    seen: how many of them this attachment has read. again: the decoder's branch reads the whole conversation again.
    """
    family, model = host.family, host.model
    reason = None
    if family.generator(model) is not model and again:
        reason = "the pictures of earlier turns are not told to its language model, and the decoder's branch reads them"
    elif host.across:
        reason = "it reads its image by cross-attention, once"
    elif family.bidirectional_prompt:
        reason = "its prompt rows see later ones, so that a prompt cannot be read in parts"
    elif pictures and hasattr(getattr(model, "model", None), "get_rope_index"):
        reason = "it lays out the positions of all pictures together, and the turn brings new ones"
    elif start != seen:
        reason = f"its cache holds {start} tokens, of which {seen} were read"
    if reason is not None:
        raise LayoutError(
            f"a further turn of a conversation cannot go on from the cache of this model ({reason}): {AGAIN}"
        )
