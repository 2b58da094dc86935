"""How a prompt is read and an answer decoded under a set of methods: which passes, with which plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ...common.errors import LayoutError, UnsupportedModelError
from ..branches.decoder import Decoder
from ..branches.positions import Positions
from ..core.attention import merge
from ..core.families import Family
from ..core.graph import keeping_graph
from ..core.host import ENCODED, Host
from ..core.layout import Layout, QueryFinder, Step, read_layout
from ..core.method import Method
from ..tracing.record import Record
from ..tracing.trace import Tracer
from .batch import Run

POSITIONED = ("input_ids", "position_ids", "token_type_ids", "mm_token_type_ids", "cache_position")


class Runner:
    """Runs forward passes of a host's model with the edits of `methods` and the contrast of `decoder`; keeps the `Run`

    of the prompt under way. `scoring` tells the decoder that given answers are scored. `tracer` records `generate`.
    """

    def __init__(
        self,
        host: Host,
        methods: dict[str, Method],
        decoder: Decoder | None,
        query: QueryFinder | None,
        tracer: Tracer | None = None,
    ):
        self.methods, self.decoder, self.tracer = methods, decoder, tracer
        self.run: Run | None = None
        self.scoring = False
        self._host, self._query = host, query
        self._redrawn: tuple[Tensor | None, Any] | None = None  # the prompt of `generate`, its redrawn pictures encoded
        self._called = False

    @contextmanager
    def generating(self, ids: Tensor | None, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Around `generate`. It encodes pictures before its first forward pass, so a decoder that redraws them must do

        so before, too.
        """
        redrawn = {} if self.decoder is None else self.decoder.redraw(kwargs)
        encode = getattr(self._host.model, "_prepare_multimodal_encoder_kwargs_for_generation", None)
        if redrawn and encode is not None:
            with torch.no_grad():
                self._redrawn = ids, encode({**kwargs, **redrawn})[ENCODED]
        try:
            with self._around():
                yield
        finally:
            self._redrawn = None

    def generate(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], default: Any
    ) -> Any:
        """`generate` with this attachment's tracer, if it has one; `default` is the model's generation config."""
        if self.tracer is None:
            return original(*args, **kwargs)
        try:
            return self.tracer.generate(original, args, kwargs, default)
        finally:
            if self.run is not None:
                self.run.stop_recording()

    @contextmanager
    def _around(self) -> Iterator[None]:
        """Around the outermost call: `generate`, or a forward pass that is none of its own."""
        if self._called:
            yield
            return
        self._called = True
        try:
            with ExitStack() as stack:
                for method in self.methods.values():
                    stack.enter_context(method.around())
                yield
        finally:
            self._called = False

    @property
    def active(self) -> bool:
        """Whether there is anything to do; without, the model runs plain."""
        return bool(self.methods) or self.decoder is not None or self.tracer is not None

    @property
    def _record(self) -> Record | None:
        return None if self.tracer is None else self.tracer.open

    def forward(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """One forward pass of the model with this attachment's edits and contrast."""
        if not self.methods and self.decoder is None and self._record is None:
            return original(**kwargs)
        as_tuple = False
        if self.decoder is not None:
            as_tuple = kwargs.get("return_dict") is False
            kwargs = {**kwargs, "return_dict": True}
            _check_contrast(kwargs)
        with self._around():
            output = self._forward(original, kwargs)
        return output.to_tuple() if as_tuple else output

    def _forward(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        if start == 0:
            output = self._read(original, kwargs)
            assert self.run is not None
            filled = getattr(output, "past_key_values", None) if cache is None else cache
            if filled is not None:
                self.run.follow(filled)
            return self._contrasted(output)
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        rows, count = (embeds if ids is None else ids).shape[:2]  # type: ignore[union-attr]
        if self.run is None or self.run.cache is None or self.run.cache() is not cache:
            self.run = None
            raise LayoutError(
                f"a cache with {start} tokens of {rows} rows was passed, but this attachment has not read that prompt:"
                " start from an empty cache inside the attachment"
            )
        if self._record is not None:
            self._record.check()
        self.run.check(start, rows)
        if self.run.ahead is not None:
            self._run_ahead(original, kwargs, Step(self.run.layout, start, count))
        return self._contrasted(self._pass(original, kwargs, start, count))

    def _pass(self, original: Callable[..., Any], kwargs: dict[str, Any], start: int, count: int) -> Any:
        assert self.run is not None
        run, host = self.run, self._host
        step, twin, contrast = Step(run.layout, start, count), run.twin, run.contrast
        if contrast is not None:
            contrast.begin(step, None if step.reading else kwargs.get("input_ids"))
        with host.staged(run.plan(step), start, run.layout.length):
            if twin is not None and run.ahead is None and twin.rides_in(step):
                output = twin.ride(original, kwargs, host.stage, host.decoder, step)
            elif contrast is not None and contrast.graph is not None and start + count >= run.layout.length:
                output = keeping_graph(original, kwargs, host.layers[contrast.graph])
            else:
                output = original(**kwargs)
        run.seen = start + count
        return output

    def _contrasted(self, output: Any) -> Any:
        """The output with the scores that the decoder makes of the logits.

        A branch that shares the prompt, or has one of its own, has nothing to say of the prompt's rows but the last.
        """
        assert self.run is not None
        contrast, twin, record = self.run.contrast, self.run.twin, self.run.record
        if record is not None:
            record.read(output.logits[:, -1], None if twin is None or twin.logits is None else twin.logits[:, -1])
        if contrast is None:
            return output
        logits = output.logits.float()
        if twin is None or contrast.ahead:
            output.logits = contrast.combine(logits, None)
            return output
        assert twin.logits is not None
        weak, twin.logits = twin.logits.to(logits.device).float(), None
        scores = contrast.combine(logits[:, -weak.shape[1] :], weak)
        output.logits = scores if scores.shape == logits.shape else torch.cat([logits[:, : -weak.shape[1]], scores], 1)
        return output

    def _read(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Read a prompt: fix the layout, open the sessions, run the passes that they need."""
        self.run = None
        layout = self._layout(kwargs)
        if self.decoder is not None:
            layout.require_left_padding()
        contrast = None if self.decoder is None else self.decoder.start(layout, self.scoring)
        record = self._record
        if record is not None:
            record.begin(layout)
        sessions = [method.start(layout) for method in self.methods.values()]
        run = self.run = Run(layout, sessions, contrast, record, self._host.across)
        reading_text = merge([session.read_text_edits() for session in run.sessions])
        if reading_text:
            with self._host.staged(reading_text, 0, 0), torch.no_grad():
                self._host.family.read_text(self._host.model, *layout.text_only())
        last_apart = any(s.hold_back for s in run.sessions)
        if contrast is not None and contrast.graph is not None:
            last_apart |= self._can_split(kwargs)
        read = self._read_twice if layout.length > 1 and last_apart else self._read_once
        if run.contrast is not None and run.contrast.ahead:
            run.ahead = DynamicCache(config=self._host.decoder.config)  # type: ignore[arg-type]
            self._run_ahead(original, kwargs, Step(layout, 0, layout.length))
            return read(original, kwargs)
        if run.twin is None or run.twin.branch.carries:
            return read(original, kwargs)
        with run.twin.noting_positions(self._host.decoder):
            output = read(original, kwargs)
        self._read_apart(original, kwargs)
        return output

    def _read_apart(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        """Read the prompts of the branch's own; the positions of the model's are noted."""
        assert self.run is not None
        assert self.decoder is not None
        layout, contrast, twin = self.run.layout, self.run.contrast, self.run.twin
        assert contrast is not None
        assert twin is not None
        if self.decoder.redraws and ENCODED not in kwargs:
            contrast.redrawn = self.decoder.redraw(kwargs)
        elif self.decoder.redraws:
            if self._redrawn is None:
                raise LayoutError(
                    f"{self.decoder.name} redraws pictures, but these came encoded ({ENCODED}): pass pixel_values instead"
                )
            ids, encoded = self._redrawn
            copies = layout.batch // len(layout.ids if ids is None else ids)  # beams and several answers per prompt
            if copies > 1:
                encoded = self._host.model._expand_multimodal_outputs(ids, encoded, copies)  # type: ignore[operator]
            contrast.redrawn = {ENCODED: encoded}
        with self._host.staged(merge([twin.branch.edits(Step(layout, 0, layout.length))]), 0, 0):
            twin.read(original, kwargs, self._host.decoder, self._host.model)
        contrast.redrawn = {}

    def _run_ahead(self, original: Callable[..., Any], kwargs: dict[str, Any], step: Step) -> None:
        """Run the unedited model and the branch beside it, in caches of their own, and let the contrast weigh both."""
        assert self.run is not None
        layout, contrast, twin, host = self.run.layout, self.run.contrast, self.run.twin, self._host
        assert contrast is not None
        assert twin is not None
        answered = layout.valid.new_ones(layout.batch, max(0, step.start + step.count - layout.length))
        own: dict[str, Any] = {
            "attention_mask": torch.cat([layout.valid, answered], dim=1).long(),
            "past_key_values": self.run.ahead,
            "logits_to_keep": int(step.reading),
            **{"use_cache": True, "output_hidden_states": False, "output_attentions": False},
        }
        with torch.no_grad(), host.staged({}, step.start, layout.length):
            if step.reading:
                with twin.noting_positions(host.decoder):
                    output = original(**{**kwargs, **own})
            else:
                output = twin.ride(original, {**kwargs, **own}, host.stage, host.decoder, step)
        if step.reading:
            with torch.no_grad():
                self._read_apart(original, kwargs)
        assert twin.logits is not None
        weak, twin.logits = twin.logits.float(), None
        contrast.weigh(output.logits[:, -weak.shape[1] :].float().to(weak.device), weak)

    def _read_once(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        assert self.run is not None
        return self._pass(original, kwargs, 0, self.run.layout.length)

    def _read_twice(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Read a prompt whose last row needs what the whole prompt yields first.

        `generate` asks for the last row alone: all tokens but the last are read, then the last one is. A forward that
        wants more than that, or a method that must see all rows together, costs a pass of its own before, in which the
        methods that hold back edit nothing of the last row.
        """
        assert self.run is not None
        layout, length = self.run.layout, self.run.layout.length
        layout.require_left_padding()
        padding = {"attention_mask": layout.valid.long()}  # the model prepares what each kind of layer and cache needs
        split = self._can_split(kwargs)
        if not split or any(session.whole_prompt for session in self.run.sessions):
            plans = [session.edits(Step(layout, 0, length - session.hold_back)) for session in self.run.sessions]
            if self.run.contrast is not None and self.run.contrast.ahead:
                plans.append(self.run.contrast.watch(Step(layout, 0, length)))
            whole = {**padding, "use_cache": False, "past_key_values": None, "labels": None}
            with self._host.staged(merge(plans), 0, length):
                original(**{**kwargs, **whole})
        if not split:
            return self._pass(original, kwargs, 0, length)
        first, last = _split(kwargs, length, self._host.family)
        first["attention_mask"] = padding["attention_mask"][:, :-1]
        positions = Positions(self._host.decoder)
        with positions.noted():
            self._pass(original, first, 0, length - 1)
        if last.get("position_ids") is None and positions.last.ndim > 2:
            last["position_ids"] = positions.last + 1  # Qwen lays out the whole mask's, where it is not told
        return self._pass(original, {**last, **padding}, length - 1, 1)

    def _can_split(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether the last token of a prompt can be read in a pass of its own."""
        return _wants_last_row(kwargs) and not self._host.family.bidirectional_prompt

    def _layout(self, kwargs: dict[str, Any]) -> Layout:
        family, model = self._host.family, self._host.model
        ids = kwargs.get("input_ids")
        if ids is None:
            raise LayoutError("the prompt came as inputs_embeds, whose image tokens cannot be told: pass input_ids")
        layout = read_layout(ids, kwargs.get("attention_mask"), family.image_ids(model.config), self._query)
        pictures = [name for name in (*family.vision_inputs, ENCODED) if _given(kwargs.get(name))]
        has_image = bool(layout.image.any())
        chosen = [*self.methods.values(), *([] if self.decoder is None else [self.decoder])]
        needy = [f"{one.kind} '{one.name}'" for one in chosen if one.needs_image]
        if needy and not has_image:
            raise LayoutError(
                f"{needy[0]} needs an image and the prompt has no image token: add an image to the message and"
                " pass the processor's whole output, or run this prompt outside the attachment"
            )
        if has_image and not pictures:
            raise LayoutError(
                "the prompt has image tokens but no picture came with it: pass the processor's whole output to the model"
            )
        return layout


def _check_contrast(kwargs: Mapping[str, Any]) -> None:
    """Refuse what a forward with a decoder cannot answer."""
    if kwargs.get("labels") is not None:
        raise UnsupportedModelError(
            "labels were passed, but contrasted scores are no logits to take a loss of: use sightline.score for the"
            " log-probabilities of given answers"
        )
    if isinstance(kwargs.get("logits_to_keep"), Tensor):
        raise UnsupportedModelError("logits_to_keep is a tensor, which a decoder cannot follow: pass a number of rows")


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
    embeds = kwargs.get("inputs_embeds")
    if embeds is not None:
        first["inputs_embeds"], last["inputs_embeds"] = embeds[:, : length - 1], embeds[:, length - 1 :]
    if "token_type_ids" in last:
        last["token_type_ids"] = None  # they mark pictures in the prompt's mask; a token behind a cache has none
    return first, last


def _given(value: Any) -> bool:
    """Whether an argument carries something; tensors have no truth value of their own."""
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)
