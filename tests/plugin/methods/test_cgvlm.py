"""CG-VLM's gate: when it opens, what it leaves alone, and the caches that run ahead of the answer."""

from __future__ import annotations

import weakref

import pytest
import sightline
import torch
from sightline import CalibrationError, ConfigError, LayoutError, UnsupportedModelError
from sightline.plugin.branches.pictures import random_pixels

from tests.helpers import naive, tiny
from tests.helpers.engine import NEW, calibration, entry, generate, prompts, shared
from tests.helpers.refusal import refused

OPTIONS = {"query": naive.question}


def config(threshold: float = 1.0, picture: str = "random", **settings: object) -> dict[str, list[object]]:
    when = {"signal": "interaction", "above": threshold, "picture": picture}
    return {"methods": [{"cgvlm": {"layers": [1, 2], "when": when, **settings}}]}


@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl"])
def test_the_gate_opens_and_closes(family: str) -> None:
    """Row by row, where the spread exceeds the threshold; else most of the tests of this decoder would be idle."""
    case = shared(family)
    inputs = prompts(case, "padded")
    with sightline.attach(case.model, config(threshold=1.5), **OPTIONS) as plug:
        tokens = generate(case.model, inputs, max_new_tokens=6).tokens
        opened = plug.report()["cgvlm"]["gate"]["opened"]
    for i, answer in enumerate(tokens.tolist()):
        row = case.row(inputs, i)
        spread = naive.CGVLM().spread(naive.of(case.model), row, answer[:-1])
        assert opened[i] == int((spread > 1.5).sum())
    assert 0 < sum(opened) < tokens.numel()


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_a_gate_that_never_opens_is_the_plain_model(how: dict[str, object]) -> None:
    """Down to the bits, with other methods or without."""
    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    for methods in ([], [entry("vhr"), entry("pai")]):
        with sightline.attach(case.model, {"methods": methods}, calibration=calibration(case)):
            bare = generate(case.model, inputs, **how)
        closed = {"methods": [*methods, *config(threshold=1e6)["methods"]]}
        with sightline.attach(case.model, closed, calibration=calibration(case), **OPTIONS) as plug:
            ours = generate(case.model, inputs, **how)
            assert not any(plug.report()["cgvlm"]["gate"]["opened"])
        assert ours.same_bits(bare)


