"""Every contrastive decoder against its naive float64 reference (`naive.py`), token by token and score by score.

The attached models run in float64, so that no near tie decides a token. A reference is causal: asked once with the
engine's own tokens it gives the scores of every step, and where each step's best token is the engine's, the greedy
answers agree. `test_the_reference_*` check that shortcut, and the reference itself on the plain model.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from typing import Any

import pytest
import sightline
import torch
from sightline.decoders import vcd

from tests.helpers import engine, naive, tiny
from tests.helpers.engine import LENGTHS, calibration
from tests.helpers.naive import SETUPS, VARIANTS, Setup

NEW = 8
TEXT = ["llama", "qwen2", "gemma3_text", "mistral_sliding"]
VISION = ["llava", "llava_gqa", "qwen2_vl", "gemma3", "internvl", "qwen3_vl", "idefics3"]
VISION += ["instructblip", "blip_2", "mllama"]
SHORTER = ["icd", "cad", "pai_guidance", "m3id"]  # their branch's prompt has another length
REFUSED = [
    ("qwen3_vl", "avisc"),
    *(("mllama", name) for name, setup in SETUPS.items() if not setup.fits("mllama")),
    *(("blip_2", name) for name in SHORTER),
]  # see `test_decoders_bad_input.py`
CASES = [
    (family, name)
    for family in TEXT + VISION
    for name, setup in SETUPS.items()
    if (family in VISION or not setup.image) and (family, name) not in REFUSED
]
BOTH: dict[str, Setup] = {**SETUPS, **VARIANTS}
VARIED = [("llava_gqa", name) for name in VARIANTS] + [
    ("gemma3_text", name) for name, setup in VARIANTS.items() if not setup.image
]


@functools.cache
def case_of(family: str) -> tiny.TinyCase:
    """The family's case with a float64 model of its own."""
    case = tiny.get(family)
    return replace(case, model=copy.deepcopy(case.model).double())


@functools.cache
def facts_of(family: str) -> dict[str, Any]:
    """A calibration with every section, measured before anything is attached."""
    return calibration(tiny.get(family), **naive.sections(tiny.get(family)))


def reference(family: str) -> naive.Naive:
    return naive.of(tiny.get(family).model)


def prompts(case: tiny.TinyCase, kind: str) -> tiny.Inputs:
    """One prompt, a left-padded batch of three, or such a batch with several pictures per row; float64 pixels."""
    inputs = {
        "one": lambda: case.inputs(1, seed=5),
        "padded": lambda: case.inputs(3, lengths=LENGTHS),
        "images": lambda: engine.prompts(case, "images"),
    }[kind]()
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


def attach(family: str, setup: Setup, methods: list[Any] | None = None) -> sightline.Plug:
    config = {"methods": methods or [], "decoder": setup.config}
    return sightline.attach(case_of(family).model, config, calibration=facts_of(family), **setup.options)


