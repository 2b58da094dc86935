"""What attaching does to a model and to everything around it, and that all of it comes back."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
import transformers as tf

from tests.helpers import tiny
from tests.helpers.engine import METHODS, NEW, Answer, Snapshot, calibration, entry, fits, generate, prompts, shared

ALL_THREE = [entry("vhr"), entry("var"), entry("gift")]
HELD = [entry("vhr"), entry("gift", saliency_layers=[2], enhanced_layers=[1, 2, 3])]
PLAIN: list[Any] = []
NAMES = ["vhr", "var", "gift", "held gift", "vhr and held gift"]
FAMILIES = ["llava_gqa", "qwen2_vl", "gemma3", "idefics3"]


def attach(case: tiny.TinyCase, methods: list[Any] | None = None, **options: Any) -> sightline.Plug:
    """`methods` (default: all three) on a case's model."""
    config = {"methods": ALL_THREE if methods is None else methods}
    return sightline.attach(case.model, config, **{"calibration": calibration(case), **options})


def edited(case: tiny.TinyCase, methods: list[Any] | None = None, kind: str = "padded") -> Answer:
    """What the model says in an attachment of its own."""
    with attach(case, methods):
        return generate(case.model, prompts(case, kind))


def plain(case: tiny.TinyCase, kind: str = "padded") -> Answer:
    """What the model says as it is."""
    return generate(case.model, prompts(case, kind))


# --- attach and detach -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_attach_and_detach_without_a_run_leave_no_trace(family: str) -> None:
    case = shared(family)
    data = calibration(case)  # runs the model, on whose first run transformers installs hooks of its own
    snapshot = Snapshot(case.model)
    attach(case, [one for one in ALL_THREE if fits(next(iter(one)), family)], calibration=data).detach()
    snapshot.assert_same(case.model)


@pytest.mark.parametrize("family", FAMILIES)
def test_nested_attachments(family: str) -> None:
    """The innermost is in force, an empty one means the plain model, and the outer comes back."""
    case = shared(family)
    bare, vhr, gift = plain(case), edited(case, [entry("vhr")]), edited(case, [entry("gift")])
    snapshot = Snapshot(case.model)
    with attach(case, [entry("vhr")]):
        assert plain(case).same_bits(vhr)
        with attach(case, [entry("gift")]):
            assert plain(case).same_bits(gift)
            with attach(case, PLAIN):
                assert plain(case).same_bits(bare)
            assert plain(case).same_bits(gift)
        assert plain(case).same_bits(vhr)
    assert plain(case).same_bits(bare)
    snapshot.assert_same(case.model)


def test_detach_in_the_wrong_order() -> None:
    case = shared("llava")
    bare, vhr, gift = plain(case), edited(case, [entry("vhr")]), edited(case, [entry("gift")])
    snapshot = Snapshot(case.model)
    first, second, third = (attach(case, methods) for methods in ([entry("vhr")], [entry("gift")], PLAIN))
    second.detach()
    assert plain(case).same_bits(bare)
    third.detach()
    assert plain(case).same_bits(vhr)
    fourth = attach(case, [entry("gift")])
    first.detach()
    assert plain(case).same_bits(gift)
    fourth.detach()
    snapshot.assert_same(case.model)
    assert plain(case).same_bits(bare)


def test_detach_twice() -> None:
    case = shared("llava")
    snapshot = Snapshot(case.model)
    plug = attach(case)
    with plug:
        plug.detach()
        assert not case.model.__dict__.keys() & {"forward", "generate"}
        other = attach(case, [entry("vhr")])
    plug.detach()
    assert plain(case).same_bits(edited(case, [entry("vhr")]))
    other.detach()
    snapshot.assert_same(case.model)


