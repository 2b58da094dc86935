"""Every contrastive decoder in every mode of `generate`: B rows outside, whatever runs inside.

`test_decoders_reference.py` says that the scores are right; here is checked that beams, sampling, streamers, caches, end
tokens and stopping criteria see nothing but those scores, and that nothing stays behind.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sightline
import torch
import transformers as tf
from sightline import LayoutError, UnsupportedModelError

from tests.helpers import naive, tiny
from tests.helpers.engine import NEW, Answer, Snapshot, assert_message, calibration, entry, generate, prompts, shared
from tests.helpers.matrix import covering
from tests.helpers.naive import SETUPS

#: A sliding window; positions in three parts; a prompt handed on; layers across. The other tests take llava_gqa.
FAMILIES = ["gemma3_text", "qwen2_vl", "instructblip", "mllama"]
CASES = [
    (family, name)
    for family in FAMILIES
    for name, setup in SETUPS.items()
    if (shared(family).has_images or not setup.image) and setup.fits(family)
]
every_case = pytest.mark.parametrize(("family", "name"), covering(CASES))
every_decoder = pytest.mark.parametrize("name", SETUPS)


@functools.cache
def facts_of(family: str) -> dict[str, Any]:
    """A calibration with every section."""
    return calibration(shared(family), **naive.sections(shared(family)))


def attach(family: str, name: str, **settings: Any) -> sightline.Plug:
    """A decoder, and nothing else, on the shared model of a family."""
    setup = SETUPS[name]
    config = {"decoder": {setup.name: {**setup.settings, **settings}}}
    return sightline.attach(shared(family).model, config, calibration=facts_of(family), **setup.options)


def answer(family: str, kind: str, **how: Any) -> Answer:
    """What the family's model says now, with whatever is attached."""
    return generate(shared(family).model, prompts(shared(family), kind), **how)


@functools.cache
def greedy(family: str, name: str, kind: str) -> Answer:
    """What a fresh attachment says in greedy search."""
    with attach(family, name):
        return answer(family, kind)


@functools.cache
def plain(family: str, kind: str, **how: Any) -> Answer:
    """What the model says with nothing attached."""
    return answer(family, kind, **how)


def assert_close(ours: Answer, reference: Answer) -> None:
    """The same tokens, and scores that differ by rounding only."""
    assert ours.tokens.tolist() == reference.tokens.tolist()
    torch.testing.assert_close(ours.scores, reference.scores, atol=1e-3, rtol=1e-4)


def assert_sound(scores: torch.Tensor) -> None:
    """Numbers, or -inf for what a cutoff forbids; never all of a row."""
    assert not scores.isnan().any()
    assert not scores.isposinf().any()
    assert scores.isfinite().any(-1).all()


def row(batch: Answer, i: int) -> Answer:
    """One row of an answer."""
    return Answer(*(part[i : i + 1] for part in (batch.tokens, batch.logits, batch.scores)))


# --- shapes and caches -----------------------------------------------------------------------------------------------


@every_case
def test_the_caller_sees_its_own_rows_only(family: str, name: str) -> None:
    """Scores, hidden states and the cache that `generate` returns are of B rows, and as long as the sequence."""
    case = shared(family)
    inputs = prompts(case, "padded")
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    with attach(family, name):
        out = case.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **wanted)
    length = inputs["input_ids"].shape[1]
    assert out.sequences.shape == (3, length + NEW)
    assert out.sequences[:, length:].tolist() == greedy(family, name, "padded").tokens.tolist()
    for step, scores in enumerate(out.scores):
        assert scores.shape == (3, tiny.VOCAB)
        assert_sound(scores)
        rows = length if step == 0 else 1
        assert {tuple(h.shape) for h in out.hidden_states[step]} == {(3, rows, tiny.HIDDEN)}
    cache = out.past_key_values
    assert type(cache) is tf.DynamicCache
    assert cache.get_seq_length() == length + NEW - 1
    images = getattr(case.model.config.get_text_config(), "cross_attention_layers", [])
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        assert layer.keys.shape[0] == layer.values.shape[0] == 3
        assert index in images or layer.keys.shape[2] in (length + NEW - 1, getattr(layer, "sliding_window", 0) - 1)


