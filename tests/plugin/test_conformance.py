"""Every method on every family in every mode of `generate`, on tiny random models.

What is checked: an empty plan computes the plain model's bits; an attached method changes something; rows of a batch equal
the same rows alone; caches, beams, sampling and streaming behave as on the plain model; nothing leaks from one call into
the next; after detaching, model and answers are exactly as before. Methods come from the registry, so a new one is
tested by being there. Compositions, and GIFT with its last prompt token held back, run through the same tests on the
families that differ most in how they read a prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import sightline
import torch

from tests.helpers import tiny
from tests.helpers.engine import (
    METHODS,
    NEW,
    ONLY,
    Answer,
    Snapshot,
    calibration,
    decoder_layers,
    entry,
    fits,
    generate,
    prompts,
    shared,
)
from tests.helpers.matrix import covering
from tests.helpers.modes import MODES

PLAIN: list[Any] = []
LATE = {"saliency_layers": [2], "enhanced_layers": [1, 2, 3]}  # saliency behind the first enhanced layer: held back
HELD = entry("gift", **LATE)
COMPOSITIONS: dict[str, list[Any]] = {
    "vhr+var": [entry("vhr"), entry("var")],
    "vhr+gift": [entry("vhr"), entry("gift")],
    "var+gift": [entry("var"), entry("gift")],
    "gift+var": [entry("gift"), entry("var")],
    "vhr+var+gift": [entry("vhr"), entry("var"), entry("gift")],
    "held_gift": [HELD],
    "vhr+held_gift": [entry("vhr"), HELD],
    "var+held_gift": [entry("var"), HELD],
    "vhr+var+held_gift": [entry("vhr"), entry("var"), HELD],
}
SETUPS: dict[str, list[Any]] = {**{name: [entry(name)] for name in METHODS}, **COMPOSITIONS}
COMPOSED_FAMILIES = ["llava_gqa", "qwen2_vl", "gemma3", "idefics3"]
VISION, TEXT = tiny.names(images=True), tiny.names(images=False)
BLIND = [name for name, method in METHODS.items() if not method.needs_image]
NEEDY = [name for name, method in METHODS.items() if method.needs_image]

SINGLE = [(family, name) for family in VISION for name in METHODS if fits(name, family)]
SINGLE += [(family, name) for family in TEXT for name in BLIND]
CASES = SINGLE + [(family, name) for family in COMPOSED_FAMILIES for name in COMPOSITIONS]
SEEING = [case for case in CASES if case[0] in VISION]
every_case = pytest.mark.parametrize(("family", "setup"), covering(CASES))
every_seeing_case = pytest.mark.parametrize(("family", "setup"), covering(SEEING))


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


def attach(family: str, methods: list[Any]) -> sightline.Plug:
    """`methods` on the shared model of a family."""
    case = shared(family)
    return sightline.attach(case.model, {"methods": methods}, calibration=calibration(case))


def answer(family: str, mode: str) -> Answer:
    """What the family's model says now, with whatever is attached."""
    kind, how = MODES[mode]
    case = shared(family)
    return generate(case.model, prompts(case, kind), **how)


@functools.cache
def plain(family: str, mode: str) -> Answer:
    """What the model says with nothing attached."""
    return answer(family, mode)


@functools.cache
def edited(family: str, setup: str, mode: str) -> Answer:
    """What the model says in a fresh attachment of its own."""
    with attach(family, SETUPS[setup]):
        return answer(family, mode)


@functools.cache
def edited_alone(family: str, setup: str, kind: str) -> list[Answer]:
    """What each row of a batch says when it runs alone and without padding."""
    case = shared(family)
    batch = prompts(case, kind)
    with attach(family, SETUPS[setup]):
        return [generate(case.model, case.row(batch, i)) for i in range(len(batch["input_ids"]))]


def assert_close(ours: Answer, reference: Answer) -> None:
    """The same tokens, and logits that differ by rounding only."""
    assert ours.tokens.tolist() == reference.tokens.tolist()
    torch.testing.assert_close(ours.logits, reference.logits, atol=1e-4, rtol=1e-4)


def row(batch: Answer, i: int) -> Answer:
    """One row of an answer."""
    return Answer(*(part[i : i + 1] for part in (batch.tokens, batch.logits, batch.scores)))


# --- nothing to do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_empty_plan_has_the_plain_bits(family: str) -> None:
    with attach(family, PLAIN):
        wrong = [mode for mode in MODES if not answer(family, mode).same_bits(plain(family, mode))]
    assert not wrong


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_only_the_decoder_runs_our_attention(family: str) -> None:
    """Every decoder layer is reached (a config of its own would keep sdpa unnoticed), the vision tower is not."""
    model = shared(family).model
    ours = {id(tiny.attention(layer)) for layer in decoder_layers(model)}
    with attach(family, PLAIN):
        for name, module in model.named_modules():
            implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
            if id(module) in ours:
                assert implementation == "sightline", name
            elif "vision" in name or "visual" in name:
                assert implementation in (None, "sdpa"), name


