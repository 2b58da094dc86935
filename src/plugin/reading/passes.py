"""In which passes the model reads its own prompt: one, or two where the last row needs what the others yield first.

`generate` asks for the last row alone: all tokens but the last are read, then the last one is. A forward that wants more
than that, or a method that must see all rows together, costs a pass of its own before, in which the methods that hold
back edit nothing of the last row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...common.errors import LayoutError, UnsupportedModelError
from ..branches.positions import Positions
from ..branches.prompts import PER_TOKEN, SEEN
from ..core import compat
from ..core.attention import Plan, merge
from ..core.compat import CACHE, ENCODED
from ..core.edits import Edits
from ..core.families import Family
from ..core.host import Host
from ..core.layout import Step
from .prompt import Prompt

POSITIONED = ("input_ids", "position_ids", *PER_TOKEN, "cache_position")
Call = Callable[..., Any]
Pass = Callable[[Call, dict[str, Any], Step], Any]  # one pass with everything that belongs to it


class Whole:
    """The prompt in one pass."""

    def read(self, run: Pass, original: Call, kwargs: dict[str, Any], step: Step) -> Any:
        """Read the prompt by passes of `run`; `step` is all of it. Returns the last pass's output."""
        return run(original, kwargs, step)


class Rehearsed(Whole):
    """The prompt in a pass that keeps nothing, where methods see what they need, and then in `then`."""

    def __init__(self, host: Host, prompt: Prompt, watched: Callable[[Step], Sequence[Edits]], then: Whole):
        self.host, self.prompt, self.watched, self.then = host, prompt, watched, then

    def read(self, run: Pass, original: Call, kwargs: dict[str, Any], step: Step) -> Any:
        layout, sessions = self.prompt.layout, self.prompt.sessions
        steps = [Step(layout, step.start, step.count - session.hold_back) for session in sessions]
        plans = [self.prompt.gated(n, session.edits(steps[n]), steps[n]) for n, session in enumerate(sessions)]
        rehearsed(self.host, merge([*plans, *self.watched(step)]), original, kwargs, step)
        return self.then.read(run, original, kwargs, step)


def rehearsed(host: Host, plan: Plan, original: Call, kwargs: dict[str, Any], step: Step) -> Any:
    """Read the prompt in a pass that keeps nothing; returns its output."""
    layout = step.layout
    cache = kwargs.get(CACHE) if step.start else None  # what the turns before have left
    unkept = {"attention_mask": layout.valid.long(), "use_cache": cache is not None, CACHE: cache, "labels": None}
    if cache is not None and not compat.grows_by_copies(cache):
        raise LayoutError(
            f"a method must see a further turn before it is read, which a {type(cache).__name__} cannot take back: use"
            " the default cache, or pass the whole conversation without past_key_values"
        )
    undone = nullcontext() if cache is None else compat.cache_undone(cache)
    with host.staged(plan, step.start, layout.length), undone:
        return original(**{**kwargs, **unkept})


class LastApart(Whole):
    """All tokens of the prompt but the last, then the last one."""

    def __init__(self, host: Host):
        self.host = host

    def read(self, run: Pass, original: Call, kwargs: dict[str, Any], step: Step) -> Any:
        count, layout = step.count, step.layout
        first, last = _split(kwargs, self.host.family)
        seen = layout.valid.long()  # the model prepares what each kind of layer and cache needs
        positions = Positions(self.host.decoder)
        with positions.noted():
            run(original, {**first, "attention_mask": seen[:, :-1]}, Step(layout, step.start, count - 1))
        if last.get("position_ids") is None and positions.last.ndim > 2:
            last["position_ids"] = positions.last + 1  # Qwen lays out the whole mask's, where it is not told
        return run(original, {**last, "attention_mask": seen}, Step(layout, step.start + count - 1, 1))


def given(kwargs: Mapping[str, Any]) -> Tensor:
    """The tokens of a pass [B, count], or their embeddings."""
    ids = kwargs.get("input_ids")
    return kwargs["inputs_embeds"] if ids is None else ids


def one_by_one(go_on: Callable[[dict[str, Any], Step], Any], kwargs: dict[str, Any], step: Step) -> Any:
    """Tokens behind the prompt in a pass for each, as something decides about them in turn; the last output, with all logits.

    Raises UnsupportedModelError where the caller wants more of the passes than logits.
    """
    mask, wanted = kwargs.get("attention_mask"), ("output_hidden_states", "output_attentions", "labels")
    if any(kwargs.get(name) not in (None, False) for name in wanted) or (mask is not None and mask.ndim != 2):
        raise UnsupportedModelError(
            f"{step.count} tokens came in one pass behind the prompt, and a gate, or a copy that each token changes, needs them"
            " one by one: pass them with a mask [batch, tokens] and ask for no more than logits, or pass one token at a time"
        )
    outputs = []
    for number in range(step.count):
        own = {**kwargs, "return_dict": True}
        for name in (*POSITIONED, "inputs_embeds", SEEN):
            value = kwargs.get(name)
            if isinstance(value, Tensor):
                own[name] = value.narrow(1 if name in ("inputs_embeds", SEEN) else -1, number, 1)
        if mask is not None:
            own["attention_mask"] = mask[:, : mask.shape[1] - step.count + number + 1]
        outputs.append(go_on(own, Step(step.layout, step.start + number, 1)))
    outputs[-1].logits = torch.cat([output.logits for output in outputs], dim=1)
    return outputs[-1]


def passes_of(
    host: Host,
    prompt: Prompt,
    kwargs: Mapping[str, Any],
    step: Step,
    watched: Callable[[Step], Sequence[Edits]] = lambda step: (),
    one_row: bool = False,
) -> Whole:
    """How this prompt is read. watched: what a decoder must see rehearsed, too; one_row: it wants the last row apart."""
    held_back = any(session.hold_back for session in prompt.sessions)
    splits = _wants_last_row(kwargs) and not host.family.bidirectional_prompt
    if step.count == 1 or not (held_back or (one_row and splits)):
        return Whole()
    prompt.layout.require_left_padding()
    way = LastApart(host) if splits else Whole()
    if splits and not (watched(step) or any(session.whole_prompt for session in prompt.sessions)):
        return way
    return Rehearsed(host, prompt, watched, way)


def _wants_last_row(kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward is one of `generate`: a cache to fill and nothing wanted but the last row's logits."""
    plain = kwargs.get("labels") is None and kwargs.get("return_dict") is not False
    keep = kwargs.get("logits_to_keep")
    return (
        plain
        and not kwargs.get("output_hidden_states")
        and isinstance(keep, int)
        and keep == 1
        and kwargs.get(CACHE) is not None
    )


def _split(kwargs: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments for all but the last prompt token, with the pictures, and for the last, without them."""
    first, last = dict(kwargs), {k: v for k, v in kwargs.items() if k not in (*family.vision_inputs, ENCODED)}
    for name in POSITIONED:
        value = kwargs.get(name)
        if isinstance(value, Tensor):
            first[name], last[name] = value[..., :-1], value[..., -1:]  # a turn's types may be those of all turns
    embeds = kwargs.get("inputs_embeds")
    if embeds is not None:
        first["inputs_embeds"], last["inputs_embeds"] = embeds[:, :-1], embeds[:, -1:]
    if "token_type_ids" in last:
        last["token_type_ids"] = None  # they mark pictures in the prompt's mask; a token behind a cache has none
    return first, last