def test_a_gate_that_is_always_open_boosts_every_row() -> None:
    case = shared("llava_gqa")
    inputs = prompts(case, "padded")
    with sightline.attach(case.model, config(threshold=-1.0), **OPTIONS) as plug:
        ours = generate(case.model, inputs)
        assert plug.report()["cgvlm"]["gate"]["opened"] == [NEW] * 3
    reference = naive.CGVLM(threshold=-1.0, layers=[1, 2])
    for i, answer in enumerate(ours.tokens.tolist()):
        expected = reference(naive.of(case.model), case.row(inputs, i), answer[:-1])
        torch.testing.assert_close(ours.scores[i].double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl"])
def test_secondary_sinks_get_no_bonus(family: str) -> None:
    """Image tokens along the first token, in the layers where the calibration says that it is a sink; none elsewhere."""
    case = shared(family)
    inputs, cosine = prompts(case, "padded"), 0.15
    known = calibration(case)
    known["sink"] = {**known["sink"], "first": [1], "secondary": {"visual": 1.0, "text": 0.0}, "cosine": cosine}
    with sightline.attach(case.model, config(threshold=-1.0), calibration=known, **OPTIONS):
        ours = generate(case.model, inputs)
    with sightline.attach(case.model, config(threshold=-1.0, skip_secondary=False), calibration=known, **OPTIONS):
        boosted = generate(case.model, inputs)
    for i, answer in enumerate(ours.tokens.tolist()):
        row = case.row(inputs, i)
        with torch.no_grad():
            states = case.model(**row, output_hidden_states=True).hidden_states[1][0].double()
        along = [abs(float(x @ states[0] / x.norm() / states[0].norm())) > cosine for x in states]
        sinks = [j for j, one in enumerate(along) if one and row["input_ids"][0, j] == tiny.IMAGE]
        assert 0 < len(sinks) < int((row["input_ids"] == tiny.IMAGE).sum())
        reference = naive.CGVLM(threshold=-1.0, layers=[1, 2], aside={1: sinks})
        expected = reference(naive.of(case.model), row, answer[:-1])
        torch.testing.assert_close(ours.scores[i].double(), expected, atol=1e-3, rtol=1e-3)
    assert (ours.scores[:, 0] - boosted.scores[:, 0]).abs().amax() > 0.01


@pytest.mark.parametrize("name", ["released", "no picture", "seed"])
def test_settings_and_beams(name: str) -> None:
    """Greedy answers and beams are the reference's: what runs ahead has followed its beams."""
    gate, ours, theirs = {
        "released": ({"above": 1.5, "picture": "random"}, {}, {"threshold": 1.5}),
        "no picture": (
            {"above": 2.5, "candidates": 9},
            {"alpha": 2.0, "layers": [1]},
            {"threshold": 2.5, "seed": None, "alpha": 2.0, "candidates": 9, "layers": [1]},
        ),
        "seed": (
            {"above": 1.0, "picture": "random", "seed": 3, "candidates": 256},
            {"layers": [0, 3]},
            {"threshold": 1.0, "seed": 3, "candidates": 256, "layers": [0, 3]},
        ),
    }[name]
    case = shared("llava_gqa")
    pair, model = prompts(case, "pair"), naive.of(case.model)
    reference = naive.CGVLM(**{"layers": [1, 2], **theirs})  # type: ignore[arg-type]
    when = {"signal": "interaction", **gate}
    with sightline.attach(case.model, config(when=when, **ours), **OPTIONS):
        greedy = generate(case.model, pair, max_new_tokens=5)
        beams = generate(case.model, pair, max_new_tokens=5, num_beams=3).tokens.tolist()
    for i, answer in enumerate(greedy.tokens.tolist()):
        expected = reference(model, case.row(pair, i), answer[:-1])
        torch.testing.assert_close(greedy.scores[i].double(), expected, atol=1e-3, rtol=1e-3)
        assert beams[i] == naive.beams(model, reference, case.row(pair, i), 5, 3)


def test_what_runs_ahead_is_freed_with_the_cache() -> None:
    case = shared("llava_gqa")
    with sightline.attach(case.model, config(), **OPTIONS) as plug:
        out = case.model.generate(**prompts(case, "one"), max_new_tokens=2, return_dict_in_generate=True)
        assert plug.reading is not None
        (scout,) = plug.reading.gates.scouts
        assert scout.cache.get_seq_length() == out.past_key_values.get_seq_length()
        gone = weakref.ref(out.past_key_values)
        del out
        assert gone() is None
        assert scout.cache.get_seq_length() == 0
        assert not scout.fork.cache.prompt


def test_random_pixels() -> None:
    """Uniform between the smallest and the largest value, of the seed and the shape and nothing else of the picture."""
    first, second = (torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(s)) * (s + 1) for s in (0, 1))
    shares = []
    for pixels in (first, second):
        drawn = random_pixels(pixels, 3)
        shares.append((drawn - pixels.min()) / (pixels.max() - pixels.min()))
    torch.testing.assert_close(shares[0], shares[1])
    assert float(shares[0].min()) >= 0
    assert float(shares[0].max()) <= 1
    quarters = torch.histc(shares[0], 4, 0, 1) / shares[0].numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert not torch.allclose(random_pixels(first, 4), random_pixels(first, 3), atol=0.1)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_settings() -> None:
    case = shared("llava")
    for settings, kind, words in (
        ({"alpha": -0.5}, ConfigError, ("methods[0].cgvlm.alpha", "-0.5")),
        ({"threshold": float("nan")}, ConfigError, ("methods[0].cgvlm.when.above", "nan")),
        ({"picture": "noise"}, ConfigError, ("methods[0].cgvlm.when.picture", "random", "none")),
        ({"layers": []}, ConfigError, ("methods[0].cgvlm.layers",)),
        ({"layers": [1, 7]}, CalibrationError, ("cgvlm.layers", "7", "0..3")),
    ):
        with refused(case, kind, *words):
            sightline.attach(case.model, config(**settings))


def test_positions_that_cannot_be_moved() -> None:
    """Without the question the prompt is shorter, and OPT's learned positions do not follow."""
    case = shared("blip_2")
    inputs = prompts(case, "one")
    with (
        refused(case, UnsupportedModelError, "learned positions", "length"),
        sightline.attach(case.model, config(), **OPTIONS),
    ):
        generate(case.model, inputs)


def test_random_pixels_need_pixels() -> None:
    """Features that were encoded beforehand cannot be drawn anew; leaving the image out does not mind."""
    case = shared("llava")
    inputs = prompts(case, "one")
    pixels = inputs.pop("pixel_values")
    given = {"mm_encoder_outputs": {"image": case.model.get_image_features(pixel_values=pixels, return_dict=True)}}
    with refused(case, LayoutError, "interaction", "pixel_values"), sightline.attach(case.model, config(), **OPTIONS):
        case.model(**inputs, **given)
    with sightline.attach(case.model, config(picture="none", threshold=-1.0), **OPTIONS):
        encoded = case.model(**inputs, **given).logits
        raw = case.model(**inputs, pixel_values=pixels).logits
    torch.testing.assert_close(encoded, raw)
