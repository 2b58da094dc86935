"""Where image, question and padding lie: masks on ids made by hand, and chat templates on a real tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers as tk
import torch
import transformers as tf
from sightline import LayoutError, attach
from sightline.plugin.core.layout import Layout, Step, TurnFinder, read_layout
from sightline.plugin.tracing.words import content_words

from tests.helpers.engine import calibration, entry, generate, prompts, shared

IMG, VID = 90, 91  # an image and a video token
IMAGES = frozenset({IMG, VID})


def tensor(rows: list[list[int]]) -> torch.Tensor:
    """Rows of ids or of marks."""
    return torch.tensor(rows)


def marks(mask: torch.Tensor) -> list[list[int]]:
    """A mask as lists of 0 and 1."""
    return mask.int().tolist()


def layout(ids: list[list[int]], mask: list[list[int]] | None = None, **options: Any) -> Layout:
    """`read_layout` of lists."""
    given = None if mask is None else tensor(mask)
    return read_layout(tensor(ids), given, IMAGES, options.get("query"))


# --- masks -----------------------------------------------------------------------------------------------------------


def test_one_image() -> None:
    found = layout([[1, 5, IMG, IMG, 6, 7, 8]])
    assert marks(found.valid) == [[1, 1, 1, 1, 1, 1, 1]]
    assert marks(found.image) == [[0, 0, 1, 1, 0, 0, 0]]
    assert marks(found.after_image) == [[0, 0, 0, 0, 1, 1, 1]]
    assert marks(found.query) == [[0, 0, 0, 0, 1, 1, 0]]  # the last token begins to answer
    assert found.last.tolist() == [6]
    assert (found.batch, found.length) == (1, 7)


def test_several_images_and_videos() -> None:
    """Text between images is neither behind them nor question."""
    found = layout([[1, IMG, IMG, 5, VID, VID, 6, IMG, 7, 8, 9]])
    assert marks(found.image) == [[0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 0]]
    assert marks(found.after_image) == [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert marks(found.query) == [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]


def test_left_padding() -> None:
    found = layout([[0, 0, IMG, 5, 6, 7], [1, IMG, IMG, IMG, 5, 6]], [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert marks(found.valid) == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert marks(found.after_image) == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert marks(found.query) == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]]
    assert found.last.tolist() == [5, 5]


def test_right_padding() -> None:
    found = layout([[IMG, 5, 6, 0, 0], [IMG, IMG, 5, 6, 7]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert marks(found.after_image) == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert marks(found.query) == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
    assert found.last.tolist() == [2, 4]


def test_padding_with_an_image_token_is_no_image() -> None:
    found = layout([[IMG, IMG, 5, IMG, 6, 7]], [[0, 0, 1, 1, 1, 1]])
    assert marks(found.image) == [[0, 0, 0, 1, 0, 0]]


def test_a_row_without_image() -> None:
    """Nothing is behind its image, and its whole text is the question."""
    found = layout([[1, 5, 6, 7], [1, IMG, 6, 7]])
    assert marks(found.image) == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert marks(found.after_image) == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert marks(found.query) == [[1, 1, 1, 0], [0, 0, 1, 0]]


def test_an_image_at_the_end() -> None:
    found = layout([[1, 5, IMG, IMG]])
    assert marks(found.after_image) == [[0, 0, 0, 0]]
    assert marks(found.query) == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("ids", "mask", "text", "kept"),
    [
        ([[1, 5, IMG, IMG, 6, 7]], None, [[1, 5, 6, 7]], [[1, 1, 1, 1]]),
        ([[1, IMG, 5, VID, IMG, 6]], None, [[1, 5, 6]], [[1, 1, 1]]),
        ([[0, 0, 1, IMG, 5, 6]], [[0, 0, 1, 1, 1, 1]], [[1, 5, 6]], [[1, 1, 1]]),
        ([[1, IMG, 5, 6, 0, 0]], [[1, 1, 1, 1, 0, 0]], [[1, 5, 6]], [[1, 1, 1]]),
        (
            [[1, IMG, IMG, IMG, 5, 6], [0, 1, IMG, 7, 8, 9]],
            [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
            [[None, 1, 5, 6], [1, 7, 8, 9]],
            [[0, 1, 1, 1], [1, 1, 1, 1]],
        ),
        (
            [[1, IMG, 5, 0, 0], [1, 2, 3, 4, 5]],
            [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
            [[None, None, None, 1, 5], [1, 2, 3, 4, 5]],
            [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]],
        ),
    ],
    ids=["one", "several", "left", "right", "batch", "right and without image"],
)
def test_text_only_packs_to_the_right(
    ids: list[list[int]], mask: list[list[int]] | None, text: list[list[int | None]], kept: list[list[int]]
) -> None:
    packed, attention = layout(ids, mask).text_only()
    assert attention.tolist() == kept
    assert attention.dtype == torch.long
    for row, expected in zip(packed.tolist(), text, strict=True):
        assert [t for t, e in zip(row, expected, strict=True) if e is not None] == [
            e for e in expected if e is not None
        ]


def test_query_function_is_cut_to_what_can_be_a_question() -> None:
    """Never padding, an image token or the last token, whatever the function says; and it sees the ids as they are."""
    seen: list[torch.Tensor] = []

    def everything(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return torch.ones_like(ids)

    found = layout([[0, 1, IMG, 5, 6]], [[0, 1, 1, 1, 1]], query=everything)
    assert marks(found.query) == [[0, 1, 0, 1, 0]]
    assert seen[0].tolist() == [[0, 1, IMG, 5, 6]]


def test_query_function_wins_over_the_default() -> None:
    found = layout([[1, 5, IMG, 6, 7]], query=lambda ids: ids == 5)
    assert marks(found.query) == [[0, 1, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (4,)], ids=str)
def test_no_prompt(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="empty"):
        read_layout(torch.zeros(shape, dtype=torch.long), None, IMAGES, None)


# --- attention masks in the forms that transformers passes ------------------------------------------------------------

VALID = tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
IDS = tensor([[0, 0, IMG, 5], [1, IMG, 5, 6]])


def _prepared(keys: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """A causal mask [B, 1, 4, keys] for a cache with room for `keys`, as sdpa or eager attention takes it."""
    room = torch.nn.functional.pad(VALID, (0, keys - 4))
    visible = torch.ones(4, keys, dtype=torch.bool).tril()[None, None] & room[:, None, None]
    if dtype == torch.bool:
        return visible
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


FORMS: dict[str, Callable[[], Any]] = {
    "bool": lambda: VALID,
    "long": VALID.long,
    "float": VALID.float,
    "4-D": lambda: _prepared(4),
    "4-D of a static cache": lambda: _prepared(9),
    "4-D additive": lambda: _prepared(4, torch.float32),
    "4-D additive, half": lambda: _prepared(9, torch.float16),
    "dict": lambda: {"full_attention": _prepared(6), "sliding_attention": _prepared(6)},
    "dict with a layer kind that needs none": lambda: {"full_attention": None, "sliding_attention": _prepared(6)},
    "dict of 2-D": lambda: {"full_attention": VALID},
}


@pytest.mark.parametrize("form", list(FORMS))
def test_forms_of_the_attention_mask(form: str) -> None:
    assert torch.equal(read_layout(IDS, FORMS[form](), IMAGES, None).valid, VALID)


@pytest.mark.parametrize("mask", [None, {}, {"full_attention": None}], ids=str)
def test_without_a_mask_everything_counts(mask: Any) -> None:
    assert read_layout(IDS, mask, IMAGES, None).valid.all()


@pytest.mark.parametrize(
    "mask",
    [
        VALID[:, 1:],
        VALID[:1],
        VALID[0],
        torch.nn.functional.pad(VALID, (0, 1)),
        _prepared(4)[:, :, :3],
        _prepared(4)[:1],
    ],
    ids=["shorter", "fewer rows", "1-D", "longer", "4-D shorter", "4-D fewer rows"],
)
def test_masks_that_do_not_fit(mask: torch.Tensor) -> None:
    with pytest.raises(LayoutError, match=r"attention_mask has shape .* pass the processor's mask"):
        read_layout(IDS, mask, IMAGES, None)


@pytest.mark.parametrize("family", ["llava", "gemma3", "mistral_sliding"])
@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_masks_of_real_models_give_the_padding(family: str, how: dict[str, Any]) -> None:
    """What the models' own generation passes is read as the 2-D mask that the user gave."""
    case = shared(family)
    inputs = prompts(case, "padded")
    seen: list[Any] = []
    forward = case.model.forward

    @functools.wraps(forward)
    def spy(**kwargs: Any) -> Any:
        seen.append(kwargs["attention_mask"])
        return forward(**kwargs)

    case.model.forward = spy
    try:
        with torch.no_grad():
            generate(case.model, inputs, disable_compile=True, **how)
    finally:
        del case.model.forward
    assert torch.equal(read_layout(inputs["input_ids"], seen[0], IMAGES, None).valid, inputs["attention_mask"].bool())


