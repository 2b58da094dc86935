"""What each row of a forward pass of vLLM is: of which request, at which place in its sequence.

vLLM packs the tokens of many requests into one batch, prompts in chunks and answers token by token, and may drop a
request's keys and read it anew. So nothing is remembered of any request: each pass is told anew what its rows are, from
where they stand, in buffers that stay where they are, as compiled graphs ask for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .plan import Plan

PLAIN, TEXT, SEEING = range(3)  # rows of a request that asked for the plain model, without and with a picture
CHOICE = "sightline"  # key of a request's extra arguments
OFF, ON = "off", "on"


def off(parameters: Any) -> bool:
    """Whether a request's sampling parameters ask for the plain model."""
    return ((getattr(parameters, "extra_args", None) or {}).get(CHOICE, ON)) == OFF


def state(plan: Plan, parameters: Any, pictures: Any) -> int:
    """Which of the three kinds a request's rows are."""
    if off(parameters):
        return PLAIN
    return SEEING if pictures and plan.looks else TEXT


class Rows(nn.Module):
    """The rows of the pass under way, T of them: `kind` [T] as above; `changed` [T]: whether the copy's heads differ."""

    kind: Tensor
    changed: Tensor

    def __init__(self, plan: Plan, size: int):
        super().__init__()
        self.plan = plan
        self.register_buffer("kind", torch.full((size,), TEXT), persistent=False)
        self.register_buffer("changed", torch.ones(size, dtype=torch.bool), persistent=False)

    def tell(self, kinds: np.ndarray, first: np.ndarray, counts: np.ndarray, prompts: np.ndarray) -> None:
        """Say what the rows are.

        Of each request in the batch: its kind, the position of its first row, how many rows it has, and the length of its
        prompt.
        """
        request = np.repeat(np.arange(len(counts)), counts)
        total = len(request)
        position = first[request] + np.arange(total) - (np.cumsum(counts) - counts)[request]
        kind = kinds[request]
        changed = (kind != PLAIN) & self._reach(position, prompts[request])
        self.kind[:total].copy_(torch.from_numpy(kind))
        self.changed[:total].copy_(torch.from_numpy(changed))

    def _reach(self, position: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        rows = "all" if self.plan.copied is None else self.plan.copied.rows
        if rows == "last":
            return position >= prompt - 1
        return position < prompt if rows == "prompt" else np.ones(len(position), dtype=bool)


def read_batch(rows: Rows, runner: Any) -> None:
    """Tell `rows` what vLLM's runner is about to run."""
    batch = runner.input_batch
    count = batch.num_reqs
    asked = [runner.requests[name] for name in batch.req_ids[:count]]
    kinds = [state(rows.plan, one.sampling_params, one.mm_features) for one in asked]
    rows.tell(
        np.asarray(kinds, dtype=np.int64),
        batch.num_computed_tokens_cpu[:count].astype(np.int64),
        np.diff(runner.query_start_loc.np[: count + 1]).astype(np.int64),
        batch.num_prompt_tokens[:count].astype(np.int64),
    )


def cache_keys(plan: Plan, request: Any, start: int, stop: int) -> tuple[tuple[str, Any], ...]:
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