@pytest.mark.parametrize(("family", "name"), covering(CASES))
def test_the_cache_holds_the_plain_models_keys(family: str, name: str) -> None:
    """The base's rows are the plain model's: forced along the same tokens they leave the same cache."""
    case = shared(family)
    inputs = prompts(case, "padded")
    wanted = {"return_dict_in_generate": True, "max_new_tokens": NEW, "do_sample": False}
    with attach(family, name):
        ours = case.model.generate(**inputs, **wanted)
    length = inputs["input_ids"].shape[1]
    forced = ours.sequences[:, length:]
    follow = tf.LogitsProcessorList([lambda ids, scores: _only(scores, forced[:, ids.shape[1] - length])])
    theirs = case.model.generate(**inputs, **wanted, logits_processor=follow)
    assert torch.equal(ours.sequences, theirs.sequences)
    seen = inputs["attention_mask"].bool()
    for mine, other in zip(ours.past_key_values.layers, theirs.past_key_values.layers, strict=True):
        tail = mine.keys.shape[2]
        valid = torch.cat([seen, seen.new_ones(3, NEW - 1)], dim=1)[:, -tail:]
        for left, right in ((mine.keys, other.keys), (mine.values, other.values)):
            left, right = (t.transpose(1, 2)[valid] for t in (left, right))
            torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


def _only(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Scores that leave one token per row."""
    return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


@every_case
def test_static_cache_equals_dynamic(family: str, name: str) -> None:
    if name == "opera":
        with pytest.raises(UnsupportedModelError, match=r"opera.*StaticCache.*default cache"), attach(family, name):
            answer(family, "padded", cache_implementation="static")
        return
    with attach(family, name):
        assert_close(answer(family, "padded", cache_implementation="static"), greedy(family, name, "padded"))


@every_decoder
@pytest.mark.parametrize("keep", [0, 1])
def test_a_loop_written_by_hand(name: str, keep: int) -> None:
    """Forward over the prompt and then token by token, with a cache of the caller's."""
    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    expected = greedy("llava_gqa", name, "padded")
    cache, mask = tf.DynamicCache(config=case.model.config.get_text_config()), inputs["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with attach("llava_gqa", name), torch.no_grad():
        out = case.model(**inputs, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        for step in range(NEW):
            assert out.past_key_values is cache
            torch.testing.assert_close(out.logits[:, -1], expected.logits[:, step], atol=1e-3, rtol=1e-4)
            mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
            given = {"attention_mask": mask, "position_ids": mask.cumsum(1)[:, -1:] - 1, "past_key_values": cache}
            out = case.model(input_ids=expected.tokens[:, step : step + 1], **given, use_cache=True)


@every_decoder
def test_a_second_turn_in_the_same_cache(name: str) -> None:
    """It is scored as the last turn of one prompt, the first answer and the user's next words part of it."""
    case = shared("llava_gqa")
    inputs = prompts(case, "one")
    with attach("llava_gqa", name):
        first = case.model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[33, 44]])], dim=1)
        how = {"attention_mask": torch.ones_like(ids), "past_key_values": first.past_key_values}
        second = generate(case.model, {"input_ids": ids}, **how)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    reference = SETUPS[name].reference
    if isinstance(reference, naive.SID):  # what was read under the earlier turn's choice stays so
        reference = replace(reference, earlier=(range(inputs["input_ids"].shape[1] - 1, first.sequences.shape[1] - 1),))
    expected = reference(naive.of(case.model), whole, second.tokens[0].tolist()[:-1])
    torch.testing.assert_close(second.scores[0].double(), expected, atol=1e-3, rtol=1e-3)


CHANGES: dict[str, Callable[[tf.DynamicCache], Any]] = {
    "crop": lambda cache: cache.crop(-1),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1])),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["decore", "hicd", "cad", "dola"])
def test_a_cache_that_its_owner_changes(name: str, change: str) -> None:
    """The branch follows, or the next pass is refused; it never answers from keys that the base has dropped."""
    case = shared("llava_gqa")
    inputs = prompts(case, "pair")
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)

    def follow(cache: tf.DynamicCache, mask: torch.Tensor, token: int) -> torch.Tensor:
        given = {"attention_mask": mask, "position_ids": mask.cumsum(1)[:, -1:] - 1, "past_key_values": cache}
        return case.model(input_ids=torch.full((len(mask), 1), token), **given).logits[:, -1]

    with attach("llava_gqa", name), torch.no_grad():
        caches = []
        for _ in range(2):
            positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
            caches.append(case.model(**inputs, position_ids=positions, use_cache=True).past_key_values)
            if len(caches) == 1:
                expected = follow(caches[0], mask, 60)
        if change == "crop":
            follow(caches[1], mask, 50)
        CHANGES[change](caches[1])
        rows = {"crop": [0, 1], "repeat": [0, 0, 1, 1], "select": [1]}[change]
        try:
            ours = follow(caches[1], mask[rows], 60)
        except LayoutError as error:
            assert_message(error, "cache")
            return
    torch.testing.assert_close(ours, expected[rows], atol=1e-3, rtol=1e-4)


