"""Head profiles: needles under any tokenizer, retrieval scores, HICD's and JuICE's head choice, masking."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
import transformers as tf
from sightline.common.errors import CalibrationError
from sightline.models import loading
from sightline.plugin.calibration.files import Calibration
from sightline.plugin.calibration.sections import Sink
from sightline.plugin.core.host import Host
from sightline.profiling.data import conflicts, facts, needles, texts
from sightline.profiling.data.needles import NEEDLES, Needle
from sightline.profiling.data.tokenised import AnswerPair, Conflict, Continuation
from sightline.profiling.job import Job, Partial
from sightline.profiling.probes import conflict, importance, masking, retrieval, single
from sightline.profiling.probes.direct import Direct, Reader

from studies import heads as study
from studies import heads_report as study_report
from tests.helpers import tiny
from tests.helpers.tokenizers import _corpus, _pieces

TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant : {% endif %}"
)


# --- tokenizers: byte-level pieces, whole words, sentencepiece-like; none has Llama's ids ---------------------------


def _words() -> Any:
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>"], show_progress=False)
    core.train_from_iterator(_corpus(), trainer)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="$A $B", special_tokens=[("<s>", 1)]
    )
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")


def _unigram() -> Any:
    core = tokenizers.Tokenizer(tokenizers.models.Unigram())
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    core.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"])
    trainer.show_progress = False
    core.train_from_iterator(_corpus(), trainer)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module", params=[_pieces, _words, _unigram], ids=["pieces", "words", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


def _numbered(size: int = tiny.VOCAB) -> Any:
    """One word per id: w0 w1 w2 ...; every other word is w0."""
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=core)


class _Reads:
    """A stand-in for a model of which only the context length is asked."""

    def __init__(self, context: int | None):
        self.config = self
        self.max_position_embeddings = context

    def get_text_config(self) -> Any:
        return self


def _job(model: Any, tokenizer: Any = None, **options: Any) -> Job:
    return Job(model, tokenizer, (), Host(model).facts(None), Partial(None, {}, resume=False), **options)


# --- needles -----------------------------------------------------------------------------------------------------------


def test_needle_tokens_are_the_answer_at_every_depth(tokenizer: Any) -> None:
    found = needles.trials(_Reads(4096), tokenizer, lengths=[300, 700], depths=5, seed=3)
    assert len(found) == 2 * 5 * len(NEEDLES)
    for trial in found:
        said = tokenizer.decode(trial.ids[trial.start : trial.stop]).replace(" ", "")
        assert trial.needle.answer.replace(" ", "") in said
        assert len(said) <= len(trial.needle.answer.replace(" ", "")) + 3  # a piece may reach over the edge
        assert len(trial.ids) <= trial.length


def test_depths_differ_and_needles_follow_a_sentence(tokenizer: Any) -> None:
    """The release falls back to the start of the text at every depth if the full stop has another id than Llama's."""
    found = needles.trials(_Reads(4096), tokenizer, lengths=[600], depths=5, needles=NEEDLES[:1])
    found.sort(key=lambda trial: trial.depth)
    shares = [trial.start / len(trial.ids) for trial in found]
    for share, after in itertools.pairwise(shares):
        assert after - share > 0.12
    assert shares[0] < 0.15
    assert shares[-1] > 0.75
    for trial in found[1:]:
        text = tokenizer.decode(trial.ids).replace(" ", "")
        before = text[: text.index(trial.needle.text.replace(" ", ""))]
        assert before.endswith(".")
    assert len(trial.ids) > 500  # as much hay as fits


def test_prompts_use_their_room_and_neighbours_share_their_beginning(tokenizer: Any) -> None:
    found = needles.trials(_Reads(4096), tokenizer, lengths=[400, 500], depths=3)
    assert all(len(trial.ids) > trial.length - 80 for trial in found)
    shared = [_alike(a.ids, b.ids) for a, b in itertools.pairwise(found)]
    assert sum(shared) > 0.35 * sum(len(trial.ids) for trial in found)


