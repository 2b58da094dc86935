"""What each row of a forward pass of vLLM is: of which request, at which place in its sequence.

vLLM packs the tokens of many requests into one batch, prompts in chunks and answers token by token, and may drop a
request's keys and read it anew. So nothing is remembered of any request: each pass is told anew what its rows are, from
where they stand, in buffers that stay where they are, as compiled graphs ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .plan import ServedPlan

PLAIN, TEXT, SEEING = range(3)  # rows of a request that asked for the plain model, without and with a picture
CHOICE = "sightline"  # key of a request's extra arguments
OFF, ON = "off", "on"
BESIDE, PLACE = 3, 256  # numbers of a row beside its hidden states; any number type holds whole ones up to PLACE


def off(parameters: Any) -> bool:
    """Whether a request's sampling parameters ask for the plain model."""
    return ((getattr(parameters, "extra_args", None) or {}).get(CHOICE, ON)) == OFF


def state(plan: ServedPlan, parameters: Any, pictures: Any) -> int:
    """Which of the three kinds a request's rows are."""
    if off(parameters):
        return PLAIN
    return SEEING if pictures and plan.looks else TEXT


class PassRows(nn.Module):
    """The rows of the pass under way, T of them.

    kind: as above. changed: whether the copy's heads differ. first: whether it is its sequence's first token. image:
    whether it is of a picture. skipped: how many rows before it are. redrawn: what the copy reads in its place
    [T, hidden]. beside: what goes with its hidden states [T, 3] (`read_beside`).
    """

    kind: Tensor
    changed: Tensor
    first: Tensor
    image: Tensor
    skipped: Tensor
    redrawn: Tensor
    beside: Tensor

    def __init__(self, plan: ServedPlan, size: int, hidden: int = 0):
        super().__init__()
        self.plan = plan
        redrawn = plan.copied is not None and plan.copied.pictures == "redrawn"
        for name, value in (
            ("kind", torch.full((size,), TEXT)),
            ("changed", torch.ones(size, dtype=torch.bool)),
            ("first", torch.zeros(size, dtype=torch.bool)),
            ("image", torch.zeros(size, dtype=torch.bool)),
            ("skipped", torch.zeros(size, dtype=torch.long)),
            ("redrawn", torch.zeros(size if redrawn else 0, hidden)),
            ("beside", torch.zeros(size, BESIDE)),
        ):
            self.register_buffer(name, value, persistent=False)

    def tell(
        self,
        kinds: np.ndarray,
        first: np.ndarray,
        counts: np.ndarray,
        prompts: np.ndarray,
        pictures: Sequence[np.ndarray] = (),
    ) -> None:
        """Say what the rows are.

        Of each request in the batch: its kind, the position of its first row, how many rows it has, the length of its
        prompt, and where in it tokens of pictures stand, ascending.
        """
        request = np.repeat(np.arange(len(counts)), counts)
        total = len(request)
        begins = np.cumsum(counts) - counts
        position = first[request] + np.arange(total) - begins[request]
        kind = kinds[request]
        changed = (kind != PLAIN) & self._reach(position, prompts[request])
        skipped, image = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=bool)
        for begin, count, places in zip(begins, counts, pictures, strict=False):  # none where the copy sees them
            own = slice(begin, begin + count)
            skipped[own] = np.searchsorted(places, position[own])
            image[own] = np.isin(position[own], places)
        copied = self.plan.copied
        contrasted = kind == SEEING if copied is not None and copied.bare else kind != PLAIN
        written = np.maximum(position + 1 - prompts[request], 0)
        for buffer, values in (
            (self.kind, kind),
            (self.changed, changed),
            (self.first, position == 0),
            (self.image, image),
            (self.skipped, skipped),
            (self.beside, np.stack([contrasted, written // PLACE, written % PLACE], -1)),
        ):
            buffer[:total].copy_(torch.from_numpy(values))

    def _reach(self, position: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        rows = "all" if self.plan.copied is None else self.plan.copied.rows
        if rows == "last":
            return position >= prompt - 1
        return position < prompt if rows == "prompt" else np.ones(len(position), dtype=bool)


def read_beside(beside: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows [T, 3]: which are contrasted, and how many tokens of the answer each has read, both [T, 1]."""
    contrasted, places, rest = beside.split(1, -1)
    return contrasted > 0, places * PLACE + rest


def read_batch(rows: PassRows, runner: Any) -> None:
    """Tell `rows` what vLLM's runner is about to run."""
    batch = runner.input_batch
    count = batch.num_reqs
    copied = rows.plan.copied
    asked = [runner.requests[name] for name in batch.req_ids[:count]]
    kinds = [state(rows.plan, one.sampling_params, one.mm_features) for one in asked]
    rows.tell(
        np.asarray(kinds, dtype=np.int64),
        batch.num_computed_tokens_cpu[:count].astype(np.int64),
        np.diff(runner.query_start_loc.np[: count + 1]).astype(np.int64),
        batch.num_prompt_tokens[:count].astype(np.int64),
        [_places(one.mm_features) for one in asked] if copied is not None and copied.pictures == "none" else (),
    )


def _places(features: Any) -> np.ndarray:
    """Where tokens of pictures stand in a prompt, ascending."""
    found = [np.empty(0, dtype=np.int64)]
    for one in features:
        at = one.mm_position
        own = np.arange(at.length) if at.is_embed is None else np.flatnonzero(np.asarray(at.is_embed))
        found.append(at.offset + own)
    return np.sort(np.concatenate(found))


def cache_keys(plan: ServedPlan, request: Any, start: int, stop: int) -> tuple[tuple[str, Any], ...]:
    """What the keys and values of tokens `start:stop` depend on beside the tokens before `stop`.

    They become part of the hash under which vLLM shares blocks of its cache, so that two requests share only what is
    the same for both. A block's hash holds that of the block before it.
    """
    parameters, keys = request.sampling_params, list[tuple[str, Any]]()
    if start == 0:
        kind = state(plan, parameters, request.mm_features)
        if kind != TEXT:
            keys.append((CHOICE, kind))
    copied = plan.copied
    if copied is not None and copied.rows != "all" and not off(parameters) and stop >= request.num_prompt_tokens:
        keys.append((CHOICE, request.num_prompt_tokens))
    return tuple(keys)