def test_reports_belong_to_their_prompt() -> None:
    case = shared("llava")
    with attach(case) as plug:
        assert plug.report() == {}
        generate(case.model, prompts(case, "one"))
        assert list(plug.report()) == ["vhr", "var", "gift"]
        one = len(plug.report()["gift"]["saliency"])
        generate(case.model, prompts(case, "padded"))
        assert (one, len(plug.report()["gift"]["saliency"])) == (1, 3)
    with attach(case, PLAIN) as plug:
        generate(case.model, prompts(case, "one"))
        assert plug.report() == {}


# --- wrap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_wrap_and_unwrap(family: str) -> None:
    case = shared(family)
    bare = plain(case)
    snapshot = Snapshot(case.model)
    assert sightline.wrap(case.model, {"methods": ALL_THREE}, calibration=calibration(case)) is case.model
    wrapped = plain(case)
    assert not wrapped.same_bits(bare)
    assert sightline.unwrap(case.model) is case.model
    assert wrapped.same_bits(edited(case))
    snapshot.assert_same(case.model)
    assert plain(case).same_bits(bare)


def test_wrap_twice_keeps_the_second() -> None:
    case = shared("llava")
    snapshot = Snapshot(case.model)
    vhr = edited(case, [entry("vhr")])
    sightline.wrap(case.model, {"methods": ALL_THREE}, calibration=calibration(case))
    sightline.wrap(case.model, {"methods": [entry("vhr")]}, calibration=calibration(case))
    assert plain(case).same_bits(vhr)
    with attach(case, PLAIN):
        pass
    assert plain(case).same_bits(vhr)
    sightline.unwrap(case.model)
    snapshot.assert_same(case.model)


def test_a_second_wrap_that_fails_keeps_the_first() -> None:
    case = shared("llava")
    snapshot = Snapshot(case.model)
    vhr = edited(case, [entry("vhr")])
    sightline.wrap(case.model, {"methods": [entry("vhr")]}, calibration=calibration(case))
    with pytest.raises(sightline.ConfigError):
        sightline.wrap(case.model, "no-such-method")
    assert plain(case).same_bits(vhr)
    sightline.unwrap(case.model)
    snapshot.assert_same(case.model)


def test_unwrap_twice_and_without_wrap() -> None:
    case = shared("llava")
    snapshot = Snapshot(case.model)
    assert sightline.unwrap(sightline.unwrap(case.model)) is case.model
    snapshot.assert_same(case.model)


def test_unwrap_inside_an_attachment() -> None:
    case = shared("llava")
    snapshot = Snapshot(case.model)
    gift = edited(case, [entry("gift")])
    sightline.wrap(case.model, {"methods": [entry("vhr")]}, calibration=calibration(case))
    with attach(case, [entry("gift")]):
        sightline.unwrap(case.model)
        assert plain(case).same_bits(gift)
    snapshot.assert_same(case.model)


# --- several models --------------------------------------------------------------------------------------------------


def _twins() -> tuple[tiny.TinyCase, tiny.TinyCase]:
    """Two cases with equal weights and one and the same config object."""
    first, second = tiny.fresh("llava_gqa"), shared("llava_gqa")
    model = tf.LlavaForConditionalGeneration(first.model.config).eval().requires_grad_(False)
    model.load_state_dict(second.model.state_dict())
    model.generation_config = copy.deepcopy(first.model.generation_config)
    return first, dataclasses.replace(first, model=model)


def test_two_models_that_share_a_config() -> None:
    first, second = _twins()
    assert first.model.config is second.model.config
    bare = plain(second)
    snapshot, config = Snapshot(second.model), copy.deepcopy(second.model.config)
    with attach(first):
        snapshot.assert_same(second.model)
        assert second.model.config.to_dict() == config.to_dict()
        assert second.model.config.text_config._attn_implementation == "sdpa"
        ours = plain(first)
        assert plain(second).same_bits(bare)
        with attach(second, [entry("vhr")]):
            theirs = plain(second)
            assert plain(first).same_bits(ours)
        assert plain(second).same_bits(bare)
    assert theirs.same_bits(edited(second, [entry("vhr")]))
    snapshot.assert_same(second.model)
    assert plain(first).same_bits(bare)


