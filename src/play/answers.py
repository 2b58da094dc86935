"""What `sightline play` computes: answers that grow word by word, which words are weakly grounded, where the model looked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from transformers import TextStreamer

from ..benchmarks.demo import LABELS
from ..benchmarks.public.captions import PROMPT, ChairBenchmark
from ..benchmarks.public.scenes import SPLIT
from ..benchmarks.report import page as report
from ..benchmarks.runner.evaluate import merge
from ..benchmarks.runner.plan import plans
from ..benchmarks.runner.run import run
from ..common.chat import text_tokenizer
from ..common.errors import SightlineError
from ..common.files import images_hash, model_hash
from ..models.prompting import batch_inputs
from ..models.samples import Sample
from ..plugin.attach import Plug, attach
from ..plugin.config import Config
from ..plugin.explain import heated, rule
from ..plugin.support import support
from ..plugin.tracing.grid import grid

if TYPE_CHECKING:
    from PIL import Image

SCENES = 12
"""Scenes to choose from."""
TRIED = 10
"""Scenes of the button that measures."""


@dataclass(frozen=True)
class Word:
    """A content word: its characters in the answer's text, whether it is weakly grounded, and where the model looked."""

    start: int
    end: int
    weak: bool
    tip: str
    heat: Image.Image | None = None


@dataclass(frozen=True)
class Answer:
    """An answer under way, or whole: then with its words, the rule that marks them, and why there is no heat."""

    text: str
    words: tuple[Word, ...] = ()
    rule: str = ""
    note: str = ""
    seconds: float | None = None


class Player:
    """A model that is asked, one question at a time, whoever asks."""

    def __init__(self, model: Any, processor: Any, name: str):
        self.model, self.processor, self.name = model, processor, name
        self._lock = Lock()

    @property
    def scenes(self) -> list[Image.Image]:
        """Pictures to choose from: the testbed's test scenes."""
        from .. import testbed

        return [scene.image for scene in testbed.scenes(SPLIT, SCENES)]

    @property
    def question(self) -> str:
        return PROMPT

    @property
    def usable(self) -> list[str]:
        """Methods, then decoders, whose defaults run on this model."""
        found = support(self.model, processor=self.processor).uses
        return [use.name for use in sorted(found, key=lambda use: use.kind != "method") if use.works]

    def answer(
        self, question: str, picture: Image.Image | None, config: Config | None, *, new_tokens: int = 128
    ) -> Iterator[Answer]:
        """The greedy answer as it grows, and once more with its words. Raises SightlineError.

        It is made in a thread of its own, which lets go of the model whether or not anybody still listens.
        """
        made: SimpleQueue[Answer | BaseException | None] = SimpleQueue()

        def work() -> None:
            try:
                with self._lock:
                    made.put(self._answered(question, picture, config or Config(), new_tokens, made))
            except BaseException as error:
                made.put(error)
            made.put(None)

        Thread(target=work, daemon=True).start()
        while (one := made.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one

    def _answered(
        self, question: str, picture: Image.Image | None, config: Config, new_tokens: int, made: SimpleQueue[Any]
    ) -> Answer:
        if not question.strip():
            raise SightlineError("there is no question: write one")
        if picture is None and config.needs_image:
            raise SightlineError("this configuration works on a picture, and there is none: choose one")
        inputs = batch_inputs(self.model, self.processor, [Sample("", question, picture)])
        start = time.perf_counter()
        trace = {"maps": True} if picture is not None else False
        with attach(self.model, config, processor=self.processor, trace=trace) as plug:
            streamer = _Growing(text_tokenizer(self.processor), made)
            self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, streamer=streamer)
            seconds = time.perf_counter() - start
            if picture is None:
                return Answer(streamer.said.strip(), seconds=seconds)
            return self._explained(plug, inputs, picture, seconds)

    def _explained(self, plug: Plug, inputs: Mapping[str, Any], picture: Image.Image, seconds: float) -> Answer:
        maps, note = plug.image_maps[0].numpy(), ""
        try:
            cells = grid(self.processor, inputs, 0, maps.shape[1], picture.size)
        except SightlineError as error:
            cells, note = None, str(error)
        words = []
        for word in plug.words:
            heat = None if cells is None else heated(picture, maps[word["position"] : word["last"] + 1].mean(0), cells)
            tip = f"attention on the image {word['image']:.2f}, probability {word['probability']:.2f}"
            words.append(Word(word["start"], word["end"], word["weak"], tip, heat))
        return Answer(plug.texts[0], tuple(words), rule(plug), note, seconds)

    def measured(self, configs: Mapping[str, Config]) -> str:
        """A report page of captions of ten scenes, plain and under the configurations. Raises SightlineError."""
        from .. import testbed

        if self.name not in LABELS:
            raise SightlineError(f"the scenes were made for {' and '.join(LABELS)}: measure yours with sightline eval")
        if not configs:
            raise SightlineError("there is no configuration to compare with plain: choose a method")
        shown = list(testbed.scenes(SPLIT, TRIED))
        captions = ChairBenchmark.of_scenes(shown, PROMPT)
        hashes = {"model": model_hash(self.model), "data": images_hash(scene.image for scene in shown)}
        with self._lock, TemporaryDirectory() as folder:
            runs = run(
                self.model,
                self.processor,
                [captions],
                plans(configs, self.model, self.processor),
                batch={"chair": TRIED},
            )
            out = Path(folder) / f"{TRIED} scenes"
            merge(captions, runs, out, hashes, captions.notes, settings={"seed": 0})
            report.write([out], out)
            return (out / report.PAGE).read_text("utf-8")


class _Growing(TextStreamer):
    """Hands on the answer each time a word is added."""

    def __init__(self, tokenizer: Any, made: SimpleQueue[Any]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.said, self.made = "", made

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.said += text
        self.made.put(Answer(self.said.strip()))