def _alike(first: Any, second: Any) -> int:
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def test_template_opens_and_closes_the_prompt() -> None:
    tokenizer = _words()
    bare = needles.trials(_Reads(None), tokenizer, lengths=[200], depths=1)[0]
    assert bare.ids[0] == tokenizer.bos_token_id
    tokenizer.chat_template = "<s> {{ messages[0]['content'] }}"
    templated = needles.trials(_Reads(None), tokenizer, lengths=[200], depths=1)[0]
    assert templated.ids.count(tokenizer.bos_token_id) == 1  # not one more from the tokenizer


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"lengths": [480]}, "do not fit this model, which reads 512"),
        ({"lengths": [30]}, "no room for a haystack"),
        ({"lengths": [400], "haystack": "A short tale. The end."}, "give more text"),
        ({"lengths": [100], "haystack": "We eat a cherry pie on the bridge at sunset. " * 20}, "answers .* itself"),
        ({"lengths": [100], "needles": [Needle("The key is red.", "What is the key?", "blue")]}, "word for word"),
        ({"lengths": []}, "at least one"),
        ({"lengths": [200], "depths": 0}, "at least one"),
    ],
)
def test_needle_tests_that_cannot_be_built_are_refused(how: dict[str, Any], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        needles.trials(_Reads(512), _words(), **how)


@pytest.mark.parametrize("context", [256, 512, 1024, 131072, None])
def test_default_lengths_fit_the_model(context: int | None) -> None:
    lengths = needles.default_lengths(_Reads(context))
    assert sorted(set(lengths)) == lengths
    assert lengths[0] >= 100
    assert lengths[-1] + 50 <= (context or 1 << 20)


def test_filler_is_seeded_and_cannot_answer() -> None:
    first, again, other = (list(itertools.islice(texts.sentences(seed), 400)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(set(first)) > 380
    assert all(re.fullmatch(r"[A-Z][A-Za-z,;' -]+\.", sentence) for sentence in first)
    for needle in NEEDLES:
        assert max(needles.recall(sentence, needle.answer) for sentence in first) <= 0.45


def test_recall_counts_words_of_the_answer() -> None:
    assert needles.recall("An OAK, hollow; behind the house", "inside a hollow oak behind the lighthouse") == 4 / 7
    assert needles.recall("red red red", "red and red") == 2 / 3
    assert needles.recall("", "red") == 0


# --- reading and answering --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "gemma3_text", "mistral_sliding", "llava_gqa", "qwen3"])
def test_shared_beginnings_change_no_answer(family: str) -> None:
    case, rng = tiny.fresh(family), random.Random(0)
    base = [rng.randrange(*tiny.TEXT) for _ in range(40)]
    prompts = [
        base[:cut] + [rng.randrange(*tiny.TEXT) for _ in range(more)] for cut, more in ((10, 9), (25, 4), (40, 1))
    ]
    tokenizer = _numbered()
    tokenizer.eos_token_id = None
    with Direct(case.model) as direct:
        reader = Reader(direct, tokenizer)
        for prompt in [*prompts, prompts[0]]:
            tokens: list[list[int]] = []
            reader.read(prompt)
            reader.answer({}, rows=2, most=7, each=tokens.append)
            one: list[list[int]] = []
            reader.read(prompt)
            reader.answer({}, most=7, each=one.append)
            fresh = tiny.get(family).model
            wanted = fresh.generate(input_ids=torch.tensor([prompt]), max_new_tokens=7, do_sample=False)[
                0, len(prompt) :
            ]
            assert one == [[token] for token in wanted.tolist()]
            assert tokens == [[token, token] for token in wanted.tolist()]


class _Script:
    """Speaks given tokens, whatever it is asked."""

    def __init__(self, tokens: list[int], ends: Any = None):
        case = tiny.fresh("llama")
        self.model, self.tokens = case.model, tokens
        self.model.generation_config.eos_token_id = ends
        head = self.model.get_output_embeddings()
        head.register_forward_hook(self._speak)

    def _speak(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        token = self.tokens.pop(0) if output.shape[1] == 1 and self.listening else 0
        return torch.nn.functional.one_hot(torch.full(output.shape[:2], token), output.shape[-1]).float()

    listening = False


@pytest.mark.parametrize(
    ("tokens", "ends", "said"),
    [
        ("yes it is\nno", None, "yes it is"),
        ("\nyes\n\nno", None, "yes"),  # a line end that opens the answer does not end it
        ("yes<end>no", [7, 3], "yes"),
        ("yes<end>no", 3, "yes"),
    ],
)
def test_answers_end_with_a_line_or_an_end_token(tokens: str, ends: Any, said: str) -> None:
    vocabulary = ["<pad>", "yes", "no", "<end>", "it", "is", " ", "\n"]
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, "<pad>"))
    core.decoder = tokenizers.decoders.Fuse()
    core.add_special_tokens(["<pad>", "<end>"])
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=core)
    pieces = re.findall("|".join(map(re.escape, sorted(vocabulary, key=len, reverse=True))), tokens)
    script = _Script([vocabulary.index(piece) for piece in pieces], [6, 3] if ends == [7, 3] else ends)
    with Direct(script.model) as direct:
        reader = Reader(direct, tokenizer)
        reader.read([5, 6, 7])
        script.listening = True
        assert reader.answer({}, most=len(pieces)) == [said]


# --- retrieval scores -------------------------------------------------------------------------------------------------


def _few_words_model(seed: int = 0) -> Any:
    """A random llama of 12 words, so that a head often points at the word that is said next."""
    config = tf.LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, eos_token_id=None,
    )  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                scale = 1.5 / math.sqrt(parameter.shape[1]) if parameter.shape[0] != 12 else 1.0
                parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
    model.generation_config.eos_token_id = None
    return model.float().eval()


