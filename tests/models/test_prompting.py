"""One place renders a chat: the start token once, and templates of every kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
import transformers as tf
from sightline.benchmarks.speed import shapes
from sightline.cli import generate
from sightline.common import chat
from sightline.common.errors import UnsupportedModelError
from sightline.models import prompting
from sightline.models.samples import Sample
from sightline.plugin.core.layout import TurnFinder

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n{% endif %}"
)
STRINGS = "{% for m in messages %}{{ '<u>' + m['content'] + '</u>' }}{% endfor %}<a>"
PARTS = (
    "{% for m in messages %}<{{ m['role'][0] }}>{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% elif p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}<a>"
)
DEAF = "{% for m in messages %}<u>{% endfor %}<a>"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + STRINGS
WORDS = ["<unk>", "<s>", "<pad>", "<image>", "<u>", "</u>", "<a>", "<|h|>", "<|/h|>", "<|eot|>"]


def tokenizer(template: str | None, *, adds: bool = True, spoken: str = "Is it red ? user assistant") -> Any:
    """A tokenizer of whole words; one that `adds` puts a start token in front of every text."""
    words = {word: number for number, word in enumerate([*WORDS, *spoken.split()])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if adds:
        core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        pad_token="<pad>",
        additional_special_tokens=WORDS[3:],
    )
    made.chat_template = template
    return made


MODEL = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("template", [LLAMA3, STRINGS, PARTS])
def test_every_way_to_a_prompt_starts_once(template: str, adds: bool) -> None:
    reader = tokenizer(template, adds=adds)
    ids = prompting.batch_inputs(MODEL, reader, [Sample("1", "Is it red ?")])["input_ids"][0].tolist()
    assert ids.count(1) == int(adds or template is LLAMA3)
    assert ids[0] == 1 or not (adds or template is LLAMA3)
    assert prompting.encode(reader, prompting.cloze(reader, "Is it red ?")) == ids
    raw = prompting.batch_inputs(MODEL, reader, [Sample("1", prompting.turn(reader, "Is it red ?"), raw=True)])
    assert raw["input_ids"][0].tolist() == ids


def test_a_batch_may_mix_prompts_with_and_without_a_start() -> None:
    samples = [Sample("1", "<s>Is it ?", raw=True), Sample("2", "Is it ?", raw=True)]
    ids = prompting.batch_inputs(MODEL, tokenizer(None), samples)["input_ids"].tolist()
    assert ids[0] == ids[1]
    bare = prompting.batch_inputs(MODEL, tokenizer(None, adds=False), samples)["input_ids"].tolist()
    assert [row.count(1) for row in bare] == [1, 0]


def test_the_answer_follows_its_prompt() -> None:
    reader = tokenizer(LLAMA3)
    prompt, answer = prompting.encode_answer(reader, prompting.cloze(reader, "Is it ?", "It"), "red")
    assert prompt.count(1) == 1
    assert answer == [reader.convert_tokens_to_ids("red")]


class Seeing:
    """A processor around a tokenizer: pictures are tokens `<image>`."""

    image_processor, image_token = object(), "<image>"

    def __init__(self, template: str):
        self.tokenizer, self.chat_template = tokenizer(template), template

    def apply_chat_template(self, turns: list[dict[str, Any]], **how: Any) -> str:
        return str(self.tokenizer.apply_chat_template(turns, **how))


def test_templates_take_parts_or_texts() -> None:
    assert prompting.turn(Seeing(PARTS), "Is it red ?", 2) == "<u><image><image>Is it red ?<a>"
    assert prompting.turn(Seeing(STRINGS), "Is it red ?", 1) == "<u><image>\nIs it red ?</u><a>"
    shown = "<|h|>user<|/h|>\n<image>\nIs it red ?<|eot|><|h|>assistant<|/h|>\n"
    assert prompting.turn(Seeing(LLAMA3), "Is it red ?", 1) == f"<s>{shown}"  # it would print the parts as they are
    assert prompting.turn(tokenizer(STRINGS), "Is it red ?") == "<u>Is it red ?</u><a>"
    assert prompting.turn(tokenizer(PARTS), "Is it red ?") == "<u>Is it red ?<a>"


def test_a_conversation_keeps_its_turns() -> None:
    turns = [chat.user("Is it ?", 1), {"role": "assistant", "content": "red"}, chat.user("red ?")]
    assert chat.render(Seeing(PARTS), turns) == "<u><image>Is it ?<a>red<u>red ?<a>"
    assert chat.render(Seeing(STRINGS), turns) == "<u><image>\nIs it ?</u><u>red</u><u>red ?</u><a>"
    assert chat.render(SimpleNamespace(), turns) == "<image>\nIs it ?\nred\nred ?"


@pytest.mark.parametrize(("template", "says"), [(DEAF, "leaves out what the user says"), (NO_SYSTEM, "no system turn")])
def test_a_template_that_cannot_is_refused(template: str, says: str) -> None:
    turns = [{"role": "system", "content": "Is it ?"}, chat.user("red ?")]
    with pytest.raises(UnsupportedModelError, match=says):
        chat.render(tokenizer(template), turns)


@pytest.mark.parametrize("template", [PARTS, STRINGS, LLAMA3])
def test_the_question_is_found_under_every_kind_of_template(template: str) -> None:
    processor = Seeing(template)
    ids = processor.tokenizer(prompting.turn(processor, "Is it red ?", 1), add_special_tokens=False)["input_ids"]
    found = TurnFinder(processor, frozenset({3}))(torch.tensor([ids]))[0]
    assert processor.tokenizer.decode([token for token, kept in zip(ids, found, strict=True) if kept]) == "Is it red ?"


def test_bench_and_generate_start_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They had a rendering of their own, which doubled the start token."""

    class Processor(Seeing):
        def __call__(self, text: list[str], images: Any, **how: Any) -> Any:
            return tf.BatchFeature(self.tokenizer(text, **how).data)

    class Model(SimpleNamespace):
        def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            shown.append(input_ids)
            return input_ids

    shown: list[torch.Tensor] = []
    model, processor = Model(**vars(MODEL)), Processor(LLAMA3)
    processor.batch_decode = processor.tokenizer.batch_decode  # type: ignore[attr-defined]
    for module in (shapes, generate):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: (model, processor))
    monkeypatch.setattr(shapes, "_facts", lambda *_: {})
    monkeypatch.setattr(generate, "open_image", lambda _: object())
    bench = shapes.build("some/where", batch=2)
    generate.reply("some/where", "Is it red ?", Path("a.png"), None)
    rows = [*bench.inputs["input_ids"].tolist(), *shown[0].tolist()]
    assert [row.count(1) for row in rows] == [1, 1, 1]