# --- something to do -------------------------------------------------------------------------------------------------


@every_case
def test_changes_the_answer(family: str, setup: str) -> None:
    """Both while the prompt is read or in decoding: the first logits, or the later ones while tokens agree."""
    for mode in ("one", "padded"):
        ours, reference = edited(family, setup, mode), plain(family, mode)
        assert torch.isfinite(ours.logits).all()
        change = (ours.logits - reference.logits).abs().amax((1, 2))
        assert (change > 1e-3).all(), f"{mode}: {change.tolist()}"


@every_case
def test_rows_of_a_padded_batch_equal_rows_alone(family: str, setup: str) -> None:
    batch = edited(family, setup, "padded")
    for i, alone in enumerate(edited_alone(family, setup, "padded")):
        assert_close(row(batch, i), alone)


@every_seeing_case
def test_rows_with_several_images_equal_rows_alone(family: str, setup: str) -> None:
    batch = edited(family, setup, "images")
    for i, alone in enumerate(edited_alone(family, setup, "images")):
        assert_close(row(batch, i), alone)


@every_seeing_case
def test_a_row_without_image_among_others(family: str, setup: str) -> None:
    """The rows with images are edited as they are alone; methods that need an image leave the other as it is."""
    case = shared(family)
    if not case.uneven:
        pytest.skip(case.uneven_reason)
    batch = prompts(case, "mixed")
    rows = [case.row(batch, i) for i in range(3)]
    blind = [name for method in SETUPS[setup] for name in method if name in BLIND]
    bare = generate(case.model, rows[1])
    with attach(family, SETUPS[setup]):
        together = generate(case.model, batch)
        for i in (0, 2):
            assert_close(row(together, i), generate(case.model, rows[i]))
    if not blind:
        assert_close(row(together, 1), bare)


@every_case
def test_static_cache_equals_dynamic(family: str, setup: str) -> None:
    assert_close(edited(family, setup, "static"), edited(family, setup, "padded"))


@every_case
def test_beams(family: str, setup: str) -> None:
    """Reordered rows keep their edits: a batch says what its rows say alone, and repeats itself."""
    case = shared(family)
    batch = prompts(case, "pair")
    beams = edited(family, setup, "beams").tokens
    with attach(family, SETUPS[setup]):
        assert torch.equal(answer(family, "beams").tokens, beams)
        for i in range(2):
            alone = generate(case.model, case.row(batch, i), num_beams=3)
            assert alone.tokens[0].tolist() == beams[i].tolist()
    best = edited(family, setup, "several beams").tokens
    assert best.shape[0] == 4
    assert torch.equal(best[::2], beams)