def _long_needle(seed: int) -> Needle:
    rng = random.Random(seed)
    words = " ".join(f"w{rng.randrange(1, 12)}" for _ in range(25))
    return Needle(f"w1 w2 {words} w3.", "w4 w5", words)


HAY = " ".join(f"w{i % 11 + 1} w{i * i % 11 + 1} w{i * 7 % 11 + 1}." for i in range(60))


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_retrieval_scores_equal_eager_attention_without_a_cache(variant: Any) -> None:
    model, tokenizer = _few_words_model(), _numbered(12)
    how: dict[str, Any] = {"lengths": [90], "depths": 3, "needles": [_long_needle(1), _long_needle(2)], "haystack": HAY}
    done = retrieval.runs(model, tokenizer, variant=variant, **how)
    model.set_attn_implementation("eager")
    hits = 0.0
    for run in done:
        trial, ids = run.trial, list(run.trial.ids)
        touched: dict[tuple[int, int], list[int]] = {}
        for _ in range(50):
            with torch.no_grad():
                out = model(input_ids=torch.tensor([ids]), output_attentions=True)
            token = int(out.logits[0, -1].argmax())
            for layer, weights in enumerate(out.attentions):
                for head in range(weights.shape[1]):
                    at = int(weights[0, head, -1].argmax())
                    if trial.start <= at < trial.stop and ids[at] == token:
                        touched.setdefault((layer, head), []).append(at)
            ids.append(token)
        assert tokenizer.decode(ids[len(trial.ids) :]) == run.answer
        size = trial.stop - trial.start
        for (layer, head), found in touched.items():
            count = len(found) if variant == "released" else len(set(found))
            assert float(run.scores[layer, head]) == pytest.approx(count / size, abs=1e-6)
        assert int((run.scores > 0).sum()) == len(touched)
        hits += sum(len(found) for found in touched.values())
    assert hits > 30  # else there was nothing to compare


COPY = (1, 1)  # the layer and head that copies
CHAIN = [f"n{i}" for i in range(1, 9)]