@every_decoder
def test_a_forward_as_a_tuple_and_without_a_cache(name: str) -> None:
    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    with attach("llava_gqa", name), torch.no_grad():
        named = case.model(**inputs, use_cache=False)
        bare = case.model(**inputs, use_cache=False, return_dict=False)
    assert named.past_key_values is None
    assert isinstance(bare, tuple)
    assert torch.equal(bare[0], named.logits)
    expected = greedy("llava_gqa", name, "padded").logits[:, 0]
    torch.testing.assert_close(named.logits[:, -1].float(), expected, atol=1e-3, rtol=1e-4)


@every_decoder
def test_the_branch_is_freed_with_the_cache(name: str) -> None:
    """A finished answer keeps no keys of the branch alive."""
    case = shared("llava_gqa")
    with attach("llava_gqa", name) as plug:
        out = case.model.generate(**prompts(case, "one"), max_new_tokens=2, return_dict_in_generate=True)
        gone = weakref.ref(out.past_key_values)
        del out
        assert gone() is None, "something else holds the cache"
        assert plug.reading is not None
        fork = getattr(plug.reading, "fork", None)
        kept = [value for value in vars(fork.cache).values() if isinstance(value, dict)] if fork else []
        assert not [t for store in kept for pair in store.values() if isinstance(pair, tuple) for t in pair]


# --- modes of generation ---------------------------------------------------------------------------------------------


@every_case
def test_beams(family: str, name: str) -> None:
    """A batch says what its rows say alone, repeats itself, and its best beam is the first of several."""
    case = shared(family)
    batch = prompts(case, "pair")
    with attach(family, name):
        beams = answer(family, "pair", num_beams=3)
        assert beams.tokens.shape == (2, NEW)
        assert torch.equal(answer(family, "pair", num_beams=3).tokens, beams.tokens)
        for i in range(2):
            alone = generate(case.model, case.row(batch, i), num_beams=3)
            assert alone.tokens[0].tolist() == beams.tokens[i].tolist()
        several = answer(family, "pair", num_beams=3, num_return_sequences=2)
        sampled = answer(family, "pair", num_beams=2, do_sample=True)
    assert several.tokens.shape == (4, NEW)
    assert torch.equal(several.tokens[::2], beams.tokens)
    assert sampled.tokens.shape == (2, NEW)


@every_decoder
def test_beams_are_those_of_the_reference(name: str) -> None:
    """A beam search written out over the naive reference; the branch's keys have followed their beams."""
    case = shared("llava_gqa")
    batch = prompts(case, "pair")
    model = naive.of(case.model)
    with attach("llava_gqa", name):
        ours = answer("llava_gqa", "pair", num_beams=3, max_new_tokens=5).tokens.tolist()
    expected = [naive.beams(model, SETUPS[name].reference, case.row(batch, i), 5, 3) for i in range(2)]
    assert ours == expected