@every_case
def test_sampling(family: str, setup: str) -> None:
    with attach(family, SETUPS[setup]):
        assert answer(family, "sampling").same_bits(edited(family, setup, "sampling"))
        certain = generate(shared(family).model, prompts(shared(family), "padded"), do_sample=True, top_k=1)
    assert_close(certain, edited(family, setup, "padded"))
    several = edited(family, setup, "several answers")
    assert several.tokens.shape == (4, NEW)
    # The first logits come from the prompt alone: equal for both answers to a prompt, and not for two prompts.
    torch.testing.assert_close(several.logits[::2, 0], several.logits[1::2, 0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(several.logits[0, 0], several.logits[2, 0], atol=1e-2)


@every_case
def test_streaming_and_outputs(family: str, setup: str) -> None:
    case, streamer = shared(family), Collector()
    inputs = prompts(case, "one")
    with attach(family, SETUPS[setup]):
        out = generate(case.model, inputs, streamer=streamer)
        bare = case.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert out.same_bits(edited(family, setup, "one"))
    assert streamer.ended
    assert streamer.tokens == inputs["input_ids"][0].tolist() + out.tokens[0].tolist()
    assert bare[0, -NEW:].tolist() == out.tokens[0].tolist()
    assert torch.equal(out.scores, out.logits)
    assert out.logits.argmax(-1).tolist() == out.tokens.tolist()


@every_case
def test_nothing_leaks_into_the_next_call(family: str, setup: str) -> None:
    """Prompts of other lengths and batch sizes in between, one of them cut off after its first token."""
    case = shared(family)
    with attach(family, SETUPS[setup]):
        first = answer(family, "padded")
        other = generate(case.model, prompts(case, "other"), max_new_tokens=1)
        pair = generate(case.model, prompts(case, "pair"), num_beams=3)
        second = answer(family, "padded")
        one = answer(family, "one")
    with attach(family, SETUPS[setup]):
        assert generate(case.model, prompts(case, "other"), max_new_tokens=1).same_bits(other)
    assert first.same_bits(edited(family, setup, "padded"))
    assert second.same_bits(first)
    assert pair.same_bits(edited(family, setup, "beams"))
    assert one.same_bits(edited(family, setup, "one"))


@every_case
def test_detach_leaves_no_trace(family: str, setup: str) -> None:
    case = shared(family)
    before = answer(family, "padded")
    snapshot = Snapshot(case.model)
    with attach(family, SETUPS[setup]):
        answer(family, "padded")
    snapshot.assert_same(case.model)
    assert answer(family, "padded").same_bits(before)
    for mode in ("one", "static", "beams"):
        assert answer(family, mode).same_bits(plain(family, mode))


@every_case
def test_a_plain_forward_sees_the_whole_prompt(family: str, setup: str) -> None:
    """Logits of every position, the last of them those that generation starts from."""
    case = shared(family)
    mode = (
        "one" if setup == "focus" else "padded"
    )  # it heeds absolute positions, which a forward counts from the padding
    inputs = prompts(case, mode)
    with attach(family, SETUPS[setup]):
        logits = case.model(**inputs).logits
    assert logits.shape[:2] == inputs["input_ids"].shape
    first = edited(family, setup, mode).logits[:, 0]
    torch.testing.assert_close(logits[:, -1].float(), first.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("method", [name for name in NEEDY if name not in ONLY])
def test_a_text_model_refuses_methods_that_need_an_image(family: str, method: str) -> None:
    case = shared(family)
    inputs = prompts(case, "one")
    snapshot = Snapshot(case.model)
    with attach(family, [entry(method)]), pytest.raises(sightline.LayoutError, match=method):
        generate(case.model, inputs)
    snapshot.assert_same(case.model)
    assert answer(family, "one").same_bits(plain(family, "one"))


# --- the held-back last token ------------------------------------------------------------------------------------------

IDLE = entry("gift", alpha=0.0, **LATE)  # multiplies by exp(0): only the reading in two parts remains
GAZING = [family for family in VISION if fits("gift", family)]
HOLDING = [family for family in GAZING if family != "paligemma"]


def _positions(model: Any, act: Callable[[], Any]) -> list[torch.Tensor]:
    """The position ids that the decoder got, pass by pass."""
    seen: list[torch.Tensor] = []

    def see(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"].clone())

    hook = tiny.decoder(model).register_forward_pre_hook(see, with_kwargs=True)
    act()
    hook.remove()
    return seen


@pytest.mark.parametrize("family", GAZING)
@pytest.mark.parametrize("mode", ["padded", "images", "static", "beams"])
def test_held_back_token_alone_changes_nothing(family: str, mode: str) -> None:
    """Reading the prompt in two parts, with a multiplier of 1, is the plain model up to rounding."""
    with attach(family, [IDLE]):
        ours = answer(family, mode)
    assert_close(ours, plain(family, mode))


@pytest.mark.parametrize("family", GAZING)
@pytest.mark.parametrize("partner", ["vhr", "var", "vhr+var"])
def test_held_back_token_does_not_disturb_other_methods(family: str, partner: str) -> None:
    """VHR must still choose its heads on the whole prompt, VAR must still find sinks in both parts."""
    with attach(family, SETUPS[partner]):
        alone = answer(family, "padded")
    with attach(family, [*SETUPS[partner], IDLE]):
        together = answer(family, "padded")
    assert_close(together, alone)


@pytest.mark.parametrize("family", HOLDING)
def test_held_back_token_keeps_its_position(family: str) -> None:
    """Rotary embeddings see differences only, so a shifted row would not show in logits."""
    case = shared(family)
    inputs = prompts(case, "padded")
    usual = _positions(case.model, lambda: generate(case.model, inputs))
    with attach(family, [IDLE]):
        parted = _positions(case.model, lambda: generate(case.model, inputs))
    assert len(parted) == len(usual) + 1
    valid = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(3, NEW - 1)], dim=-1).bool()
    ours, reference = (torch.cat(part, dim=-1).masked_fill(~valid, -1) for part in (parted, usual))
    assert torch.equal(ours, reference)


@pytest.mark.parametrize("setup", ["held_gift", "vhr+held_gift"])
@pytest.mark.parametrize("mode", ["one", "padded"])
def test_paligemma_reads_the_prompt_twice(setup: str, mode: str) -> None:
    """Its prompt rows see later ones, so no token can be held back: the prompt is read once more instead."""
    with attach("paligemma", SETUPS[setup]):
        edited = answer("paligemma", mode)
    assert not edited.same_bits(plain("paligemma", mode))
    assert answer("paligemma", mode).same_bits(plain("paligemma", mode))