# --- rows of a pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [
        (0, 6, (3, 5, [[1, 0], [1, 1]])),
        (0, 4, (3, 4, [[1], [1]])),
        (4, 2, (0, 1, [[0], [1]])),
        (3, 1, (0, 1, [[1], [1]])),
        (5, 1, None),
        (0, 3, None),
        (6, 1, None),
        (2, 9, (1, 3, [[1, 0], [1, 1]])),
    ],
)
def test_rows_of_a_pass(start: int, count: int, expected: tuple[int, int, list[list[int]]] | None) -> None:
    """Prompt rows cut to a pass, in the pass's own numbering."""
    found = layout([[1, IMG, IMG, 5, 6, 7], [1, IMG, IMG, 5, 6, 7]])
    wanted = tensor([[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    rows = Step(found, start, count).rows(wanted)
    if expected is None:
        assert rows is None
    else:
        assert rows is not None
        assert (rows.start, rows.stop, marks(rows.active)) == expected


@pytest.mark.parametrize(("start", "reading"), [(0, True), (3, True), (4, False), (9, False)])
def test_a_pass_reads_while_it_holds_prompt_rows(start: int, reading: bool) -> None:
    assert Step(layout([[1, IMG, 5, 6]]), start, 1).reading is reading


# --- chat templates --------------------------------------------------------------------------------------------------

CORPUS = [
    "What is in the picture? Name two things that you see, and where they are.",
    "Is there a dog on the left? How many cats sit behind the red chair?",
    "A dog and two cats. The chair is red; the picture shows a kitchen with a window.",
    "You are a helpful assistant. Describe the image in detail, please.",
    "USER: ASSISTANT: system user assistant model\n",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<turn>", "</turn>", "[INST]", "[/INST]"]
SPECIAL += ["user", "model"]  # one token each, as in the vocabularies of the real models

_CONTENT = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
)
_IMAGES_FIRST = (
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content if c.type == 'image' %}IMAGE{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endif %}"
)
#: What real templates look like: LLaVA-1.5 (images first, no special tokens), ChatML (Qwen; a system prompt of its own),
#: Gemma 3 (a start token that only the first turn has), Mistral (no opening of the answer).
TEMPLATES = {
    "llava": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}USER: "
        + _IMAGES_FIRST.replace("IMAGE", "<image>\n")
        + "{% else %} ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    ),
    "chatml": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + _CONTENT.replace("IMAGE", "<image>") + "<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma": (
        "<s>{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        + _CONTENT.replace("IMAGE", "<image>")
        + "</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}</s>{% else %}[INST]"
        + _CONTENT.replace("IMAGE", "<image>\n")
        + "[/INST]{% endif %}{% endfor %}"
    ),
}
ORDERED = ["chatml", "gemma", "mistral"]  # the image stays where the user put it


@functools.cache
def _trained(kind: str) -> tk.Tokenizer:
    """A byte-level BPE, or one word per token."""
    if kind == "bytes":
        tokenizer = tk.Tokenizer(tk.models.BPE())
        tokenizer.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tk.decoders.ByteLevel()
        trainer = tk.trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=SPECIAL,
            initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:  # SentencePiece-like: the space belongs to the word after it, letters that it does not know are kept
        tokenizer = tk.Tokenizer(tk.models.BPE(byte_fallback=True))
        tokenizer.normalizer = tk.normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = tk.pre_tokenizers.Split(tk.Regex("▁|\n"), "merged_with_next")
        tokenizer.decoder = tk.decoders.Sequence(
            [tk.decoders.Replace("▁", " "), tk.decoders.ByteFallback(), tk.decoders.Fuse()]
        )
        trainer = tk.trainers.BpeTrainer(
            vocab_size=700, special_tokens=[*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


class Processor:
    """As much of a processor as the finder uses: a tokenizer and a chat template."""

    def __init__(self, template: str, kind: str = "bytes"):
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        self.tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=_trained(kind), **special)
        self.tokenizer.chat_template = self.chat_template = TEMPLATES[template]
        self.image = self.tokenizer.convert_tokens_to_ids("<image>")

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """The rendered text."""
        return self.tokenizer.apply_chat_template(messages, **options)

    def prompt(self, messages: list[dict[str, Any]], tokens_per_image: int = 3) -> list[int]:
        """The ids of a prompt, every image in its tokens."""
        text = self.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        text = text.replace("<image>", "<image>" * tokens_per_image)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def asked(self, *prompts: list[dict[str, Any]], images: bool = True) -> list[str]:
        """The text that the finder marks, by prompt; the prompts run as one left-padded batch."""
        rows = [self.prompt(messages) for messages in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self.tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        image_ids = frozenset({self.image}) if images else frozenset()
        found = read_layout(ids, mask, image_ids, TurnFinder(self, image_ids))
        return [str(self.tokenizer.decode(ids[i, found.query[i]])).strip() for i in range(len(rows))]


def user(question: str, images: int = 1, *, last: bool = False) -> dict[str, Any]:
    """A user's turn with its images before or after the question."""
    pictures = [{"type": "image"}] * images
    text = [{"type": "text", "text": question}]
    return {"role": "user", "content": [*text, *pictures] if last else [*pictures, *text]}


def model(answer: str) -> dict[str, Any]:
    """The model's turn."""
    return {"role": "assistant", "content": answer}


Q1, Q2, Q3 = "What is in the picture?", "How many cats sit behind the red chair?", "Is it a zebra, or an émigré?"
SYSTEM = {"role": "system", "content": "You see well."}
every_template = pytest.mark.parametrize("template", list(TEMPLATES))
every_tokenizer = pytest.mark.parametrize("kind", ["bytes", "pieces"])


@every_template
@every_tokenizer
@pytest.mark.parametrize("question", [Q1, Q2, Q3])
def test_turn_with_an_image(template: str, kind: str, question: str) -> None:
    assert Processor(template, kind).asked([user(question)]) == [question]


@every_template
def test_turns_of_a_padded_batch(template: str) -> None:
    assert Processor(template).asked([user(Q1)], [user(Q2)], [user(Q3, images=2)]) == [Q1, Q2, Q3]


@every_template
def test_several_images_in_a_turn(template: str) -> None:
    assert Processor(template).asked([user(Q1, images=3)]) == [Q1]


@pytest.mark.parametrize("template", ORDERED)
def test_question_before_the_image(template: str) -> None:
    assert Processor(template).asked([user(Q2, last=True)]) == [Q2]


@pytest.mark.parametrize("template", ["llava", "chatml", "gemma", "mistral"])
def test_images_between_words(template: str) -> None:
    """The words behind the last image are asked; those before it may be."""
    parts = [{"type": "text", "text": "Compare"}, {"type": "image"}, {"type": "text", "text": "with"}]
    parts += [{"type": "image"}, {"type": "text", "text": Q1}]
    (asked,) = Processor(template).asked([{"role": "user", "content": parts}])
    assert asked.endswith(Q1)
    assert "USER" not in asked
    assert "user" not in asked


@pytest.mark.parametrize("template", ["llava", "chatml"])
def test_system_prompt(template: str) -> None:
    """Another system prompt than the template's own is not taken for the question."""
    assert Processor(template).asked([SYSTEM, user(Q1)]) == [Q1]


@every_template
@every_tokenizer
@pytest.mark.parametrize("turns", [2, 3])
def test_the_last_of_several_turns(template: str, kind: str, turns: int) -> None:
    """The picture came with the first question; answers and earlier questions are not asked again."""
    later = [message for q in (Q2, Q3)[: turns - 1] for message in (model("A dog and two cats."), user(q, images=0))]
    assert Processor(template, kind).asked([user(Q1), *later]) == [(Q1, Q2, Q3)[turns - 1]]


@every_template
def test_a_new_image_in_a_later_turn(template: str) -> None:
    assert Processor(template).asked([user(Q1), model("A kitchen."), user(Q2)]) == [Q2]


@pytest.mark.parametrize("template", ORDERED)
@pytest.mark.parametrize("turns", [1, 2])
def test_text_only(template: str, turns: int) -> None:
    """A text model's template gets plain strings."""
    messages = [{"role": "user", "content": Q1}, model("Two."), {"role": "user", "content": Q2}][: 2 * turns - 1]
    assert Processor(template).asked(messages, images=False) == [(Q1, Q2)[turns - 1]]


@every_template
def test_a_prompt_without_image_for_a_model_with_images(template: str) -> None:
    assert Processor(template).asked([{"role": "user", "content": Q1}]) == [Q1]


def test_a_prompt_that_no_template_made() -> None:
    """Everything behind the image is asked, as without a processor."""
    processor = Processor("chatml")
    text = "look <image><image> " + Q1 + " Answer"
    ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
    finder = TurnFinder(processor, frozenset({processor.image}))
    found = read_layout(ids, None, frozenset({processor.image}), finder)
    assert str(processor.tokenizer.decode(ids[0, found.query[0]])).strip() in (Q1 + " Answer")
    assert Q1 in processor.tokenizer.decode(ids[0, found.query[0]])


def test_a_question_that_quotes_the_template() -> None:
    """Tokens that only look like an opening, inside the question, cut nothing off before the image."""
    question = "What does USER: mean here?"
    (asked,) = Processor("llava").asked([user(question)])
    assert asked
    assert question.endswith(asked)


def test_a_processor_reaches_the_methods() -> None:
    """`attach(processor=...)` uses its template: another question mask, so another answer of GIFT."""
    case, processor = shared("llava"), Processor("llava")
    methods = {"methods": [entry("gift", beta=3.0)]}
    inputs = prompts(case, "one")
    with attach(case.model, methods, calibration=calibration(case)):
        usual = generate(case.model, inputs)
    with attach(case.model, methods, calibration=calibration(case), query=lambda ids: torch.zeros_like(ids)):
        unasked = generate(case.model, inputs)
    assert not usual.same_bits(unasked)
    with attach(case.model, methods, calibration=calibration(case), processor=processor):
        assert generate(case.model, inputs).tokens.shape == usual.tokens.shape


def test_query_overrides_the_processor() -> None:
    case, processor = shared("llava"), Processor("llava")
    inputs, asked = prompts(case, "one"), []

    def query(ids: torch.Tensor) -> torch.Tensor:
        asked.append(ids.shape)
        return ids > 0

    with attach(
        case.model, {"methods": [entry("gift")]}, calibration=calibration(case), processor=processor, query=query
    ):
        generate(case.model, inputs)
    assert asked == [inputs["input_ids"].shape]


# --- content words ---------------------------------------------------------------------------------------------------


def _tagger(*words: str) -> Callable[[str], list[tuple[int, int]]]:
    """Marks these words, wherever they stand."""
    return lambda text: [(at, at + len(w)) for w in words for at in range(len(text)) if text.startswith(w, at)]


def _kept(kind: str, text: str, *words: str) -> list[str]:
    """The runs of the text's tokens that remain."""
    tokenizer = Processor("llava", kind).tokenizer
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    kept = content_words(tokenizer, _tagger(*words))(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    runs: list[list[int]] = [[]]
    for token, keep in zip(ids[0].tolist(), kept.tolist(), strict=True):
        if keep:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [str(tokenizer.decode(run)).strip() for run in runs if run]


@every_tokenizer
def test_content_words(kind: str) -> None:
    assert _kept(kind, "How many cats sit behind the red chair?", "cats", "red", "chair") in (
        ["cats", "red chair"],
        ["cats", "red chair?"],
    )
    assert _kept(kind, "Is it so?") == []
    assert _kept(kind, "dog", "dog") == ["dog"]


@every_tokenizer
def test_content_words_beyond_ascii(kind: str) -> None:
    """Letters of several tokens: all tokens of the word, and none of its neighbours."""
    assert _kept(kind, "see the émigré in the 写真 now", "émigré") == ["émigré"]
    assert _kept(kind, "see the émigré in the 写真 now", "写真") == ["写真"]
    assert _kept(kind, "see the émigré in the 写真 now", "now") == ["now"]


def test_content_words_keep_to_the_question() -> None:
    tokenizer = Processor("llava").tokenizer
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("cats see cats", "two cats")]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    query = ids != tokenizer.pad_token_id
    query[0, : len(rows[0]) // 2] = False
    kept = content_words(tokenizer, _tagger("cats"))(ids, query)
    assert not (kept & ~query).any()
    assert [str(tokenizer.decode(ids[i, kept[i]])).strip() for i in range(2)] == ["cats", "cats"]
    assert not content_words(tokenizer, _tagger("cats"))(ids, torch.zeros_like(query)).any()


def test_a_tagger_reaches_gift() -> None:
    """With a processor and a tagger, `words: content` runs and looks at fewer rows."""
    case = shared("llava")
    processor = Processor("llava")
    texts: list[str] = []

    def tagger(text: str) -> list[tuple[int, int]]:
        texts.append(text)
        return [(0, max(1, len(text) // 2))]

    methods = {"methods": [entry("gift", words="content")]}
    options: dict[str, Any] = {"calibration": calibration(case), "query": lambda ids: ids > 0}
    inputs = prompts(case, "padded")
    with attach(case.model, methods, processor=processor, tagger=tagger, **options):
        some = generate(case.model, inputs)
    with attach(case.model, {"methods": [entry("gift")]}, **options):
        every = generate(case.model, inputs)
    assert len(texts) == 3
    assert not some.same_bits(every)
