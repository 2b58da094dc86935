"""Secondary sinks are kept out of every boost of image tokens where the calibration lists them, and only there.

Against the float64 reference on models with planted secondary sinks; on every kind of family against their own rows alone.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sightline
import torch
from sightline.plugin.calibration.files import Calibration
from sightline.plugin.core.layout import Layout, Step
from sightline.plugin.core.method import ModelFacts
from sightline.plugin.methods.secondary import Boostable

from tests.helpers import reference as ref
from tests.helpers.cases import BOUND, PATCHES, Case, _compare, _model, _prompts, _sinks
from tests.helpers.engine import calibration, entry, generate, prompts, shared
from tests.helpers.rules import Row, paint_groups

ROOT = Path(__file__).parents[3]
FIRST = [1, 2, 4]  # where the first token counts as a sink; some boosted layers are not among them
SECOND = (3, 9)  # patches that are made to point along the first token, the latter the other way
NEAR = 6  # one at a cosine of 0.8
BOOSTS = ["pai", "paint", "gift", "late gift", "var", "paper var"]


@functools.cache
def planted(name: str) -> Case:
    """A tiny LLaVA whose first token is long, and two patches of each picture point along it."""
    layers, kv_heads, seed = {"mha": (5, 8, 13), "gqa": (6, 2, 14)}[name]
    model = _model(layers, kv_heads, seed)
    rng = torch.Generator().manual_seed(seed)
    along, across = torch.linalg.qr(torch.randn(64, 2, generator=rng))[0].T
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = 1000 * along

    def point(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone().view(-1, PATCHES, 64)
        changed[:, SECOND[0]] = 800 * along.to(output)
        changed[:, SECOND[1]] = -1200 * along.to(output)
        changed[:, NEAR] = 1000 * (0.8 * along + 0.6 * across).to(output)
        return changed.view(output.shape)

    model.model.multi_modal_projector.register_forward_hook(point)
    decoder = ref.Decoder(model)
    batch, rows = _prompts(seed)
    seen = [decoder.prompt(row) for row in rows]
    return Case(name, model, decoder, batch, rows, seen, *_sinks(decoder, seen))


def listed(case: Case, visual: float = 2.0, **more: Any) -> dict[str, Any]:
    """A calibration that lists secondary sinks."""
    gaze = {"saliency_layers": [1], "enhanced_layers": list(range(2, case.decoder.layers)), "alpha": 4.0}
    known = case.calibration(**gaze)
    known["sink"] |= {"first": FIRST, "secondary": {"visual": visual, "text": 0.0}, **more}
    return known


def shares(case: Case) -> Callable[[ref.Prompt], np.ndarray]:
    """PAINT's shares of each prompt, from its picture's own attention in the tower."""
    tower = copy.deepcopy(case.model.model.vision_tower).double()
    tower.set_attn_implementation("eager")
    found = {}
    for prompt, row in zip(case.prompts, case.rows, strict=True):
        with torch.no_grad():
            seen = tower(row["pixel_values"].double(), output_attentions=True).attentions
        known = Row(prompt.length, row["input_ids"][0].numpy(), ~prompt.image, prompt.image, [a.numpy() for a in seen])
        local, summary = paint_groups(known, 0.9)
        found[id(prompt)] = 0.7 * local + 0.3 * summary
    return lambda prompt: found[id(prompt)]


def settings_and_reference(case: Case, name: str) -> tuple[dict[str, Any], Callable[[ref.Secondary], ref.Method]]:
    late = {"saliency_layers": [2], "enhanced_layers": list(range(1, case.decoder.layers)), "alpha": 1.5}
    gaze = listed(case)["gaze"]
    boosted = list(range(2, case.decoder.layers))
    paint = shares(case) if name == "paint" else None
    return {
        "pai": ({"pai": {"alpha": 0.5}}, lambda s: ref.Boost(lambda p: 0.5 * p.image, boosted, s)),
        "paint": ({"paint": {"ratio": 0.9}}, lambda s: ref.Boost(paint, boosted, s)),  # type: ignore[arg-type]
        "gift": ({"gift": {"beta": 0.8}}, lambda s: ref.GIFT(**gaze, beta=0.8, secondary=s)),
        "late gift": ({"gift": late}, lambda s: ref.GIFT(**late, secondary=s)),
        "var": (
            {"var": {"p": 0.2, "rho": 0.9, "min_visual": 0.0}},
            lambda s: ref.VAR(case.dims, case.tau, 0.2, 0.9, 0.0, secondary=s),
        ),
        "paper var": (
            {"var": {"form": "paper", "p": 0.9, "rho": 0.1, "min_visual": 0.3, "rows": "text"}},
            lambda s: ref.VAR(case.dims, case.tau, 0.9, 0.1, 0.3, paper=True, text_rows=True, secondary=s),
        ),
    }[name]  # type: ignore[return-value]


@pytest.mark.parametrize("name", BOOSTS)
@pytest.mark.parametrize("model", ["mha", "gqa"])
def test_boosts_leave_out_planted_sinks(model: str, name: str) -> None:
    case = planted(model)
    settings, reference = settings_and_reference(case, name)
    used, _ = _compare(case, [settings], [lambda: reference(ref.Secondary(FIRST))], calibration=listed(case))
    for (method,), prompt in zip(used, case.prompts, strict=True):
        assert method.secondary.margin > 1e-3  # type: ignore[attr-defined]
        places = np.flatnonzero(prompt.image).reshape(-1, PATCHES)[:, SECOND].flatten().tolist()
        for layer in FIRST:
            assert np.flatnonzero(method.secondary.mask(layer, prompt.length)).tolist() == places  # type: ignore[attr-defined]
        tokens = [5, 6]
        kept, boosted = (ref.generate(case.decoder, prompt, [reference(ref.Secondary(f))], tokens) for f in (FIRST, []))
        assert np.abs(kept - boosted).max() > 100 * BOUND, "to leave them out changes nothing"


def test_the_calibrations_own_cosine() -> None:
    """At 0.7 the token at 0.8 counts, too."""
    case = planted("gqa")
    settings, reference = settings_and_reference(case, "pai")
    makers = [lambda: reference(ref.Secondary(FIRST, 0.7))]
    used, _ = _compare(case, [settings], makers, calibration=listed(case, cosine=0.7))  # type: ignore[arg-type]
    place = int(np.flatnonzero(case.prompts[0].image)[NEAR])
    assert used[0][0].secondary.mask(1, place + 1)[place]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", BOOSTS)
def test_what_is_not_listed_changes_no_bit(name: str) -> None:
    """No list, a count of zero and the setting turned off: the same bits, and nothing that looks."""
    case = planted("gqa")
    (method, options), *_ = settings_and_reference(case, name)[0].items()
    counted = {**listed(case), "sink": {"dims": case.dims, "tau": case.tau}}
    layerless = {**listed(case), "sink": {**listed(case)["sink"], "first": []}}
    ways = [(options, counted), (options, listed(case, visual=0.0)), (options, layerless)]
    ways += [({**options, "skip_secondary": False}, listed(case))]
    answers = []
    for chosen, known in ways:
        with sightline.attach(case.model, {"methods": [{method: chosen}]}, calibration=known) as plug:
            answers.append(generate(case.model, case.batch))
            assert plug.reading is not None
            assert plug.reading.prompt.sessions[0].boostable.probes(Step(plug.reading.layout, 0, 3)) == {}  # type: ignore[attr-defined]
    assert all(answer.same_bits(answers[0]) for answer in answers)
    with sightline.attach(case.model, {"methods": [{method: options}]}, calibration=listed(case)):
        assert not generate(case.model, case.batch).same_bits(answers[0])


def test_shipped_files_that_list_some_say_so() -> None:
    """A model whose file lists secondary sinks among its image tokens answers otherwise: the README's row tells."""
    from sightline.plugin.calibration.files import shipped

    sinks = {name.split("/")[-1]: known.sink for name, known in shipped().items() if known.sink is not None}
    listed = [name for name, sink in sinks.items() if sink.secondary is not None and sink.secondary.visual > 0]
    rows = [row for row in (ROOT / "calibration" / "README.md").read_text().splitlines() if "secondary" in row]
    assert [name for name in listed if not any(f"`{name}.yaml`" in row for row in rows)] == []