class Oracle(tf.LogitsProcessor):
    """Puts the naive reference's log-probabilities in the place of the plain model's, for every beam of every prompt."""

    def __init__(self, case: tiny.TinyCase, batch: tiny.Inputs, name: str):
        self.model, self.reference = naive.of(case.model), SETUPS[name].reference
        self.rows = [case.row(batch, i) for i in range(len(batch["input_ids"]))]
        self.length = batch["input_ids"].shape[1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        copies = len(input_ids) // len(self.rows)
        answers = input_ids[:, self.length :].tolist()
        told = [self.reference(self.model, self.rows[i // copies], tokens)[-1] for i, tokens in enumerate(answers)]
        return torch.stack(told).log_softmax(-1).to(scores)


@every_decoder
def test_beams_that_end(name: str) -> None:
    """The same search on the plain model, told the reference's scores, ends and orders its beams alike."""
    case = shared("llava_gqa")
    batch = prompts(case, "pair")
    how: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 5}
    with attach("llava_gqa", name):
        free = generate(case.model, batch, **how).tokens
        how["eos_token_id"] = free[::3, 2].tolist()
        ours = generate(case.model, batch, **how).tokens
    assert ours.tolist() != free.tolist(), "no beam has ended early"
    oracle = tf.LogitsProcessorList([Oracle(case, batch, name)])
    assert ours.tolist() == generate(case.model, batch, **how, logits_processor=oracle).tokens.tolist()


@every_case
def test_sampling(family: str, name: str) -> None:
    """The seed decides; certain draws are the greedy answer; several answers start from the same scores."""
    case = shared(family)
    with attach(family, name):
        first = answer(family, "padded", do_sample=True)
        assert answer(family, "padded", do_sample=True).same_bits(first)
        certain = answer(family, "padded", do_sample=True, top_k=1)
        several = answer(family, "pair", do_sample=True, num_return_sequences=2, temperature=1.5, top_k=0)
    assert_sound(first.scores)
    assert certain.tokens.tolist() == greedy(family, name, "padded").tokens.tolist()
    assert several.tokens.shape == (4, NEW)
    torch.testing.assert_close(several.logits[::2, 0], several.logits[1::2, 0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(several.scores, several.logits / 1.5, atol=1e-3, rtol=1e-4)
    for i in range(2):
        alone = generate(_attached(family, name), case.row(prompts(case, "pair"), i), max_new_tokens=1)
        sightline.unwrap(case.model)
        torch.testing.assert_close(several.logits[2 * i, 0], alone.logits[0, 0], atol=1e-3, rtol=1e-4)


def _attached(family: str, name: str) -> Any:
    """The model with a decoder kept on."""
    setup = SETUPS[name]
    return sightline.wrap(
        shared(family).model, {"decoder": setup.config}, calibration=facts_of(family), **setup.options
    )


@every_decoder
def test_samples_are_those_of_the_reference(name: str) -> None:
    """With the same seed the plain model, told the reference's scores, draws the same tokens."""
    case = shared("llava_gqa")
    batch = prompts(case, "pair")
    how: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "temperature": 1.3, "top_k": 0, "top_p": 0.95}
    with attach("llava_gqa", name):
        ours = generate(case.model, batch, **how)
    oracle = tf.LogitsProcessorList([Oracle(case, batch, name)])
    assert ours.tokens.tolist() == generate(case.model, batch, **how, logits_processor=oracle).tokens.tolist()


@every_case
def test_rows_that_end_early(family: str, name: str) -> None:
    """A row that has ended is padded; the others go on as if it had not."""
    free = greedy(family, name, "padded").tokens
    for i in range(3):
        end = int(free[i, 1])
        with attach(family, name):
            ended = answer(family, "padded", eos_token_id=end).tokens
        for ours, whole in zip(ended.tolist(), free[:, : ended.shape[1]].tolist(), strict=True):
            stop = whole.index(end) + 1 if end in whole else len(whole)
            assert ours[:stop] == whole[:stop]
            assert set(ours[stop:]) <= {tiny.PAD}


@every_decoder
def test_stopping_criteria(name: str) -> None:
    """They see the B rows' tokens and scores."""
    free = greedy("llava_gqa", name, "padded")
    seen: list[tuple[int, ...]] = []

    class Second(tf.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **how: Any) -> torch.Tensor:
            seen.append(tuple(input_ids.shape))
            return torch.full((len(input_ids),), len(seen) == 2)

    inputs = prompts(shared("llava_gqa"), "padded")
    with attach("llava_gqa", name):
        stopped = answer("llava_gqa", "padded", stopping_criteria=[Second()]).tokens
    assert torch.equal(stopped, free.tokens[:, :2])
    assert seen == [(3, inputs["input_ids"].shape[1] + k) for k in (1, 2)]


@every_decoder
def test_logits_processors_see_the_contrast(name: str) -> None:
    """A processor that forbids the best token makes the second best the answer."""
    scores = greedy("llava_gqa", name, "padded").scores[:, 0]
    best, second = scores.topk(2).indices.T
    seen: list[torch.Tensor] = []

    def forbid(ids: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        seen.append(given.clone())
        return given.scatter(1, best[:, None], -torch.inf)

    possible = scores.gather(1, second[:, None])[:, 0].isfinite()
    assert possible.any()
    with attach("llava_gqa", name):
        out = answer("llava_gqa", "padded", logits_processor=tf.LogitsProcessorList([forbid]), max_new_tokens=1)
    torch.testing.assert_close(seen[0], scores, atol=1e-3, rtol=1e-4)
    assert out.tokens[possible, 0].tolist() == second[possible].tolist()


class Collector:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then each token."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Called once when the answer is complete."""
        self.ended = True


@every_case
def test_streaming(family: str, name: str) -> None:
    streamer = Collector()
    inputs = prompts(shared(family), "one")
    with attach(family, name):
        out = answer(family, "one", streamer=streamer)
    assert out.same_bits(greedy(family, name, "one"))
    assert torch.equal(out.scores, out.logits), "nothing processes the scores of greedy search"
    assert out.logits[0].argmax(-1).tolist() == out.tokens[0].tolist()
    assert streamer.ended
    assert streamer.tokens == inputs["input_ids"][0].tolist() + out.tokens[0].tolist()


@pytest.mark.parametrize("how", ["positional", "inputs"])
@every_decoder
def test_ids_handed_over_in_other_ways(name: str, how: str) -> None:
    case = shared("llava_gqa")
    inputs = dict(prompts(case, "padded"))
    ids = inputs.pop("input_ids")
    with attach("llava_gqa", name):
        for more in ({}, {"num_beams": 3}):
            usual = case.model.generate(input_ids=ids, **inputs, max_new_tokens=NEW, **more)
            args, named = ((ids,), {}) if how == "positional" else ((), {"inputs": ids})
            assert torch.equal(case.model.generate(*args, **named, **inputs, max_new_tokens=NEW, **more), usual)


# --- with attention methods ------------------------------------------------------------------------------------------

LATE = {"saliency_layers": [2], "enhanced_layers": [1, 2, 3]}  # GIFT then holds the last prompt token back
IDLE = entry("gift", alpha=0.0, **LATE)  # multiplies by exp(0): only the reading in two parts remains


def composed(family: str, name: str, methods: list[Any]) -> sightline.Plug:
    """A decoder behind attention methods."""
    setup = SETUPS[name]
    config = {"methods": methods, "decoder": setup.config}
    return sightline.attach(shared(family).model, config, calibration=facts_of(family), **setup.options)


@every_decoder
@pytest.mark.parametrize("family", ["llava_gqa", "gemma3", "paligemma"])
def test_a_prompt_read_in_two_parts(family: str, name: str) -> None:
    """A method that changes nothing but holds the last prompt token back leaves the contrast and the others' edits."""
    others = [entry("vhr"), entry("var"), entry("pai")]
    answers = []
    for methods in (others, [*others, IDLE]):
        with composed(family, name, methods):
            answers.append([answer(family, kind) for kind in ("one", "padded")])
    for usual, parted in zip(*answers, strict=True):
        assert_close(parted, usual)


@every_decoder
def test_behind_all_methods(name: str) -> None:
    """Rows of a batch equal the rows alone, in greedy search and in beams; neither the methods nor the decoder is lost."""
    case = shared("qwen2_vl")
    batch = prompts(case, "padded")
    methods = [entry("vhr"), entry("var"), entry("gift"), entry("pai")]
    with composed("qwen2_vl", name, methods) as plug:
        together = answer("qwen2_vl", "padded")
        assert set(plug.report()) == {"vhr", "var", "gift", "pai", name}
        beams = answer("qwen2_vl", "padded", num_beams=2).tokens
        for i in range(3):
            alone = generate(case.model, case.row(batch, i))
            assert_close(row(together, i), alone)
            assert generate(case.model, case.row(batch, i), num_beams=2).tokens[0].tolist() == beams[i].tolist()
    assert_sound(together.scores)
    with sightline.attach(case.model, {"methods": methods}, calibration=facts_of("qwen2_vl")):
        undecoded = answer("qwen2_vl", "padded")
    for other in (greedy("qwen2_vl", name, "padded"), undecoded):
        change = (other.scores.log_softmax(-1) - together.scores.log_softmax(-1)).abs().nan_to_num(0.0)
        assert (change.amax((1, 2)) > 1e-3).all()


@every_decoder
def test_half_precision(name: str) -> None:
    """Scores are float32 whatever the model is, and what float32 gives but for rounding."""
    case = tiny.fresh("llava_gqa")
    case.model.bfloat16()
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in prompts(case, "padded").items()}
    setup = SETUPS[name]
    facts = facts_of("llava_gqa")
    with sightline.attach(case.model, {"decoder": setup.config}, calibration=facts, **setup.options):
        scores = generate(case.model, inputs, max_new_tokens=1).scores[:, 0]
    assert scores.dtype == torch.float32
    assert_sound(scores)
    whole = greedy("llava_gqa", name, "padded").scores[:, 0]
    both = scores.isfinite() & whole.isfinite()
    assert both.any(-1).all()
    ours, theirs = scores[both].flatten(), whole[both].flatten()
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.9


# --- other families --------------------------------------------------------------------------------------------------

#: The families that `test_decoders_reference.py` leaves out.
OTHERS = [
    (family, name)
    for family in ("qwen3", "mistral", "llava_next", "llava_onevision", "qwen2_5_vl", "smolvlm", "paligemma")
    for name, setup in SETUPS.items()
    if shared(family).has_images or not setup.image
]


@pytest.mark.parametrize(("family", "name"), OTHERS, ids=["-".join(case) for case in OTHERS])
def test_every_family(family: str, name: str) -> None:
    """Rows of a padded batch equal the rows alone; the contrast changes the answer."""
    case = shared(family)
    batch = prompts(case, "padded")
    together = greedy(family, name, "padded")
    assert_sound(together.scores)
    bare = plain(family, "padded").scores.log_softmax(-1)
    assert ((together.scores.log_softmax(-1) - bare).abs().amax((1, 2)) > 1e-3).all()
    with attach(family, name):
        for i in range(3):
            assert_close(row(together, i), generate(case.model, case.row(batch, i)))


# --- nothing stays ---------------------------------------------------------------------------------------------------


@every_case
def test_nothing_leaks_into_the_next_call(family: str, name: str) -> None:
    """Prompts of other lengths and batch sizes in between, one of them cut off after its first token."""
    with attach(family, name):
        first = answer(family, "padded")
        other = answer(family, "other", max_new_tokens=1)
        answer(family, "pair", num_beams=3)
        assert answer(family, "padded").same_bits(first)
    with attach(family, name):
        assert answer(family, "other", max_new_tokens=1).same_bits(other)
    assert first.same_bits(greedy(family, name, "padded"))


@every_decoder
def test_detach_leaves_no_trace(name: str) -> None:
    """Down to identities and bits, on the family that notes most on its model (Qwen's rope offsets)."""
    case = shared("qwen2_vl")
    modes: dict[str, tuple[str, dict[str, Any]]] = {
        "padded": ("padded", {}),
        "static": ("padded", {} if name == "opera" else {"cache_implementation": "static"}),
        "beams": ("pair", {"num_beams": 3}),
    }
    before = {mode: answer("qwen2_vl", kind, **how) for mode, (kind, how) in modes.items()}
    snapshot = Snapshot(case.model)
    with attach("qwen2_vl", name):
        for kind, how in modes.values():
            answer("qwen2_vl", kind, **how)
        case.model(**prompts(case, "one"))
        answer("qwen2_vl", "pair", num_beams=3)  # last, as it was before
    snapshot.assert_same(case.model)
    for mode, (kind, how) in modes.items():
        assert answer("qwen2_vl", kind, **how).same_bits(before[mode]), mode


@every_case
def test_an_empty_plan_inside_is_the_plain_model(family: str, name: str) -> None:
    """Attachments nest: the inner, empty one has the plain bits, and the decoder is back behind it."""
    bare = plain(family, "padded")
    with attach(family, name):
        with sightline.attach(shared(family).model, {"methods": []}):
            assert answer(family, "padded").same_bits(bare)
        assert answer(family, "padded").same_bits(greedy(family, name, "padded"))
    assert answer(family, "padded").same_bits(bare)


@every_decoder
def test_a_failed_call_leaves_nothing(name: str) -> None:
    """An error in the middle of a pass, in a layer that the branch rides in, does not spoil the next call."""
    case = shared("llava_gqa")
    expected = greedy("llava_gqa", name, "padded")
    calls = []

    def fail(module: Any, args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    with attach("llava_gqa", name):
        hook = case.model.get_decoder().layers[-1].mlp.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            answer("llava_gqa", "padded")
        hook.remove()
        assert answer("llava_gqa", "padded").same_bits(expected)
    assert answer("llava_gqa", "padded").same_bits(plain("llava_gqa", "padded"))