def test_two_attached_models_take_turns() -> None:
    first, second = tiny.fresh("llava"), tiny.fresh("idefics3")
    alone = [edited(first), edited(second)]
    with attach(first), attach(second):
        assert plain(first).same_bits(alone[0])
        assert plain(second).same_bits(alone[1])
        steps = [_step_by_step(first), _step_by_step(second)]
        for _ in range(NEW):
            for answers in steps:
                next(answers)
    for case in (first, second):
        assert case.model.__dict__.keys().isdisjoint({"forward", "generate"})


def _step_by_step(case: tiny.TinyCase) -> Any:
    """Greedy decoding by hand that checks itself against `generate`, one token per `next`."""
    inputs = prompts(case, "one")
    expected = plain(case, "one")
    out = case.model(**inputs, use_cache=True)
    mask = inputs["attention_mask"]
    for step in range(NEW):
        torch.testing.assert_close(out.logits[:, -1], expected.logits[:, step], atol=1e-4, rtol=1e-4)
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=-1)
        token = out.logits[:, -1:].argmax(-1)
        out = case.model(input_ids=token, attention_mask=mask, past_key_values=out.past_key_values)
        yield


def test_a_thread_per_model_equals_serial() -> None:
    cases = [tiny.fresh("llava"), tiny.fresh("llava_gqa"), tiny.fresh("idefics3")]
    serial = [edited(case) for case in cases]
    results: dict[int, list[Answer]] = {}
    start = threading.Barrier(len(cases))

    def work(index: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        results[index] = [edited(cases[index]) for _ in range(6)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(serial):
        assert len(results[index]) == 6
        assert all(answer.same_bits(expected) for answer in results[index])


def test_a_copy_of_an_attached_model_never_runs_the_original() -> None:
    """A deep copy is a model of its own, or it is refused; it must not go on running the model it was copied from."""
    case = tiny.fresh("llava")
    inputs = prompts(case, "one")
    with attach(case, [entry("vhr")]):
        try:
            twin = copy.deepcopy(case.model)
        except sightline.SightlineError:
            return
        with torch.no_grad():
            twin.lm_head.weight.zero_()
        assert (twin(**inputs).logits == 0).all()
    assert (twin(**inputs).logits == 0).all()


def test_saving_an_attached_model_saves_the_plain_one(tmp_path: Path) -> None:
    case = tiny.fresh("llava")
    with attach(case, [entry("vhr")]):
        case.model.save_pretrained(tmp_path)
    assert "sightline" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    loaded = tf.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    before, after = case.model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


# --- exceptions ------------------------------------------------------------------------------------------------------


class Bomb(tf.LogitsProcessor):
    """Raises at its second call, in the middle of an answer."""

    def __init__(self, error: BaseException):
        self.error, self.calls = error, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores as they are."""
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return scores


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("methods", [ALL_THREE, HELD], ids=["together", "held back"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exception_between_steps(family: str, methods: list[Any], error: BaseException) -> None:
    case = shared(family)
    bare, ours = plain(case), edited(case, methods)
    snapshot = Snapshot(case.model)
    with attach(case, methods):
        with pytest.raises(type(error)):
            generate(case.model, prompts(case, "one"), logits_processor=tf.LogitsProcessorList([Bomb(error)]))
        assert plain(case).same_bits(ours)
    snapshot.assert_same(case.model)
    assert plain(case).same_bits(bare)


@pytest.mark.parametrize("passes", [0, 1, 2], ids=["first pass", "second pass", "third pass"])
@pytest.mark.parametrize("methods", [ALL_THREE, HELD], ids=["together", "held back"])
def test_an_exception_inside_a_pass(methods: list[Any], passes: int) -> None:
    """In the text-only pass, while the prompt is read, in decoding: hooks and plan of that pass must go."""
    case = shared("qwen2_vl")
    bare, ours = plain(case), edited(case, methods)
    snapshot = Snapshot(case.model)
    calls = 0

    def explode(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls > passes:
            raise KeyboardInterrupt

    with attach(case, methods):
        hook = case.model.get_decoder().layers[2].mlp.register_forward_pre_hook(explode)
        with pytest.raises(KeyboardInterrupt):
            generate(case.model, prompts(case, "one"))
        hook.remove()
        assert plain(case).same_bits(ours)
    plain(case)
    snapshot.assert_same(case.model)
    assert plain(case).same_bits(bare)


def test_an_exception_leaves_the_block_and_the_model_exact() -> None:
    case = shared("llava")
    snapshot = Snapshot(case.model)
    with pytest.raises(ZeroDivisionError), attach(case):
        raise ZeroDivisionError
    snapshot.assert_same(case.model)


@pytest.mark.parametrize("change", [{"heads": 3}, {"sink": {"dims": [10**6], "tau": 1.0}}], ids=str)
def test_a_failed_attach_leaves_the_model(change: dict[str, Any]) -> None:
    case = shared("llava")
    snapshot = Snapshot(case.model)
    data = {**calibration(case), **change}
    data.pop("visual_heads")
    with pytest.raises(sightline.CalibrationError):
        attach(case, calibration=data)
    snapshot.assert_same(case.model)
    with attach(case, [entry("vhr")]):
        with pytest.raises(sightline.CalibrationError):
            attach(case, calibration=data)
        assert plain(case).same_bits(edited(case, [entry("vhr")]))
    snapshot.assert_same(case.model)


# --- how the model is used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [PLAIN, ALL_THREE, HELD], ids=["empty", "together", "held back"])
@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3", "qwen3_vl"])
def test_plain_forward_has_full_outputs(family: str, methods: list[Any]) -> None:
    """Length, the cache on request, a choice of positions, and tuples: as without an attachment."""
    case = shared(family)
    inputs = prompts(case, "padded")
    length = inputs["input_ids"].shape[1]
    bare = case.model(**inputs, use_cache=True)
    with attach(case, methods):
        full = case.model(**inputs, use_cache=True)
        assert full.logits.shape == bare.logits.shape
        assert full.past_key_values.get_seq_length() == length
        assert case.model(**inputs, use_cache=False).past_key_values is None
        for kept in (1, 2, length):
            few = case.model(**inputs, logits_to_keep=kept).logits
            torch.testing.assert_close(few, full.logits[:, -kept:], atol=1e-4, rtol=1e-4)
        chosen = case.model(**inputs, logits_to_keep=torch.tensor([length - 3, length - 1])).logits
        torch.testing.assert_close(chosen, full.logits[:, [-3, -1]], atol=1e-4, rtol=1e-4)
        first = case.model(**inputs, return_dict=False)[0]
        torch.testing.assert_close(first, full.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("methods", [PLAIN, ALL_THREE, HELD], ids=["empty", "together", "held back"])
def test_hidden_states_and_loss_cover_the_prompt(methods: list[Any]) -> None:
    case = shared("llava")
    inputs = prompts(case, "padded")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with attach(case, methods):
        out = case.model(**inputs, labels=labels, output_hidden_states=True)
    assert {state.shape[1] for state in out.hidden_states} == {labels.shape[1]}
    targets, logits = labels[:, 1:].flatten(), out.logits[:, :-1].flatten(0, 1).float()
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100)
    torch.testing.assert_close(out.loss, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("methods", [ALL_THREE, HELD], ids=["together", "held back"])
def test_generated_hidden_states_cover_the_prompt(methods: list[Any]) -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    how = {"max_new_tokens": 2, "do_sample": False, "output_hidden_states": True, "return_dict_in_generate": True}
    with attach(case, methods):
        out = case.model.generate(**inputs, **how)
    assert [step[0].shape[1] for step in out.hidden_states] == [inputs["input_ids"].shape[1], 1]


@pytest.mark.parametrize("methods", [ALL_THREE, HELD], ids=["together", "held back"])
def test_positional_arguments(methods: list[Any]) -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    rest = {key: value for key, value in inputs.items() if key != "input_ids"}
    with attach(case, methods):
        by_name = case.model(**inputs).logits
        assert torch.equal(case.model(inputs["input_ids"], **rest).logits, by_name)
        tokens = case.model.generate(inputs["input_ids"], **rest, max_new_tokens=2, do_sample=False)
        named = case.model.generate(inputs=inputs["input_ids"], **rest, max_new_tokens=2, do_sample=False)
    assert torch.equal(tokens, named)


def test_without_attention_mask_every_token_counts() -> None:
    case = shared("llava")
    inputs = prompts(case, "one")
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with attach(case):
        assert torch.equal(case.model(**bare).logits, case.model(**inputs).logits)


@pytest.mark.parametrize("methods", [[entry("vhr")], [entry("var")], [entry("gift")], HELD[1:], HELD], ids=NAMES)
def test_right_padding_is_exact_or_refused(methods: list[Any]) -> None:
    """Generation wants padding on the left, but a plain forward may well get it on the right."""
    case = shared("llava")
    batch = prompts(case, "padded")
    rows = [case.row(batch, i) for i in range(3)]
    width = batch["input_ids"].shape[1]
    right = dict(batch)
    for key in ("input_ids", "attention_mask"):
        right[key] = torch.cat([torch.nn.functional.pad(row[key], (0, width - row[key].shape[1])) for row in rows])
    with attach(case, methods):
        try:
            together = case.model(**right).logits
        except sightline.LayoutError:
            return
        for i, row in enumerate(rows):
            length = row["input_ids"].shape[1]
            alone = case.model(**row).logits[0]
            torch.testing.assert_close(together[i, :length], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", list(METHODS))
def test_signatures_and_docs_are_kept(method: str) -> None:
    case = shared("llava")
    generate_signature, forward_signature = (inspect.signature(f) for f in (case.model.generate, case.model.forward))
    with attach(case, [entry(method)]):
        assert inspect.signature(case.model.generate) == generate_signature
        assert inspect.signature(case.model.forward) == forward_signature
        assert case.model.generate.__doc__ == type(case.model).generate.__doc__
        assert isinstance(case.model, tf.LlavaForConditionalGeneration)


def test_vision_tower_keeps_sdpa() -> None:
    case = tiny.fresh("llava")
    tower = case.model.model.vision_tower
    seen: list[str] = []
    hook = tower.register_forward_pre_hook(lambda module, args: seen.append(module.config._attn_implementation))
    with attach(case):
        generate(case.model, prompts(case, "one"))
        assert case.model.config.vision_config._attn_implementation == "sdpa"
        assert case.model.config.text_config._attn_implementation == "sightline"
    hook.remove()
    assert seen == ["sdpa"], "the picture is encoded once"
    assert case.model.config.text_config._attn_implementation == "sdpa"


def test_the_picture_is_encoded_once_per_prompt() -> None:
    """Neither VHR's text pass nor the held-back token runs the vision tower again."""
    case = tiny.fresh("llava")
    calls: list[int] = []
    hook = case.model.model.vision_tower.register_forward_pre_hook(lambda module, args: calls.append(1))
    with attach(case, [entry("gift", saliency_layers=[2], enhanced_layers=[1, 2, 3])]):
        generate(case.model, prompts(case, "one"))
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_an_eager_model_runs_on_sdpa_and_comes_back_eager(family: str) -> None:
    case = tiny.fresh(family)
    reference = edited(case)
    case.model.set_attn_implementation("eager")
    bare = plain(case)
    snapshot = Snapshot(case.model)
    with attach(case):
        ours = plain(case)
    snapshot.assert_same(case.model)
    text = case.model.config.get_text_config()
    assert text._attn_implementation == "eager"
    assert ours.tokens.tolist() == reference.tokens.tolist()
    torch.testing.assert_close(ours.logits, reference.logits, atol=1e-4, rtol=1e-4)
    assert plain(case).same_bits(bare)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("methods", [ALL_THREE, HELD], ids=["together", "held back"])
@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl"])
def test_half_precision_is_finite_and_near(family: str, methods: list[Any], dtype: torch.dtype) -> None:
    """Finite, in the model's own type, edited, and not far from the same edits in single precision."""
    case = tiny.fresh(family)
    full = edited(case, methods)
    case.model.to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in prompts(case, "padded").items()}
    with attach(case, methods):
        ours = generate(case.model, inputs)
        forward = case.model(**inputs).logits
    assert forward.dtype == dtype
    assert torch.isfinite(ours.logits).all()
    assert torch.isfinite(forward).all()
    correlation = torch.corrcoef(torch.stack([ours.logits[:, 0].flatten().float(), full.logits[:, 0].flatten()]))[0, 1]
    assert correlation > 0.9
    assert not generate(case.model, inputs).same_bits(ours)


def _in_inference_mode(case: tiny.TinyCase) -> Answer:
    with torch.inference_mode():
        return plain(case)


def _in_no_grad(case: tiny.TinyCase) -> Answer:
    with torch.no_grad():
        return plain(case)


@pytest.mark.parametrize("methods", [ALL_THREE, HELD], ids=["together", "held back"])
@pytest.mark.parametrize("act", [_in_inference_mode, _in_no_grad])
def test_gradient_modes_do_not_matter(act: Callable[[tiny.TinyCase], Answer], methods: list[Any]) -> None:
    case = shared("llava")
    ours = edited(case, methods)
    with attach(case, methods):
        assert act(case).same_bits(ours)
        assert plain(case).same_bits(ours)
        with torch.inference_mode():
            frozen = case.model(**prompts(case, "one")).logits.clone()
        case.model(**prompts(case, "other"))
        torch.testing.assert_close(case.model(**prompts(case, "one")).logits, frozen, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("methods", [[entry("vhr")], [entry("var")], [entry("gift")], HELD[1:], HELD], ids=NAMES)
def test_backward_through_an_edited_forward(methods: list[Any]) -> None:
    """The loss is the one without gradients, and every weight of the decoder gets a finite gradient."""
    case = tiny.fresh("llava_gqa")
    inputs = prompts(case, "padded")
    with attach(case, methods):
        expected = case.model(**inputs).logits
        case.model.requires_grad_(True)
        logits = case.model(**inputs).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        logits[:, -1].float().logsumexp(-1).sum().backward()
    gradients = [parameter.grad for parameter in case.model.get_decoder().parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients if gradient is not None)


def test_generation_config_objects_are_respected_and_left() -> None:
    case = shared("llava")
    given = tf.GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=tiny.PAD, eos_token_id=None)
    before = repr(given)
    with attach(case):
        out = case.model.generate(**prompts(case, "padded"), generation_config=given)
    assert repr(given) == before
    assert out[:, -2:].tolist() == edited(case).tokens[:, :2].tolist()


def test_stopping_criteria_and_processors_work() -> None:
    case = shared("llava")

    class Stop(tf.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= length + 2)

    inputs = prompts(case, "padded")
    length = inputs["input_ids"].shape[1]
    with attach(case):
        short = case.model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, stopping_criteria=tf.StoppingCriteriaList([Stop()])
        )
        banned = edited(case).tokens[:, 0].tolist()
        other = case.model.generate(**inputs, max_new_tokens=1, do_sample=False, suppress_tokens=banned)
    assert short[:, length:].tolist() == edited(case).tokens[:, :2].tolist()
    assert not set(other[:, -1].tolist()) & set(banned)