def generate(family: str, inputs: tiny.Inputs, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, NEW] and scores [B, NEW, V] of a greedy answer."""
    wanted = {"output_scores": True, "return_dict_in_generate": True, "do_sample": False, "max_new_tokens": NEW}
    out = case_of(family).model.generate(**inputs, **{**wanted, **how})
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.scores, dim=1)


def assert_scores(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected, atol=2e-5, rtol=2e-5)


def assert_rows(family: str, decoder: naive.Decoder, inputs: tiny.Inputs, **how: Any) -> None:
    """The attached model answers each row of a batch as the reference does the row alone."""
    tokens, scores = generate(family, inputs, **how)
    for i, row in enumerate(tokens.tolist()):
        expected = decoder(reference(family), case_of(family).row(inputs, i), row[:-1])
        assert row == expected.argmax(-1).tolist(), f"row {i}"
        assert_scores(scores[i], expected)


# --- the reference itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TEXT + VISION)
def test_the_reference_is_the_plain_model(family: str) -> None:
    inputs = prompts(case_of(family), "padded")
    assert_rows(family, naive.Reference(), inputs)


@pytest.mark.parametrize("name", SETUPS)
def test_the_reference_is_causal(name: str) -> None:
    """All steps of a given answer at once are what greedy search sees step by step."""
    case, model = case_of("llava_gqa"), reference("llava_gqa")
    prompt = prompts(case, "one")
    tokens, scores = naive.greedy(model, SETUPS[name].reference, prompt, NEW)
    torch.testing.assert_close(SETUPS[name].reference(model, prompt, tokens[:-1]), scores, atol=1e-9, rtol=1e-9)
    with attach("llava_gqa", SETUPS[name]):
        assert generate("llava_gqa", prompt)[0].tolist() == [tokens]


@pytest.mark.parametrize("name", BOTH)
def test_the_reference_differs_from_plain(name: str) -> None:
    """A branch that changed nothing would make half of the tests here idle."""
    setup = BOTH[name]
    case, model = case_of("llava_gqa"), reference("llava_gqa")
    prompt = prompts(case, "one")
    ours = setup.reference(model, prompt, [20, 30]).log_softmax(-1)
    plain = naive.Reference()(model, prompt, [20, 30]).log_softmax(-1)
    assert float((ours - plain).abs().max()) > 1e-3, "fifty times what is tolerated"


# --- greedy search ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), CASES)
def test_greedy(family: str, name: str) -> None:
    for kind in ("one", "padded"):
        inputs = prompts(case_of(family), kind)
        with attach(family, SETUPS[name]):
            assert_rows(family, SETUPS[name].reference, inputs)


@pytest.mark.parametrize(("family", "name"), VARIED)
def test_settings(family: str, name: str) -> None:
    inputs = prompts(case_of(family), "padded")
    with attach(family, VARIANTS[name]):
        assert_rows(family, VARIANTS[name].reference, inputs)


def test_early_layers_of_a_model_with_tied_embeddings() -> None:
    """`low` leaves out layer 0, whose readout would be the input token itself."""
    with attach("llama", VARIANTS["dola low"]):
        assert_rows("llama", naive.DoLa(layers=[2]), prompts(case_of("llama"), "padded"))


def test_an_instruction_for_the_qformer_alone() -> None:
    """As ICD's authors run InstructBLIP; beams share a picture, and each gets its features."""
    inputs = prompts(case_of("instructblip"), "images")
    with attach("instructblip", naive.MISLED):
        assert_rows("instructblip", naive.MISLED.reference, inputs)
        tokens = case_of("instructblip").model.generate(**inputs, num_beams=3, max_new_tokens=4)[:, -4:].tolist()
    for i, row in enumerate(tokens):
        alone = case_of("instructblip").row(inputs, i)
        assert row == naive.beams(reference("instructblip"), naive.MISLED.reference, alone, 4, 3)


SEVERAL = ["llava", "qwen2_vl", "idefics3", "instructblip", "mllama"]


@pytest.mark.parametrize(("family", "name"), [(f, n) for f in SEVERAL for n in SETUPS if (f, n) not in REFUSED])
def test_several_images_per_row(family: str, name: str) -> None:
    """Rows with two, one and three pictures; where the batch is a table, the missing ones stay missing."""
    inputs = prompts(case_of(family), "images")
    with attach(family, SETUPS[name]):
        assert_rows(family, SETUPS[name].reference, inputs)


# --- with attention methods ------------------------------------------------------------------------------------------


def edited(setup: Setup, family: str, method: str, prompt: tiny.Inputs) -> naive.Reference:
    """The setup's reference with the attention method's changes to its base."""
    model = reference(family)
    if method == "pai":
        change = naive.boosted(model.image(prompt), alpha=1.0)
    else:
        change, chosen = naive.reinforced(model, prompt, alpha=3.0, layers=[1, 2, 3])
        assert chosen
    return replace(setup.reference, edits=(change,))