# --- the mask itself -------------------------------------------------------------------------------------------------


def facts(**sink: Any) -> ModelFacts:
    known = {"model": "m", "architecture": "a", "layers": 4, "heads": 2, "sink": {"dims": [0], "tau": 1.0, **sink}}
    return ModelFacts("m", "a", 4, 2, 8, Calibration.load(known))


def test_masks_of_a_prompt_read_in_parts() -> None:
    """The parts say together what the whole says: of each row, the tokens along its own first token that is no padding."""
    rng = torch.Generator().manual_seed(0)
    valid = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9, [0] * 9]).bool()
    image = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1, 1, 1, 1], [0] * 9]).bool()
    layout = Layout(valid.long(), valid, image, valid)
    hidden = torch.randn(3, 9, 8, generator=rng)
    hidden[0, 5], hidden[0, 7] = -3 * hidden[0, 3], hidden[0, 2]  # along the first token; along padding
    hidden[1, 1], hidden[1, 8], hidden[1, 4] = hidden[1, 0], -0.1 * hidden[1, 0], hidden[1, 0]
    wanted = image.clone()
    wanted[0, 5] = wanted[1, 1] = wanted[1, 8] = False
    listing = facts(first=[0, 2], secondary={"visual": 1.0, "text": 0.0})
    for cuts in ([0, 9], [0, 8, 9], [0, 2, 5, 9], [0, 4, 6, 9]):
        found = Boostable(layout, listing, [1, 2, 3])
        for start, stop in itertools.pairwise(cuts):
            probes = found.probes(Step(layout, start, stop - start))
            assert list(probes) == [2]
            probes[2][0].see(hidden[:, start:stop])  # type: ignore[union-attr]
        assert torch.equal(found[2], wanted), cuts
        assert torch.equal(found[1], image)
    assert Boostable(layout, listing, [2]).probes(Step(layout, 9, 1)) == {}
    assert found.layout.image.equal(image), "the layout's own mask must stay"


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, float("nan"), "much"])
def test_a_cosine_that_is_none(value: Any) -> None:
    known = {"model": "m", "architecture": "a", "layers": 4, "heads": 2}
    with pytest.raises(sightline.CalibrationError, match="cosine"):
        Calibration.load({**known, "sink": {"dims": [0], "tau": 1.0, "cosine": value}})


