"""How a prompt is read and an answer decoded under a set of methods: which passes, with which plan."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .attention import Plan, merge
from .errors import LayoutError
from .families import Family
from .host import Host
from .layout import Layout, QueryFinder, Step, read_layout
from .method import Method, Session

ENCODED = "mm_encoder_outputs"  # pictures that `generate` has already put through the vision tower
POSITIONED = ("input_ids", "position_ids", "token_type_ids", "mm_token_type_ids", "cache_position")


class Run:
    """One prompt batch: its layout, a session per method, and the plan of its decode steps."""

    def __init__(self, layout: Layout, sessions: list[Session]):
        self.layout, self.sessions = layout, sessions
        self.decode_plan: Plan | None = None
        self.cache: weakref.ref[Any] | None = None  # the cache that holds this prompt

    def plan(self, step: Step) -> Plan:
        if not step.reading and self.decode_plan is not None:
            return self.decode_plan
        plan = merge([session.edits(step) for session in self.sessions])
        if not step.reading:
            self.decode_plan = plan
        return plan


class Runner:
    """Runs forward passes of a host's model with the edits of `methods`; keeps the `Run` of the prompt under way."""

    def __init__(self, host: Host, methods: dict[str, Method], query: QueryFinder | None):
        self.methods = methods
        self.run: Run | None = None
        self._host, self._query = host, query

    def forward(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """One forward pass of the model with this attachment's edits."""
        if not self.methods:
            return original(**kwargs)
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        if start == 0:
            output = self._read(original, kwargs)
            assert self.run is not None
            filled = getattr(output, "past_key_values", None) if cache is None else cache
            self.run.cache = None if filled is None else weakref.ref(filled)
            return output
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        rows, count = (embeds if ids is None else ids).shape[:2]  # type: ignore[union-attr]
        if self.run is None or self.run.cache is None or self.run.cache() is not cache:
            self.run = None
            raise LayoutError(
                f"a cache with {start} tokens of {rows} rows was passed, but this attachment has not read that prompt:"
                " start from an empty cache inside the attachment"
            )
        return self._pass(original, kwargs, start, count)

    def _pass(self, original: Callable[..., Any], kwargs: dict[str, Any], start: int, count: int) -> Any:
        assert self.run is not None
        plan = self.run.plan(Step(self.run.layout, start, count))
        with self._host.staged(plan, start, self.run.layout.length):
            return original(**kwargs)

    def _read(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Read a prompt: fix the layout, open the sessions, run the passes that they need."""
        self.run = None
        layout = self._layout(kwargs)
        run = self.run = Run(layout, [method.start(layout) for method in self.methods.values()])
        reading_text = merge([session.read_text_edits() for session in run.sessions])
        if reading_text:
            with self._host.staged(reading_text, 0, 0), torch.no_grad():
                self._host.family.read_text(self._host.model, *layout.text_only())
        if layout.length > 1 and any(session.hold_back for session in run.sessions):
            return self._read_twice(original, kwargs)
        return self._pass(original, kwargs, 0, layout.length)

    def _read_twice(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Read a prompt whose last row needs what the whole prompt yields first.

        `generate` asks for the last row alone: all tokens but the last are read, then the last one is. A forward that
        wants more than that, or a method that must see all rows together, costs a pass of its own before, in which the
        methods that hold back edit nothing of the last row.
        """
        assert self.run is not None
        layout, length = self.run.layout, self.run.layout.length
        if bool((layout.last < length - 1).any()):
            raise LayoutError("the prompt is padded on the right, so its rows end at different places: pad on the left")
        padding = {"attention_mask": layout.valid.long()}  # the model prepares what each kind of layer and cache needs
        split = _wants_last_row(kwargs) and not self._host.family.bidirectional_prompt
        if not split or any(session.whole_prompt for session in self.run.sessions):
            plan = merge([session.edits(Step(layout, 0, length - session.hold_back)) for session in self.run.sessions])
            whole = {**padding, "use_cache": False, "past_key_values": None, "labels": None}
            with self._host.staged(plan, 0, length):
                original(**{**kwargs, **whole})
        if not split:
            return self._pass(original, kwargs, 0, length)
        first, last = _split(kwargs, length, self._host.family)
        first["attention_mask"] = padding["attention_mask"][:, :-1]
        self._pass(original, first, 0, length - 1)
        return self._pass(original, {**last, **padding}, length - 1, 1)

    def _layout(self, kwargs: dict[str, Any]) -> Layout:
        family, model = self._host.family, self._host.model
        ids = kwargs.get("input_ids")
        if ids is None:
            raise LayoutError("the prompt came as inputs_embeds, whose image tokens cannot be told: pass input_ids")
        layout = read_layout(ids, kwargs.get("attention_mask"), family.image_ids(model.config), self._query)
        pictures = [name for name in (*family.vision_inputs, ENCODED) if _given(kwargs.get(name))]
        has_image = bool(layout.image.any())
        needy = [name for name, method in self.methods.items() if method.needs_image]
        if needy and not has_image:
            raise LayoutError(
                f"method '{needy[0]}' needs an image and the prompt has no image token: add an image to the message and"
                " pass the processor's whole output, or run this prompt outside the attachment"
            )
        if has_image and not pictures:
            raise LayoutError(
                "the prompt has image tokens but no picture came with it: pass the processor's whole output to the model"
            )
        return layout


def _wants_last_row(kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward is one of `generate`: a cache to fill and nothing wanted but the last row's logits."""
    plain = kwargs.get("labels") is None and kwargs.get("return_dict") is not False
    more = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
    keep = kwargs.get("logits_to_keep")
    return plain and not more and isinstance(keep, int) and keep == 1 and kwargs.get("past_key_values") is not None


def _split(kwargs: Mapping[str, Any], length: int, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments for all but the last prompt token, with the pictures, and for the last, without them."""
    first, last = dict(kwargs), {k: v for k, v in kwargs.items() if k not in (*family.vision_inputs, ENCODED)}
    for name in POSITIONED:
        value = kwargs.get(name)
        if isinstance(value, Tensor):
            first[name], last[name] = value[..., : length - 1], value[..., length - 1 :]
    if "token_type_ids" in last:
        last["token_type_ids"] = None  # they mark pictures in the prompt's mask; a token behind a cache has none
    return first, last


def _given(value: Any) -> bool:
    """Whether an argument carries something; tensors have no truth value of their own."""
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)