@pytest.mark.parametrize("method", ["pai", "vhr"])
@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl"])
def test_with_an_attention_method(family: str, name: str, method: str) -> None:
    """A branch on the shared prompt carries the method's edits, a branch with a prompt of its own is plain."""
    case, settings = case_of(family), {"pai": {"alpha": 1.0}, "vhr": {"alpha": 3.0}}[method]
    inputs = prompts(case, "padded")
    with attach(family, SETUPS[name], [{method: settings}]):
        tokens, scores = generate(family, inputs)
    for i, row in enumerate(tokens.tolist()):
        prompt = case.row(inputs, i)
        expected = edited(SETUPS[name], family, method, prompt)(reference(family), prompt, row[:-1])
        assert row == expected.argmax(-1).tolist(), f"row {i}"
        assert_scores(scores[i], expected)


# --- scores of given answers -----------------------------------------------------------------------------------------

#: For each prompt of a batch of three: answers of different lengths, and different numbers of them.
ANSWERS = [[[20, 31, 150, 77], [44]], [[90, 12, 64]], [[201], [33, 34], [120, 121, 122, 123, 124]]]


SCORED = ["llama", "gemma3_text", "llava_gqa", "qwen2_vl", "instructblip", "mllama"]


def answers_for(family: str, decoder: naive.Decoder, inputs: tiny.Inputs) -> list[list[list[int]]]:
    """`ANSWERS`, and for each row the decoder's own, which no cutoff forbids."""
    case, model = case_of(family), reference(family)
    rows = range(len(inputs["input_ids"]))
    own = [naive.greedy(model, decoder, case.row(inputs, i), 3)[0] for i in rows]
    return [[*ANSWERS[i], own[i]] for i in rows]


def assert_same_scores(family: str, decoder: naive.Decoder, inputs: tiny.Inputs) -> None:
    answers = answers_for(family, decoder, inputs)
    found = sightline.score(case_of(family).model, inputs, answers)
    assert [len(scores) for scores in found] == [len(row) for row in answers]
    finite = 0
    for i, row in enumerate(answers):
        prompt = case_of(family).row(inputs, i)
        for answer, ours in zip(row, found[i], strict=True):
            logs = decoder(reference(family), prompt, answer)[:-1].log_softmax(-1)
            expected = logs[range(len(answer)), answer].tolist()
            assert ours.tokens == pytest.approx(expected, abs=2e-5), f"row {i}, answer {answer}"
            assert ours.logprob == pytest.approx(sum(expected), abs=1e-4)
            assert ours.greedy == (logs.argmax(-1).tolist() == answer)
            finite += math.isfinite(ours.logprob)
    assert finite


@pytest.mark.parametrize("family", TEXT + VISION)
def test_plain_scores(family: str) -> None:
    """Without an attachment, and under an empty one: log-softmax of the plain model's logits."""
    inputs = prompts(case_of(family), "padded")
    assert_same_scores(family, naive.Reference(), inputs)
    with sightline.attach(case_of(family).model, {"methods": []}):
        assert_same_scores(family, naive.Reference(), inputs)


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[0] in SCORED])
def test_scores(family: str, name: str) -> None:
    setup = SETUPS[name]
    with attach(family, setup):
        assert_same_scores(family, setup.scoring or setup.reference, prompts(case_of(family), "padded"))


@pytest.mark.parametrize(("family", "name"), VARIED)
def test_scores_under_other_settings(family: str, name: str) -> None:
    setup = VARIANTS[name]
    with attach(family, setup):
        assert_same_scores(family, setup.scoring or setup.reference, prompts(case_of(family), "padded"))


def test_scoring_leaves_generation_alone() -> None:
    """`span: auto` masks the whole prompt inside `score` and only there."""
    inputs = prompts(case_of("llama"), "padded")
    with attach("llama", SETUPS["decore"]):
        sightline.score(case_of("llama").model, inputs, ANSWERS)
        assert_rows("llama", SETUPS["decore"].reference, inputs)