# --- families --------------------------------------------------------------------------------------------------------

SETUPS = {
    "pai": [entry("pai")],
    "var": [entry("var")],
    "held gift": [entry("gift", saliency_layers=[2], enhanced_layers=[1, 2, 3])],
    "vhr, gift held, pai": [entry("vhr"), entry("gift", saliency_layers=[2], enhanced_layers=[1, 2, 3]), entry("pai")],
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_vl", "gemma3", "idefics3", "paligemma"])
def test_families(family: str, setup: str) -> None:
    """Rows of a padded batch and rows alone agree; so do a static cache, a decoder beside, beams over and over."""
    case = shared(family)
    known = calibration(case)
    known["sink"] = {**known["sink"], "first": [1, 2, 3], "secondary": {"visual": 1.0, "text": 0.0}, "cosine": 0.15}
    batch = prompts(case, "images")
    with sightline.attach(case.model, {"methods": SETUPS[setup]}, calibration=known) as plug:
        together = generate(case.model, batch)
        assert plug.reading is not None
        masks = plug.reading.prompt.sessions[-1].boostable  # type: ignore[attr-defined]
        left_out = [(masks.layout.image & ~masks[layer]).sum() for layer in masks.layers]
        assert 0 < sum(left_out) < len(left_out) * masks.layout.image.sum()
        for i in range(3):
            alone = generate(case.model, case.row(batch, i))
            torch.testing.assert_close(together.logits[i], alone.logits[0], atol=1e-4, rtol=1e-4)
        static = generate(case.model, batch, cache_implementation="static")
        torch.testing.assert_close(together.logits, static.logits, atol=1e-4, rtol=1e-4)
        pair = prompts(case, "pair")
        beams = generate(case.model, pair, num_beams=3)
        assert generate(case.model, pair, num_beams=3).same_bits(beams)
        for i in range(2):
            alone = generate(case.model, case.row(pair, i), num_beams=3)
            assert alone.tokens[0].tolist() == beams.tokens[i].tolist()
    unlisted = {**known, "sink": {k: known["sink"][k] for k in ("dims", "tau")}}
    with sightline.attach(case.model, {"methods": SETUPS[setup]}, calibration=unlisted):
        assert (generate(case.model, batch).logits - together.logits).abs().max() > 1e-3
