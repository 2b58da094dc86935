"""The entry of every pass and every `generate` of an attached model: what is read, and by which strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ...common.errors import LayoutError, UnsupportedModelError
from ..branches import thin
from ..branches.decoder import Contrast, Decoder
from ..branches.fork import Fork
from ..core import compat
from ..core.compat import CACHE, ENCODED
from ..core.host import Host
from ..core.layout import Layout, QueryFinder, Step, read_layout
from ..core.method import Method
from ..tracing.record import Record
from ..tracing.trace import Tracer
from .prompt import Prompt
from .strategies import Ahead, Apart, Contrasted, Reading, Riding


class Runner:
    """Runs passes of a host's model with the edits of `methods` and the contrast of `decoder`.

    reading: the prompt batch under way. scoring: given answers are scored, which is told to the decoder. tracer: records
    `generate`.
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
        self.reading: Reading | None = None
        self.scoring = False
        self._host, self._query = host, query
        self._redrawn: tuple[Tensor | None, Any] | None = None  # the prompt of `generate`, its redrawn pictures encoded
        self._called = False

    @contextmanager
    def generating(self, ids: Tensor | None, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Around `generate`, which encodes pictures before its first pass: a decoder redraws them before that, too."""
        redrawn = {} if self.decoder is None else self.decoder.redraw(kwargs)
        if redrawn:
            encoded = compat.encoded_pictures(self._host.model, {**kwargs, **redrawn})
            self._redrawn = None if encoded is None else (ids, encoded)
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
            if self.reading is not None:
                self.reading.prompt.stop_recording()

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
        cache = kwargs.get(CACHE)
        start = 0 if cache is None else int(cache.get_seq_length())
        if start == 0:
            self.reading = None  # a prompt that cannot be read leaves none
            reading = self._open(kwargs)
            self.reading = reading
            output = reading.read(original, kwargs)
            filled = getattr(output, CACHE, None) if cache is None else cache
            if filled is not None:
                reading.follow(filled)
            return output
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        rows, count = (embeds if ids is None else ids).shape[:2]  # type: ignore[union-attr]
        if self.reading is None or self.reading.cache() is not cache:
            self.reading = None
            raise LayoutError(
                f"a cache with {start} tokens of {rows} rows was passed, but this attachment has not read that prompt:"
                " start from an empty cache inside the attachment"
            )
        if self._record is not None:
            self._record.check()
        return self.reading.go_on(original, kwargs, Step(self.reading.layout, start, count))

    def _open(self, kwargs: dict[str, Any]) -> Reading:
        """Fix the layout of a prompt, open the sessions, and choose how it is read."""
        layout = self._layout(kwargs)
        if self.decoder is not None:
            layout.require_left_padding()
        contrast = None if self.decoder is None else self.decoder.start(layout, self.scoring)
        record = self._record
        if record is not None:
            record.begin(layout)
        prompt = Prompt(layout, [method.start(layout) for method in self.methods.values()], record)
        return Reading(self._host, prompt) if contrast is None else self._contrasted(prompt, contrast)

    def _contrasted(self, prompt: Prompt, contrast: Contrast) -> Contrasted:
        """How a prompt is read under a decoder."""
        if contrast.branch is None:
            return Contrasted(self._host, prompt, contrast)
        thin.install(self._host)
        fork = Fork(contrast.branch, prompt.layout, prompt.edits, self._host.across)
        if contrast.ahead:
            return Ahead(self._host, prompt, contrast, fork, self._redraw)
        if contrast.branch.carries:
            return Riding(self._host, prompt, contrast, fork)
        return Apart(self._host, prompt, contrast, fork, self._redraw)

    def _redraw(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The pictures that the decoder redraws, as forward arguments; none where it draws none."""
        decoder, encoded = self.decoder, self._redrawn
        if decoder is None or not decoder.redraws:
            return {}
        if ENCODED not in kwargs:
            return decoder.redraw(kwargs)
        if encoded is None:
            raise LayoutError(
                f"{decoder.name} redraws pictures, but these came encoded ({ENCODED}): pass pixel_values instead"
            )
        ids, pictures = encoded
        batch = len(kwargs["input_ids"])
        copies = batch // (batch if ids is None else len(ids))  # beams and several answers per prompt
        return {ENCODED: compat.repeated_pictures(self._host.model, ids, pictures, copies)}

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


def _given(value: Any) -> bool:
    """Whether an argument carries something; tensors have no truth value of their own."""
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)