# --- a plain forward -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETUPS)
def test_forward_gives_the_first_scores(name: str) -> None:
    """Outside of `generate`: the last row of a forward over the prompt is the first step's scores."""
    case, inputs = case_of("llava_gqa"), prompts(case_of("llava_gqa"), "padded")
    with attach("llava_gqa", SETUPS[name]), torch.no_grad():
        logits = case.model(**inputs).logits
    for i in range(3):
        expected = SETUPS[name].reference(reference("llava_gqa"), case.row(inputs, i), [])
        assert_scores(logits[i, -1:], expected)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_noise_follows_the_schedule() -> None:
    """v_t = sqrt(abar_t) v + sqrt(1 - abar_t) e, e standard normal, of the seed and not of the picture or the step."""
    betas = [(0.5e-2 - 1e-5) / (1 + math.exp(-(-6 + 12 * t / 999))) + 1e-5 for t in range(1000)]
    pixels, other = (torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    drawn = []
    for step in (0, 250, 500, 999):
        kept = math.prod(1 - beta for beta in betas[: step + 1])
        first, second = vcd.noised(pixels, step, 3), vcd.noised(other, step, 3)
        torch.testing.assert_close((first - second) / (pixels - other), torch.full_like(pixels, kept**0.5))
        drawn.append((first - kept**0.5 * pixels) / (1 - kept) ** 0.5)
        torch.testing.assert_close(drawn[-1], drawn[0], atol=1e-6, rtol=1e-6)
    assert abs(float(drawn[0].mean())) < 0.06
    assert abs(float(drawn[0].std()) - 1) < 0.06
    assert not torch.allclose(vcd.noised(pixels, 500, 4), vcd.noised(pixels, 500, 3), atol=0.1)


@pytest.mark.parametrize("lam", [-1.0, -0.6, -0.3, 0.3, 0.6, 1.0, 1.3, 1.6, 2.0])
def test_blind_tokens(lam: float) -> None:
    """By the unbiased deviation of each row's own image tokens; which one it is shows near some of these bounds."""
    case, inputs = case_of("llava_gqa"), prompts(case_of("llava_gqa"), "padded")
    config = {"decoder": {"avisc": {"lam": lam}}}
    with sightline.attach(case.model, config, calibration=facts_of("llava_gqa")) as plug:
        generate("llava_gqa", inputs, max_new_tokens=1)
        blind = torch.tensor(plug.report()["avisc"]["blind"])
    for i in range(3):
        expected = naive.AvisC(lam=lam).blind(reference("llava_gqa"), case.row(inputs, i))
        assert blind[i][inputs["attention_mask"][i].bool()].tolist() == expected.tolist()
    assert not blind[inputs["attention_mask"] == 0].any()


def heads_of(settings: dict[str, Any], **sections: Any) -> list[tuple[int, int]]:
    """The heads that `decore` takes on a tiny Llama with these sections in its calibration."""
    model = case_of("llama").model
    facts = {**facts_of("llama"), **sections}
    with sightline.attach(model, {"decoder": {"decore": settings}}, calibration=facts) as plug:
        case_of("llama").model.generate(**prompts(case_of("llama"), "one"), max_new_tokens=1)
        return [tuple(head) for head in plug.report()["decore"]["heads"]]


def test_heads_are_the_best_scored() -> None:
    assert sorted(heads_of({"heads": 6})) == sorted(naive.RETRIEVAL)
    scores = [[0.5] * tiny.HEADS for _ in range(tiny.LAYERS)]
    scores[3][7] = 0.6
    tied = heads_of({"heads": 4}, retrieval_heads={"scores": scores})
    assert sorted(tied) == [(0, 0), (0, 1), (0, 2), (3, 7)], "earlier heads first among equals"


def test_random_heads_are_a_control() -> None:
    drawn = [heads_of({"heads": 6, "random": seed}) for seed in range(4)]
    for heads in drawn:
        assert len(set(heads)) == 6
        assert not set(heads) & set(naive.RETRIEVAL)
    assert heads_of({"heads": 6, "random": 2}) == drawn[2]
    assert len({tuple(heads) for heads in drawn}) == 4
    assert heads_of({"heads": 16, "random": 0}) != heads_of({"heads": 16})
