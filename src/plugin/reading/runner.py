"""The entry of every pass and every `generate` of an attached model: what is read, and by which strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from ...common.errors import ConfigError, LayoutError, UnsupportedModelError
from ..branches import thin
from ..branches.decoder import Decoder
from ..branches.fork import Fork
from ..core import compat
from ..core.compat import CACHE, ENCODED
from ..core.host import Host
from ..core.layout import Layout, QueryFinder, Step, read_layout
from ..core.method import Method
from ..core.when import AHEAD, LOOKING, When
from ..tracing.record import Record
from ..tracing.trace import Tracer
from .conversation import Conversation, check_turn
from .effects import Effects
from .gates import Gates, settled
from .looking import Looking
from .passes import given
from .prompt import Prompt
from .scout import Redraw, Scout, drawing
from .sound import Soundness
from .strategies import Apart, Contrasted, Reading, Riding


class Runner:
    """Runs passes of a host's model with the edits of `methods` and the contrast of `decoder`.

    reading: the prompt batch under way. scoring: given answers are scored, which is told to the decoder. tracer: records
    `generate`. unproven: copies ride along also on types of models that were not shown to carry one.
    """

    def __init__(
        self,
        host: Host,
        methods: dict[str, Method],
        decoder: Decoder | None,
        query: QueryFinder | None,
        tracer: Tracer | None = None,
        unproven: bool = False,
    ):
        self.methods, self.decoder, self.tracer = methods, decoder, tracer
        self.reading: Reading | None = None
        self.scoring = False
        self._host, self._query, self._unproven = host, query, unproven
        whens = [getattr(getattr(one, "settings", None), "when", None) for one in (*methods.values(), decoder)]
        self._whens: list[When | None] = whens  # the decoder's last
        self._gated = [when for when in dict.fromkeys(whens) if when is not None]
        for one, when in zip((*methods.values(), decoder), whens, strict=True):
            if one is not None and when is not None:
                settled(when, one.facts)
        if decoder is not None and whens[-1] is not None and whens[-1].by == "layer":
            raise ConfigError(
                f"the gate of '{decoder.name}' decides 'by: layer', and a decoder acts behind all layers: use 'by: now', which"
                " costs it nothing"
            )
        if host.across and any(when.signal in LOOKING for when in self._gated):
            raise UnsupportedModelError(
                f"a gate looks at the attention on the image, and '{host.model.config.model_type}' reads its image by"  # type: ignore[union-attr]
                " cross-attention, which is not looked at: use the signal entropy, probability or divergence"
            )
        #: Who draws other pictures than the prompt's, by name; and, of the `generate` under way, its prompt, and what each
        #: has drawn, encoded.
        self._drawers: dict[Any, Redraw] = {when: draw for when in self._gated if (draw := drawing(when)) is not None}
        if decoder is not None and decoder.redraws:
            self._drawers[decoder.name] = partial(decoder.redraw, decoder.settings)
        self._redrawn: dict[Any, tuple[Tensor | None, Any]] = {}
        self._call: Mapping[str, Any] = {}  # the arguments of the `generate` under way
        self._called = False
        self._sound = Soundness([*methods, *([] if decoder is None else [decoder.name])])
        self.effects = Effects(methods, decoder)

    @contextmanager
    def generating(self, ids: Tensor | None, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Around `generate`, which encodes pictures before its first pass: a decoder redraws them before that, too."""
        self._call = {**kwargs, "input_ids": ids}
        cache = compat.renamed(kwargs).get(CACHE)
        if cache is not None and self.reading is not None and self.reading.cache() is cache and self.reading.seen:
            check_turn(self._host, self._pictures(kwargs), self.reading.seen, self.reading.seen, self._reads_again)
        for name, draw in self._drawers.items():
            redrawn = draw(kwargs)
            encoded = compat.encoded_pictures(self._host.model, {**kwargs, **redrawn}) if redrawn else None
            if encoded is not None:
                self._redrawn[name] = ids, encoded
        try:
            with self._around():
                yield
        finally:
            self._redrawn, self._call = {}, {}

    def generate(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], default: Any
    ) -> Any:
        """`generate` with this attachment's tracer, if it has one; `default` is the model's generation config.

        Warns of what could do nothing for the prompt.
        """
        try:
            if self.tracer is None:
                output = original(*args, **kwargs)
            else:
                output = self.tracer.generate(original, args, kwargs, default)
            self._sound.end()
        finally:
            self._sound.forget()
            if self.reading is not None and self.tracer is not None:
                self.reading.prompt.stop_recording()
        if self.reading is not None:
            self.effects.warn(self.reading)
        return output

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
        if self.decoder is not None or self._gated:
            as_tuple = kwargs.get("return_dict") is False
            kwargs = {**kwargs, "return_dict": True}
        if self.decoder is not None:
            _check_contrast(kwargs)
        with self._around():
            output = self._forward(original, kwargs)
        reading = self.reading
        decoding = self._host.prompts and reading is not None and reading.seen > reading.layout.length
        self._sound.check(getattr(output, "logits", None), bool(decoding) and self._host.unseen)
        return output.to_tuple() if as_tuple else output

    def _forward(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get(CACHE)
        start = self._start(cache)
        if start == 0:
            self._host.opens_prompt()
            self.reading = None  # a prompt that cannot be read leaves none
            reading = self.reading = self._open(self._layout(kwargs, 0), Conversation())
            return self._read(reading, original, kwargs)
        earlier, count = self.reading, given(kwargs).shape[1]
        if earlier is None or earlier.cache() is not cache:
            self.reading = None
            raise LayoutError(
                f"a cache with {start} tokens of {len(given(kwargs))} rows was passed, but this attachment has not read that"
                " prompt: start from an empty cache inside the attachment"
            )
        if self._turns(kwargs, earlier, Step(earlier.layout, start, count)):
            check_turn(self._host, self._pictures(kwargs), start, earlier.seen, self._reads_again)
            reading = self._open(self._layout(kwargs, start, earlier.conversation), earlier.conversation)
            self.reading = None  # a turn that ends in the middle leaves none
            reading.resume(earlier)
            output = self._read(reading, original, kwargs)
            self.reading = reading
            return output
        if self._record is not None:
            self._record.check()
        output = earlier.go_on(original, kwargs, Step(earlier.layout, start, count))
        earlier.conversation.hear(kwargs)
        return output

    def _start(self, cache: Any) -> int:
        """How many tokens a cache holds. A static one counts on its device: what was read in this `generate` is known here."""
        length, reading = 0 if cache is None else cache.get_seq_length(), self.reading
        if isinstance(length, Tensor) and self._host.prompts and reading is not None and reading.cache() is cache:
            return reading.seen
        return int(length)

    def _turns(self, kwargs: Mapping[str, Any], earlier: Reading, step: Step) -> bool:
        """Whether a pass behind a filled cache reads a further turn of the conversation.

        That is the first pass of a `generate` that brings more than the last token of the answer before, or a pass with
        pictures. Other passes are of the answer.
        """
        if self._host.prompts is None:
            return bool(self._pictures(kwargs))
        if self._host.prompts:
            return False
        self._host.opens_prompt()
        earlier.conversation.check(self._call.get("input_ids"), step.start, step.count)
        return step.count > 1

    def _read(self, reading: Reading, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Read a prompt, or a turn."""
        reading.conversation.hear(kwargs)
        if self._reads_again:
            reading.conversation.see(self._pictures(self._call) or self._pictures(kwargs))
        output = reading.read(original, kwargs)
        cache = kwargs.get(CACHE)
        filled = getattr(output, CACHE, None) if cache is None else cache
        if filled is not None:
            reading.follow(filled)
        return output

    @property
    def _reads_again(self) -> bool:
        """Whether a branch, or a gate's, reads the prompt of each turn, with its pictures, from the beginning."""
        ahead = any(when.signal in AHEAD for when in self._gated)
        return ahead or (self.decoder is not None and self.decoder.own_prompt)

    def _pictures(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that carry pictures."""
        names = (*self._host.family.vision_inputs, ENCODED)
        return {name: kwargs[name] for name in names if _given(kwargs.get(name))}

    def _open(self, layout: Layout, conversation: Conversation) -> Reading:
        """Open the sessions and the contrast of a prompt, and choose how it is read."""
        if self.decoder is not None or self._gated:
            layout.require_left_padding()
        contrast = None if self.decoder is None else self.decoder.start(layout, self.scoring)
        if contrast is not None and self.decoder is not None and self.decoder.needs_image:
            seeing = layout.image.any(-1)
            contrast.contrasted = None if bool(seeing.all()) else seeing
        record = self._record
        if record is not None:
            record.begin(layout)
        sessions = [method.start(layout) for method in self.methods.values()]
        prompt = Prompt(layout, sessions, self._gates(layout, conversation), record, self._host.placed)
        if contrast is None:
            return Reading(self._host, prompt, conversation)
        if contrast.candidates:
            return Looking(self._host, prompt, conversation, contrast)
        if contrast.branch is None:
            return Contrasted(self._host, prompt, conversation, contrast)
        self._host.check_forks(contrast.branch.first if contrast.branch.carries else 0, self._unproven)
        thin.install(self._host)
        fork = Fork(contrast.branch, layout, prompt.edits, self._host.across, self._host.latent, not prompt.gates)
        if contrast.branch.carries:
            return Riding(self._host, prompt, conversation, contrast, fork)
        redraw = partial(self._redraw, None if self.decoder is None else self.decoder.name)
        return Apart(self._host, prompt, conversation, contrast, fork, redraw)

    def _gates(self, layout: Layout, conversation: Conversation) -> Gates:
        """The gates of a prompt."""
        if not self._gated:
            return Gates([None] * len(self.methods))
        facts = next(one.facts for one in (*self.methods.values(), self.decoder) if one is not None)

        def scout(when: When) -> Scout | None:
            if when.signal not in AHEAD:
                return None
            self._host.check_forks(0, self._unproven)
            thin.install(self._host)
            redraw = partial(self._redraw, when) if when in self._drawers else None
            return Scout(self._host, when, layout, conversation, redraw)

        return Gates.made(self._whens[:-1], self._whens[-1], layout, facts, scout)

    def _redraw(self, drawer: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The pictures that a drawer draws, as forward arguments; none where it draws none."""
        if drawer not in self._drawers:
            return {}
        if ENCODED not in kwargs:
            return self._drawers[drawer](kwargs)
        if drawer not in self._redrawn:
            name = f"the gate on {drawer.signal}" if isinstance(drawer, When) else drawer
            raise LayoutError(f"{name} redraws pictures, but these came encoded ({ENCODED}): pass pixel_values instead")
        ids, pictures = self._redrawn[drawer]
        batch = len(kwargs["input_ids"])
        copies = batch // (batch if ids is None else len(ids))  # beams and several answers per prompt
        return {ENCODED: compat.repeated_pictures(self._host.model, ids, pictures, copies)}

    def _layout(self, kwargs: Mapping[str, Any], start: int, conversation: Conversation | None = None) -> Layout:
        """The layout of a prompt, or of a conversation whose first `start` tokens were read in earlier turns."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None:
            raise LayoutError("the prompt came as inputs_embeds, whose image tokens cannot be told: pass input_ids")
        if conversation is not None:
            ids, asked = conversation.with_turn(ids, start), self._call.get("attention_mask")
            mask = asked if isinstance(asked, Tensor) and asked.shape == ids.shape else mask
        layout = read_layout(ids, mask, self._host.family.image_ids(self._host.model.config), self._query, start)
        has_image, new = bool(layout.image.any()), bool(layout.image[:, start:].any())
        pictures = self._pictures(kwargs)
        chosen = [*self.methods.values(), *([] if self.decoder is None else [self.decoder])]
        needy = [f"{one.kind} '{one.name}'" for one in chosen if one.needs_image]
        needy += [f"the gate on {when.signal}" for when in self._gated if when.signal in (*AHEAD, *LOOKING)]
        if needy and not has_image:
            raise LayoutError(
                f"{needy[0]} needs an image and the prompt has no image token: add an image to the message and"
                " pass the processor's whole output, or run this prompt outside the attachment"
            )
        told = self._host.family.generator(self._host.model) is not self._host.model  # each call tells all pictures
        if start and pictures and not new and not told:
            raise LayoutError(
                "pictures came with a turn that has no image token: those of earlier turns are in the cache, pass only the"
                " pictures of this turn"
            )
        if new and not pictures:
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