def _copying_model() -> tuple[Any, Any, Needle]:
    """A model written by hand: head 1 of layer 1 sees the word after the current one in a chain, and the model says it.

    Hidden state: 32 dimensions for the word that was read, 32 for the word to say. RoPE is slowed down to a standstill.
    """
    words = ["<unk>", "Answer:", *CHAIN, "hay", "straw.", "dry", "The", "key", "is"]
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    config = tf.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "factor": 1e9, "rope_theta": 1e4}, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    eye = torch.eye(32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.v_proj.weight.zero_()
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.normal_(std=0.3)
        model.model.embed_tokens.weight.copy_(torch.cat([eye, torch.zeros(32, 32)], dim=1))
        model.lm_head.weight.copy_(torch.cat([torch.zeros(32, 32), eye], dim=1))
        attention = model.model.layers[COPY[0]].self_attn
        after = torch.zeros(32, 32)  # row: what is looked for; column: the word that looks
        chain = [words.index(word) for word in ("Answer:", *CHAIN)]
        for word, following in itertools.pairwise(chain):
            after[following, word] = 10.0
        ours = slice(32 * COPY[1], 32 * COPY[1] + 32)
        attention.q_proj.weight[ours] = torch.cat([after, torch.zeros(32, 32)], dim=1)
        attention.k_proj.weight[ours] = torch.cat([eye, torch.zeros(32, 32)], dim=1)
        attention.v_proj.weight[ours] = torch.cat([eye, torch.zeros(32, 32)], dim=1)
        attention.o_proj.weight.zero_()
        attention.o_proj.weight[32:, ours] = eye
    model.generation_config.eos_token_id = None
    return model, tokenizer, Needle(f"The key is {' '.join(CHAIN)} straw.", "Which?", " ".join(CHAIN))


COPYING: dict[str, Any] = {"lengths": [60, 100], "depths": 4, "haystack": "dry hay dry straw. hay dry straw. " * 20}


def test_the_head_that_copies_is_found() -> None:
    model, tokenizer, needle = _copying_model()
    calls: list[tuple[str, int, int]] = []
    work = _job(model, tokenizer, batch=3, advance=lambda *call: calls.append(call))
    work.profile = "retrieval-heads"
    section = retrieval.measure(work, needles=[needle], **COPYING)
    assert work.samples == 8
    assert calls == [("retrieval-heads", done, 8) for done in (0, 3, 6, 8)]
    assert section.scores[COPY[0]][COPY[1]] == pytest.approx(1.0)
    rest = [v for layer, row in enumerate(section.scores) for head, v in enumerate(row) if (layer, head) != COPY]
    assert max(rest) < 0.5
    steps: list[tuple[str, int]] = []
    done = retrieval.runs(model, tokenizer, needles=[needle], advance=lambda *step: steps.append(step), **COPYING)
    assert steps == [("needles", 8)] * 8
    torch.testing.assert_close(torch.tensor(section.scores), retrieval.average(done), atol=1e-5, rtol=1e-4)
    info = retrieval.record(done, 0)
    assert info["runs"] == info["passed"] == 8
    assert all(row["answer"].startswith(" ".join(CHAIN)) for row in info["rows"])
    assert info["lengths"] == [60, 100]
    json.dumps(info)


def test_runs_that_did_not_pass_do_not_count() -> None:
    """Two needles of which one is never found: scores are the mean over the other's runs."""
    model, tokenizer, needle = _copying_model()
    both = [needle, Needle("The key is dry hay dry hay dry hay straw.", "Which?", "dry hay dry hay dry hay")]
    how: dict[str, Any] = {"needles": both, "lengths": [60], "depths": 2, "haystack": "straw. " * 100}
    done = retrieval.runs(model, tokenizer, **how)
    assert {run.passed for run in done} == {True, False}
    section = retrieval.measure(_job(model, tokenizer, batch=3), **how)
    torch.testing.assert_close(torch.tensor(section.scores), retrieval.average(done), atol=1e-5, rtol=1e-4)
    assert section.scores[COPY[0]][COPY[1]] == pytest.approx(1.0)


def test_needle_runs_are_continued_and_survive_a_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a pass fails half-way through the layers, which leaves a cache of uneven layers."""
    model, tokenizer, needle = _copying_model()
    whole = retrieval.measure(_job(model, tokenizer), needles=[needle], **COPYING)
    layer, passes = model.model.layers[1], [0]
    fails = {9: torch.OutOfMemoryError("out of memory"), 300: KeyboardInterrupt}
    plain, said = layer.forward, []

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        passes[0] += 1
        if passes[0] in fails:
            raise fails[passes[0]]
        return plain(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)

    def begin(resume: bool) -> Job:
        kept = Partial(tmp_path / "x.partial", {}, resume=resume)
        return Job(model, tokenizer, (), Host(model).facts(None), kept, batch=2, say=said.append)

    work = begin(resume=False)
    with pytest.raises(KeyboardInterrupt):
        retrieval.measure(work, needles=[needle], **COPYING)
    assert "continuing with 1" in said[0]
    work.partial.save()
    before = passes[0]
    again = begin(resume=True)
    assert retrieval.measure(again, needles=[needle], **COPYING) == whole
    assert 0 < work.partial.done["/runs"] < 8
    assert passes[0] - before < before


@pytest.mark.parametrize("mode", ["output", "query"])
def test_masking_the_head_that_copies_loses_the_needle(mode: Any) -> None:
    model, tokenizer, needle = _copying_model()
    masks = [(), (COPY,), ((0, 0), (0, 1), (1, 0))]
    passed = masking.passes(model, tokenizer, masks, mode=mode, needles=[needle], **COPYING)
    assert passed.mean(1).tolist() == [1.0, 0.0, 1.0]
    assert masking.accuracy(model, tokenizer, masked=[COPY], mode=mode, needles=[needle], **COPYING) == 0.0
    assert masking.accuracy(model, tokenizer, masked=[], mode=mode, needles=[needle], **COPYING) == 1.0


def test_masks_that_do_not_fit_are_refused() -> None:
    model, tokenizer, needle = _copying_model()
    with pytest.raises(CalibrationError, match="2-0"):
        masking.accuracy(model, tokenizer, masked=[(2, 0)], needles=[needle], **COPYING)
    with pytest.raises(CalibrationError, match="choose output or query"):
        masking.accuracy(model, tokenizer, masked=[], mode="zero", needles=[needle], **COPYING)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["output", "query"])
def test_masks_act_from_the_last_prompt_token_on(mode: Any) -> None:
    """Each row of a masked batch says what a plain model says whose projections are silenced by hand, row by row."""
    case, rng = tiny.fresh("qwen2"), random.Random(1)
    size = tiny.HIDDEN // tiny.HEADS
    prompt = [rng.randrange(*tiny.TEXT) for _ in range(20)]
    heads = [(layer, head) for layer in range(tiny.LAYERS) for head in range(tiny.HEADS)]
    masks = [(), *(tuple(rng.sample(heads, 9)) for _ in range(4))]
    with Direct(case.model) as direct:
        reader, said = Reader(direct, _numbered()), []
        reader.read(prompt)
        reader.answer(masking.mask_edits(masks, direct, mode), rows=len(masks), most=6, each=said.append)
    plain = tiny.get("qwen2").model
    different = set()
    for row, mask in enumerate(masks):
        cache = tf.DynamicCache()
        plain(input_ids=torch.tensor([prompt[:-1]]), past_key_values=cache)
        hooks = []
        for layer, head in mask:
            attention, part = plain.model.layers[layer].self_attn, slice(head * size, head * size + size)
            hooks.append(_silence(attention, part, mode))
        token, wanted = prompt[-1], []
        for _ in range(6):
            token = int(plain(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1].argmax())
            wanted.append(token)
        for hook in hooks:
            hook.remove()
        assert [step[row] for step in said] == wanted
        different.add(tuple(wanted))
    assert len(different) > 2


def _silence(attention: Any, part: slice, mode: str) -> Any:
    def zero(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[..., part] = 0
        return value

    if mode == "query":
        return attention.q_proj.register_forward_hook(lambda module, args, output: zero(output))
    return attention.o_proj.register_forward_pre_hook(lambda module, args: (zero(args[0]),))


def test_no_run_passes_is_an_error_that_quotes_the_model() -> None:
    with pytest.raises(CalibrationError, match=r"none of 2 needle runs passed.*the model answered 'w"):
        retrieval.measure(
            _job(_few_words_model(), _numbered(12)), needles=[_unsaid()], lengths=[60], depths=2, haystack=HAY
        )


def _unsaid() -> Needle:
    return Needle("w1 zebra mango.", "w4", "zebra mango")


def test_embedded_vision_language_model_is_measured_as_text() -> None:
    """Its words are those of scenes, so it answers no needle; but every head of its decoder is scored."""
    model, processor = loading.load_model(loading.EMBEDDED)
    words = processor.tokenizer.decode(range(300, 340)).split()
    hay = " ".join(f"{a} {b}." for a in words[:9] for b in words[9:14])
    needle = Needle("a dog and a red car.", "what is it?", "a red car")
    done = retrieval.runs(model, processor, lengths=[120], depths=2, needles=[needle], haystack=hay)
    text = model.config.get_text_config()
    assert [tuple(run.scores.shape) for run in done] == [(text.num_hidden_layers, text.num_attention_heads)] * 2
    # The template writes no start token and the tokenizer adds one, here as in every other prompt.
    assert all(r.trial.ids[0] == processor.tokenizer.bos_token_id for r in done)
    assert all(processor.tokenizer.decode(r.trial.ids[1:]).startswith("USER") for r in done)


# --- the public format ------------------------------------------------------------------------------------------------


def _public(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "head_score.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_public_head_scores_are_averaged(tmp_path: Path) -> None:
    rng = random.Random(0)
    table = {f"{layer}-{head}": [rng.random() * 1.2 for _ in range(7)] for layer in range(3) for head in range(11)}
    keys = list(table)
    rng.shuffle(keys)
    scores = retrieval.read_public(_public(tmp_path, {key: table[key] for key in keys}))
    assert [len(row) for row in scores] == [11, 11, 11]
    for key, values in table.items():
        layer, head = map(int, key.split("-"))
        assert scores[layer][head] == pytest.approx(math.fsum(values) / 7)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "not JSON"),
        ({}, "no heads"),
        ([1], "expected a JSON object"),
        ({"0-0": [1.0], "x": [1.0]}, "'x' names no head"),
        ({"0-0": [1.0], "-1-0": [1.0]}, "'-1-0' names no head"),
        ({"0-0": []}, "no list of scores"),
        ({"0-0": 0.5}, "no list of scores"),
        ({"0-0": [0.5, "a"]}, "no list of scores"),
        ({"0-0": [True]}, "no list of scores"),
        ('{"0-0": [NaN]}', "no list of scores"),
        ({"0-0": [1.0, 0.5], "0-1": [1.0]}, "head 0-1 has 1 scores"),
        ({"0-0": [1.0], "0-1": [1.0], "1-1": [1.0]}, "but no 1-0"),
        ({"0-0": [1.0], "0-00": [1.0]}, "twice"),
    ],
)
def test_bad_public_files_are_refused(tmp_path: Path, data: Any, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        retrieval.read_public(_public(tmp_path, data))


def test_missing_public_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"cannot read .*nothing.json: no such file"):
        retrieval.read_public(tmp_path / "nothing.json")


# --- HICD -------------------------------------------------------------------------------------------------------------


@contextmanager
def _scaled(model: Any, layer: int, head: int, rows: slice, factor: float) -> Iterator[None]:
    """The head's outputs in some rows times a factor, by a hook on the output projection."""
    projection = model.model.layers[layer].self_attn.o_proj
    size = projection.in_features // model.config.num_attention_heads

    def change(module: Any, args: Any) -> Any:
        value = args[0].clone()
        value[:, rows, head * size : head * size + size] *= factor
        return (value,)

    hook = projection.register_forward_pre_hook(change)
    try:
        yield
    finally:
        hook.remove()


def _answer_loss(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        log = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return -sum(float(log[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)


SEQUENCES = [([11, 40, 77, 23], [90, 31]), ([15, 60], [200, 33, 120]), ([99, 98, 97], [44])]


def _finite_importance(model: Any) -> torch.Tensor:
    layers, heads, eps = model.config.num_hidden_layers, model.config.num_attention_heads, 3e-3  # its norms are float32
    total = torch.zeros(layers, heads, dtype=torch.float64)
    for prompt, answer in SEQUENCES:
        for layer, head in itertools.product(range(layers), range(heads)):
            for row in range(len(prompt) + len(answer)):
                losses = []
                for factor in (1 + eps, 1 - eps):
                    with _scaled(model, layer, head, slice(row, row + 1), factor):
                        losses.append(_answer_loss(model, prompt, answer))
                total[layer, head] += abs(losses[0] - losses[1]) / (2 * eps)
    total[:-1] /= sum(len(p) + len(a) for p, a in SEQUENCES)
    total[-1] /= sum(len(a) for _, a in SEQUENCES)
    return total


def _importance(model: Any, batch: int) -> torch.Tensor:
    examples = [AnswerPair(prompt, answer, []) for prompt, answer in SEQUENCES]
    work = _job(model, batch=batch)
    with Direct(model) as direct:
        return importance.importance(
            work.add("x", lambda some: importance.effects(direct, some, "right"), examples), "right"
        )


def test_importance_equals_finite_differences() -> None:
    model = tiny.fresh("qwen2").model.double()
    wanted = _finite_importance(model)
    found = _importance(model, batch=2)
    assert torch.allclose(found.double(), wanted, rtol=2e-3, atol=1e-5)
    assert float(wanted.max()) > 5 * float(wanted.min())


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_vl"])
@pytest.mark.parametrize("trainable", [False, True])
def test_importance_does_not_depend_on_the_batch_and_leaves_no_gradient(family: str, trainable: bool) -> None:
    model = tiny.fresh(family).model.requires_grad_(trainable)
    alone, together = (_importance(model, batch=size) for size in (1, 3))
    assert torch.allclose(alone, together, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inducing_scores_follow_the_formula() -> None:
    model = tiny.fresh("llama").model
    pairs = [((11, 40, 77), (90, 31), (25,)), ((15, 60), (200,), (33, 120)), ((9, 8, 7, 6), (44,), (45,))]
    examples = [AnswerPair(*map(list, pair)) for pair in pairs]
    calls: list[tuple[str, int, int]] = []
    work = _job(model, batch=2, advance=lambda *call: calls.append(call))
    section = importance.inducing_heads(work, examples, scale=7)
    with Direct(model) as direct:
        right, wrong = (
            importance.importance(importance.effects(direct, examples, kind), kind).double().numpy()
            for kind in importance.KINDS
        )
    ac, ad = ((m - m.min()) / (m.max() - m.min()) for m in (right, wrong))
    assert torch.allclose(
        torch.tensor(section.scores, dtype=torch.float64), torch.tensor(ac + 7 * (ac - ad)), atol=2e-5, rtol=1e-4
    )
    assert calls == [("", done, 3) for done in (0, 2, 3)]
    assert work.samples == 3


def test_inducing_heads_need_examples() -> None:
    model = tiny.get("llama").model
    for examples in ([], [AnswerPair([], [1], [2])], [AnswerPair([1], [], [2])]):
        with pytest.raises(CalibrationError, match="need examples"):
            importance.inducing_heads(_job(model), examples)


# --- JuICE ------------------------------------------------------------------------------------------------------------


def _conflicts(seed: int, count: int) -> list[Conflict]:
    rng = random.Random(seed)

    def asked(size: int, target: int) -> Continuation:
        return Continuation(*([rng.randrange(*tiny.TEXT) for _ in range(n)] for n in (size, target)))

    return [Conflict(asked(4, 1), asked(6, 2), asked(9, 2)) for _ in range(count)]


@pytest.mark.parametrize("rows", [5, 4096])
def test_conflict_effects_equal_one_head_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "TOKENS", rows * 10 // 3)
    model, examples, factors = tiny.fresh("qwen2").model, _conflicts(0, 2), (3.0, -1.0, -5.0)
    work = _job(model, batch=3)
    found = conflict.effects(work, examples, factors)
    assert work.samples == 2
    wanted = torch.zeros_like(found)
    for kind, name in enumerate(("clean", "substitution", "coherent")):
        for example in examples:
            asked = getattr(example, name)
            prompt, target = list(asked.prompt), list(asked.target)
            plain = math.exp(-len(target) * _answer_loss(model, prompt, target))
            for layer, head in itertools.product(range(tiny.LAYERS), range(tiny.HEADS)):
                for column, factor in enumerate(factors):
                    with _scaled(model, layer, head, slice(None), 1 + factor):
                        changed = math.exp(-len(target) * _answer_loss(model, prompt, target))
                    wanted[kind, layer, head, column] += (changed - plain) / len(examples)
    assert torch.allclose(found, wanted, atol=1e-6, rtol=1e-3)
    assert float(wanted.abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["gemma3_text", "llava_gqa", "qwen2_vl", "mistral_sliding"])
def test_conflict_effects_leave_the_model_as_it_was(family: str) -> None:
    model, examples = tiny.fresh(family).model, _conflicts(1, 1)
    before = {name: set(module.__dict__) for name, module in model.named_modules()}
    effects = conflict.effects(_job(model), examples, (1.0,))
    assert before == {name: set(module.__dict__) for name, module in model.named_modules()}
    assert bool((effects[:, -1].abs().sum(0) > 0).all())
    assert torch.allclose(effects, conflict.effects(_job(model), examples, (-3.0, 1.0))[..., 1:], atol=1e-6)


def test_conflict_heads_help_under_every_prompt() -> None:
    effects = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(3))
    chosen = conflict.choose(effects, 4)
    every = {
        (layer, head): sum(float(effects[kind, layer, head]) for kind in range(3))
        for layer in range(5)
        for head in range(6)
        if min(float(effects[kind, layer, head]) for kind in range(3)) > 0
    }
    assert len(every) > 2
    assert chosen == sorted(every, key=every.__getitem__, reverse=True)[:4]


def test_conflict_heads_split_factors_by_their_sign() -> None:
    model, examples = tiny.fresh("llama").model, _conflicts(2, 2)
    section = conflict.conflict_heads(_job(model), examples, n=3, enlarge=(1, 2), suppress=(-1, -4))
    effects = conflict.effects(_job(model), examples, (1, 2, -1, -4))
    assert section.enhance == conflict.choose((effects[..., 0] + effects[..., 1]) / 2, 3)
    assert section.suppress == conflict.choose((effects[..., 2] + effects[..., 3]) / 2, 3)


@pytest.mark.parametrize(
    ("examples", "how", "says"),
    [
        ([], {}, "at least one example"),
        (_conflicts(0, 1), {"enlarge": (1, -1)}, "above 0"),
        (_conflicts(0, 1), {"suppress": ()}, "at least one of each"),
        ([Conflict(*[Continuation([4], [])] * 3)], {}, "empty prompt or target"),
    ],
)
def test_conflict_heads_refuse(examples: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        conflict.conflict_heads(_job(tiny.get("llama").model), examples, **how)


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_are_not_those_of_the_evaluation() -> None:
    evaluated = {
        text.lower()
        for split in conflicts.SPLITS
        for fact in conflicts.facts(split)
        for text in (fact.question, fact.opening)
    }
    assert len(evaluated) > 300
    for fact in facts.facts():
        assert not {fact.question.lower(), fact.opening.lower()} & evaluated


def test_fact_tokens_spell_their_answers(tokenizer: Any) -> None:
    found = facts.choices(tokenizer, seed=4)
    known = facts.facts(4)
    assert len(found) == 2 * len(known) > 110
    for fact, closed, opened in zip(known, found[::2], found[1::2], strict=True):
        assert fact.true != fact.other
        right, wrong = fact.true.replace(" ", ""), fact.other.replace(" ", "")
        for ids, answer in ((closed.right, right), (closed.wrong, wrong), (opened.right, wrong), (opened.wrong, right)):
            assert tokenizer.decode(ids).replace(" ", "") == answer
        assert fact.opening.replace(" ", "") in tokenizer.decode(closed.prompt).replace(" ", "")
        context = f"{fact.opening} {fact.other}.".replace(" ", "")
        assert context in tokenizer.decode(opened.prompt).replace(" ", "")


@pytest.mark.parametrize("target", ["context", "parametric"])
def test_conflict_targets(target: Any) -> None:
    tokenizer = _pieces()
    found, known = facts.conflicts(tokenizer, target=target, samples=9, seed=2), facts.facts(2)[:9]
    for fact, example in zip(known, found, strict=True):
        goal = fact.other if target == "context" else fact.true
        assert tokenizer.decode(example.clean.target) == " " + fact.true
        for asked in (example.substitution, example.coherent):
            assert tokenizer.decode(asked.target) == " " + goal
            assert tokenizer.decode(asked.prompt).startswith(f"{fact.opening} {fact.other}.")
            assert tokenizer.decode(asked.prompt).endswith(fact.opening)
        assert len(example.coherent.prompt) > len(example.substitution.prompt)
        assert (fact.true in tokenizer.decode(example.clean.prompt)) == (target == "context")


def test_shipped_heads_are_those_of_the_shipped_result() -> None:
    folder = resources.files("sightline.eval") / "results"
    result = json.loads((folder / "retrieval-heads.json").read_text("utf-8"))
    assert study_report.report(result) == (folder / "retrieval-heads.md").read_text("utf-8")
    file = Calibration.load("auto", SimpleNamespace(name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert file.retrieval_heads is not None
    assert file.retrieval_heads.scores == result["scores"]
    assert file.inducing_heads is not None
    assert file.inducing_heads.scores == result["inducing_heads"]
    assert file.conflict_heads is not None
    assert [list(head) for head in file.conflict_heads.suppress] == result["conflict_heads"]["suppress"]
    assert file.source is not None
    assert file.source.command == result["command"]
    rows = [row for run in result["runs"] for row in run["rows"]]
    assert sum(row["recall"] > 0.5 for row in rows) == sum(run["passed"] for run in result["runs"])
    assert sum(value >= 0.1 for row in result["scores"] for value in row) == round(270 * result["share"])


def test_the_study_keeps_what_it_does_not_measure(tmp_path: Path) -> None:
    result = json.loads((resources.files("sightline.eval") / "results" / "retrieval-heads.json").read_text("utf-8"))
    model = SimpleNamespace(config=tf.LlamaConfig(num_hidden_layers=30, num_attention_heads=9, hidden_size=576))
    path = tmp_path / "m.yaml"
    made = study.calibration(model, result, path)
    assert made.facts().keys() == {"retrieval_heads", "inducing_heads", "conflict_heads"}
    sink = {"dims": [507], "tau": 20.0, "source": {"kind": "measured", "command": "sightline calibrate"}}
    path.write_text(made.model_copy(update={"inducing_heads": None, "sink": Sink.model_validate(sink)}).dump())
    again = study.calibration(model, result, path)
    assert again.sink == Sink.model_validate(sink)
    assert again.model_copy(update={"sink": None}) == made
