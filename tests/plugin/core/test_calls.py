"""Calls of an attached model from several threads, from inside a call, and by ways that go round the edits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sightline
import torch
import transformers as tf
from sightline import CallError, UnsupportedModelError
from sightline.plugin.core.queue import CallQueue

from tests.helpers import tiny
from tests.helpers.engine import Answer, Snapshot, calibration, entry, generate, prompts, shared

FAMILIES = ["llava_gqa", "qwen2_vl", "gemma3"]
CONFIGS: dict[str, Any] = {"gift": {"methods": [entry("gift")]}, "vcd": {"decoder": "vcd"}}


def attach(case: tiny.TinyCase, config: str = "gift", **options: Any) -> sightline.Plug:
    return sightline.attach(case.model, CONFIGS[config], calibration=calibration(case), **options)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_threads_get_the_answers_that_they_would_get_alone(family: str, config: str) -> None:
    case = shared(family)
    asked = [prompts(case, kind) for kind in ("one", "padded", "other") * 4]
    with attach(case, config):
        alone = [generate(case.model, inputs) for inputs in asked]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda inputs: generate(case.model, inputs), asked))
    assert all(mine.same_bits(theirs) for mine, theirs in zip(together, alone, strict=True))


def test_asyncio() -> None:
    case = shared("llava_gqa")
    asked = [prompts(case, kind) for kind in ("one", "padded")]

    async def both() -> list[Answer]:
        return await asyncio.gather(*(asyncio.to_thread(generate, case.model, inputs) for inputs in asked))

    with attach(case):
        alone = [generate(case.model, inputs) for inputs in asked]
        together = asyncio.run(both())
    assert all(mine.same_bits(theirs) for mine, theirs in zip(together, alone, strict=True))


class Streamer(tf.generation.streamers.BaseStreamer):
    """Calls `act` once the first token has come."""

    def __init__(self, act: Callable[[], Any]):
        self.act, self.seen = act, 0

    def put(self, value: Any) -> None:
        self.seen += 1
        if self.seen == 2:
            self.act()

    def end(self) -> None:
        pass


def test_leaving_waits_for_the_answer_of_another_thread() -> None:
    case, inputs = shared("llava_gqa"), prompts(shared("llava_gqa"), "one")
    with attach(case):
        expected = generate(case.model, inputs).tokens
    bare = generate(case.model, inputs).tokens
    assert not torch.equal(expected, bare)
    begun, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        begun.set()
        assert go_on.wait(60)

    plug = attach(case)
    with ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(
            case.model.generate, **inputs, max_new_tokens=4, do_sample=False, streamer=Streamer(pause)
        )
        assert begun.wait(60)
        leaving = pool.submit(plug.detach)
        with pytest.raises(TimeoutError):
            leaving.result(0.2)
        go_on.set()
        answer = streamed.result(60)[:, inputs["input_ids"].shape[1] :]
        leaving.result(60)
    assert torch.equal(answer, expected)
    assert torch.equal(generate(case.model, inputs).tokens, bare)


INSIDE: dict[str, Callable[[Any, Any, sightline.Plug], Any]] = {
    "generate": lambda model, inputs, plug: model.generate(**inputs, max_new_tokens=1),
    "forward": lambda model, inputs, plug: model(**inputs),
    "score": lambda model, inputs, plug: sightline.score(model, inputs, [[[5]]]),
    "attach": lambda model, inputs, plug: sightline.attach(model, {}),
    "detach": lambda model, inputs, plug: plug.detach(),
}


@pytest.mark.parametrize("call", INSIDE)
def test_a_call_from_inside_a_call_is_refused_and_changes_nothing(call: str) -> None:
    case = shared("llava_gqa")
    inputs, other = prompts(case, "one"), prompts(case, "other")
    refusals = []
    with attach(case) as plug:
        expected = generate(case.model, inputs)

        def act() -> None:
            with pytest.raises(CallError) as caught:
                INSIDE[call](case.model, other, plug)
            refusals.append(caught.value)

        assert generate(case.model, inputs, streamer=Streamer(act)).same_bits(expected)
        assert len(refusals) == 1
        assert generate(case.model, inputs).same_bits(expected)


def test_threads_may_attach_and_detach() -> None:
    """Each brings the same configuration; the model comes out as it went in."""
    case, inputs = shared("llava_gqa"), prompts(shared("llava_gqa"), "one")
    known = calibration(case)
    with attach(case):
        expected = generate(case.model, inputs)
    snapshot = Snapshot(case.model)

    def once(_: int) -> Answer:
        with sightline.attach(case.model, CONFIGS["gift"], calibration=known):
            return generate(case.model, inputs)

    with ThreadPoolExecutor(4) as pool:
        assert all(said.same_bits(expected) for said in pool.map(once, range(12)))
    snapshot.assert_same(case.model)


def test_the_queue_keeps_the_order_of_the_calls() -> None:
    queue, order = CallQueue(), []

    def call(number: int) -> None:
        with queue.turn(), queue.turn():
            order.append(number)

    with queue.turn():
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=call, args=(number,)))
            threads[-1].start()
            while len(queue._line) < number + 2:
                pass
    for thread in threads:
        thread.join()
    assert order == list(range(5))


# --- round the edits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "blip_2"])
def test_switching_the_attention_is_refused_while_attached(family: str) -> None:
    case = shared(family)
    with sightline.attach(case.model, {"methods": [entry("vhr")]}, calibration=calibration(case)):
        for module in (case.model, case.model.get_decoder()):
            with pytest.raises(CallError, match=r"set_attn_implementation .* detach"):
                module.set_attn_implementation("eager")
    assert "set_attn_implementation" not in case.model.__dict__


def test_a_switched_attention_is_noticed_in_the_next_pass() -> None:
    case = shared("llava_gqa")
    with attach(case):
        case.model.config.get_text_config()._attn_implementation_internal = "sdpa"
        with pytest.raises(UnsupportedModelError, match="switched to 'sdpa'"):
            generate(case.model, prompts(case, "one"))


def test_a_layer_that_runs_another_attention_is_noticed() -> None:
    case = shared("llava_gqa")
    layer = tiny.decoder(case.model).layers[2].self_attn
    with attach(case):
        kept = layer.config
        layer.config = type(kept).from_dict(kept.to_dict())
        layer.config._attn_implementation_internal = "sdpa"
        try:
            with pytest.raises(UnsupportedModelError, match="layer 2 were not carried out"):
                generate(case.model, prompts(case, "one"))
        finally:
            layer.config = kept


def test_continuous_batching_is_refused_while_attached() -> None:
    case = shared("llama")
    config = {"methods": [{"zerotuning": {}}]}
    with sightline.attach(case.model, config), pytest.raises(CallError, match="generate_batch"):
        case.model.generate_batch([[1, 2, 3]])


def test_generate_that_was_taken_before_attach_is_refused() -> None:
    case, inputs = shared("llava_gqa"), prompts(shared("llava_gqa"), "one")
    taken = case.model.generate
    bare = taken(**inputs, max_new_tokens=2)
    with attach(case):
        with pytest.raises(CallError, match="taken from the model before attach"):
            taken(**inputs, max_new_tokens=2)
        case.model.generate(**inputs, max_new_tokens=2)
        with sightline.attach(case.model, {}):
            assert torch.equal(taken(**inputs, max_new_tokens=2), bare)
    assert torch.equal(taken(**inputs, max_new_tokens=2), bare)


@pytest.mark.parametrize("config", [{}, {"methods": [entry("vhr")]}])
def test_attention_weights_are_refused_while_attached(config: Any) -> None:
    case, inputs = shared("llava_gqa"), prompts(shared("llava_gqa"), "one")
    with sightline.attach(case.model, config, calibration=calibration(case)):
        with pytest.raises(UnsupportedModelError, match="output_attentions"):
            case.model(**inputs, output_attentions=True)
        with pytest.raises(UnsupportedModelError, match="output_attentions"):
            generate(case.model, inputs, output_attentions=True)


@pytest.mark.parametrize("implementation", ["flex_attention", "flash_attention_2", "flash_attention_3"])
def test_a_model_loaded_with_another_kernel_runs_on_sdpa_while_attached(implementation: str) -> None:
    """The kernels are not installed here: the config says what the model runs, and it says so again behind the call."""
    case = tiny.fresh("llava")
    with attach(case):
        wanted = generate(case.model, prompts(case, "padded"))
    text = case.model.config.text_config
    text._attn_implementation_internal = implementation
    before = Snapshot(case.model)
    with attach(case):
        assert generate(case.model, prompts(case, "padded")).same_bits(wanted)
    before.assert_same(case.model)
    assert text._attn_implementation == implementation
