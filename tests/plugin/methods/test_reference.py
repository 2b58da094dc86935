"""Logits of attached models against the float64 reference in `reference.py`, at every generated step.

Tiny random LLaVA models in float32; greedy decoding; the reference is fed the tokens that the engine chose and must
choose the same. Every case runs one row alone and a left-padded batch of three rows with different lengths, image
positions and image counts, each of which must equal the reference's run of that row alone.

The bound is 1e-4 on logits of order 1 to 10, float32 against float64; the largest error seen is 2e-5. Discrete choices
(heads, sinks, thresholds) are made on continuous values, so a case in which two candidates lie closer than float32
resolves would fail; the seeds avoid that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sightline
import torch

from tests.helpers import reference as ref
from tests.helpers.cases import (
    BOUND,
    IMAGE,
    PAD,
    PATCHES,
    Case,
    Makers,
    _case,
    _compare,
    _gaze,
    _generate,
    _gift,
    _Inputs,
    _var,
    _vhr,
)


@pytest.fixture(params=["mha", "gqa"])
def case(request: pytest.FixtureRequest) -> Case:
    return _case(request.param)


def test_plain(case: Case) -> None:
    """The decoder of the reference is the model's, so a difference elsewhere is a method's."""
    _compare(case, [], [])


# --- VHR -------------------------------------------------------------------------------------------------------------

VHR_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "paper": ({"distance": "euclidean", "filter_min_std": 0}, {"squared": False, "filter_min_std": 0.0}),
    "squared_unguarded": ({"filter_min_std": 0}, {"filter_min_std": 0.0}),
    "guarded": ({"filter_min_std": 5}, {"filter_min_std": 5.0}),
    "no_filter": ({"outlier_filter": False}, {"outlier_filter": False}),
    "alpha": ({"alpha": 0.5}, {"alpha": 0.5}),
    "layers": ({"layers": [0, 2, 3]}, {"layers": [0, 2, 3]}),
}


@pytest.mark.parametrize("name", VHR_CASES)
def test_vhr(case: Case, name: str) -> None:
    settings, expected = VHR_CASES[name]
    used, report = _compare(case, [{"vhr": settings}], [_vhr(case, **expected)])
    for (method,) in used:
        assert isinstance(method, ref.VHR)
        assert set(method.chosen) == set(method.layers)
        assert all(chosen.sum() == 4 for chosen in method.chosen.values())  # half of 8, strictly above the lower median
    head_map = np.array(report["vhr"]["head_map"])
    for layer in range(case.decoder.layers):
        rows = [method.chosen.get(layer, np.zeros(8)) for (method,) in used]  # type: ignore[attr-defined]
        np.testing.assert_allclose(head_map[layer], np.mean(rows, 0), atol=1e-6)


def test_vhr_variants_choose_differently(case: Case) -> None:
    """The cases above tell the variants apart: no two of these agree on every prompt and layer."""
    choices: dict[str, list[Any]] = {}
    for name in ("defaults", "paper", "guarded", "no_filter"):
        choices[name] = []
        for prompt in case.prompts:
            method = _vhr(case, **VHR_CASES[name][1])()
            ref.generate(case.decoder, prompt, [method], [0])
            choices[name] += [tuple(mask) for _, mask in sorted(method.chosen.items())]
    assert len({tuple(chosen) for chosen in choices.values()}) == len(choices)


# --- VAR -------------------------------------------------------------------------------------------------------------

VAR_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "released": ({}, {}),
    "paper": ({"form": "paper", "rho": 0.8, "p": 0.6}, {"paper": True, "rho": 0.8, "p": 0.6}),
    "rho": ({"rho": 0.15, "p": 0.25}, {"rho": 0.15, "p": 0.25}),
    "text_rows": ({"rows": "text"}, {"text_rows": True}),
    "not_last": ({"last_layer": False}, {"last_layer": False}),
    "min_visual": ({"min_visual": 0.6}, {"min_visual": 0.6}),
}


def _check_var(case: Case, methods: list[ref.Method]) -> None:
    """Some tokens are sinks, most are not; some head rows are edited, some are not; no token is on the threshold."""
    visual, text, tokens, edited, seen = 0, 0, 0, 0, 0
    for method, prompt in zip(methods, case.prompts, strict=True):
        assert isinstance(method, ref.VAR)
        sinks = np.stack(list(method.sinks.values()))
        visual, text, tokens = (
            visual + (sinks & prompt.image).sum(),
            text + (sinks & ~prompt.image).sum(),
            tokens + sinks.size,
        )
        edited, seen = edited + method.kept[0], seen + method.kept[1]
        assert method.margin > 1e-5
    assert visual >= 2
    assert text >= 2
    assert visual + text < 0.4 * tokens
    assert 0.02 * seen < edited < 0.98 * seen


@pytest.mark.parametrize("name", VAR_CASES)
def test_var(case: Case, name: str) -> None:
    settings, expected = VAR_CASES[name]
    used, report = _compare(case, [{"var": settings}], [_var(case, **expected)])
    _check_var(case, [method for (method,) in used])
    layer = 2
    found = [method.sinks[layer] for (method,) in used]  # type: ignore[attr-defined]
    visual = [int((s & p.image).sum()) for s, p in zip(found, case.prompts, strict=True)]
    assert _by_layer(report["var"]["visual_sinks"], layer) == pytest.approx(np.mean(visual))


def _by_layer(values: Any, layer: int) -> float:
    return float(values[layer] if layer in values or not isinstance(values, dict) else values[str(layer)])


def test_var_rows_between_images_differ() -> None:
    """`text_rows` is a case of its own: text between two images is edited only there."""
    case = _case("gqa")
    prompt = case.prompts[2]
    results = [ref.generate(case.decoder, prompt, [_var(case, text_rows=rows)()], [5]) for rows in (False, True)]
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_var_row_that_sees_no_visual_sink() -> None:
    """A row is left alone by the sinks that it can see, not by those of its future.

    Text rows between two images, of which only the second holds a visual sink of layer 2, and text sinks before it.
    """
    case = _case("gqa")
    prompt, row = case.prompts[2], case.rows[2]
    probe = _Inputs()
    case.decoder.run(prompt.embeds, case.decoder.empty(), [probe])
    (x,) = (hidden for layer, hidden in probe.seen if layer == 2)
    ratio = np.abs(x) / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    image = np.flatnonzero(prompt.image)
    first, second = image[:PATCHES], image[PATCHES:]
    early = [j for j in range(second[0]) if j not in first]
    best: tuple[float, list[int], float] = (0.0, [], 0.0)
    for a in range(case.decoder.hidden):
        for b in range(a + 1, case.decoder.hidden):
            phi = np.maximum(ratio[:, a], ratio[:, b])
            low, high = phi[first].max(), min(phi[second].max(), phi[early].max())
            best = max(best, (float(high / low), [a, b], float(np.sqrt(high * low))))
    _, dims, tau = best
    calibration = case.calibration() | {"sink": {"dims": dims, "tau": tau}}
    with sightline.attach(case.model, {"methods": [{"var": {"rows": "text"}}]}, calibration=calibration):
        logits, tokens = _generate(case.model, row)
    method = ref.VAR(dims, tau, text_rows=True)
    expected = ref.generate(case.decoder, prompt, [method], tokens[0])
    assert not method.sinks[2][first].any()
    assert method.sinks[2][second].any()
    assert method.sinks[2][early].any()
    assert method.margin > 1e-5
    assert np.abs(logits[0] - expected).max() < BOUND


# --- GIFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.8])
@pytest.mark.parametrize("kind", ["early", "late", "same", "two", "two_late", "strong"])
def test_gift(case: Case, kind: str, beta: float) -> None:
    gaze = _gaze(kind, case.decoder.layers)
    makers: Makers = [_gift(**gaze, beta=beta)]
    used, report = _compare(case, [{"gift": {"beta": beta}}], makers, calibration=case.calibration(**gaze))
    width = case.batch["input_ids"].shape[1]
    for i, (method,) in enumerate(used):
        assert isinstance(method, ref.GIFT)
        assert method.saliency is not None
        assert 0 < method.saliency[case.prompts[i].image].mean() < 1
        got = np.array(report["gift"]["saliency"][i])
        np.testing.assert_allclose(got[width - len(method.saliency) :], method.saliency, atol=1e-4)
        assert not got[: width - len(method.saliency)].any()


def test_gift_query_finder(case: Case) -> None:
    """Question rows from a function of the ids; a gap among them is compared with the token just before it too."""

    def finder(ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], 0, -1)  # distance from the end, 1 for the last token
        return ((places == 2) | (places == 4) | (places == 5)).expand(ids.shape)

    prompts = [
        ref.Prompt(p.embeds, p.image, finder(row["input_ids"])[0].numpy())
        for p, row in zip(case.prompts, case.rows, strict=True)
    ]
    gaze = _gaze("early", case.decoder.layers)
    calibration = case.calibration(**gaze)
    _compare(case, [{"gift": {}}], [_gift(**gaze)], calibration=calibration, query=finder, prompts=prompts)


# --- compositions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["vhr+var", "var+vhr"])
def test_vhr_and_var(case: Case, order: str) -> None:
    names = order.split("+")
    makers = {"vhr": _vhr(case, filter_min_std=0.0), "var": _var(case)}
    settings = {"vhr": {"filter_min_std": 0}, "var": {}}
    used, _ = _compare(case, [{n: settings[n]} for n in names], [makers[n] for n in names])
    _check_var(case, [made[names.index("var")] for made in used])


@pytest.mark.parametrize("kind", ["early", "late"])
@pytest.mark.parametrize("order", ["vhr+gift", "gift+vhr", "var+gift", "gift+var", "vhr+var+gift", "gift+var+vhr"])
def test_with_gift(case: Case, order: str, kind: str) -> None:
    names = order.split("+")
    gaze = _gaze(kind, case.decoder.layers)
    makers: dict[str, Callable[[], ref.Method]] = {"vhr": _vhr(case), "var": _var(case), "gift": _gift(**gaze)}
    _compare(case, [{n: {}} for n in names], [makers[n] for n in names], calibration=case.calibration(**gaze))


# --- rows without an image -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vhr", "var", "gift", "gift_beta", "gift_beta_late"])
def test_row_without_image(case: Case, name: str) -> None:
    """In a batch with an image elsewhere, a row without any runs plain: there is nothing for a method to act on."""
    pixels = case.batch["pixel_values"][:1]
    tokens = [[1, 11, 12, *[IMAGE] * PATCHES, 33, 44, 55, 66, 77], [1, *range(20, 40)]]
    width = max(map(len, tokens))
    batch = {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in tokens]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens]),
        "pixel_values": pixels,
    }
    prompts = [
        case.decoder.prompt({"input_ids": torch.tensor([tokens[0]]), "pixel_values": pixels}),
        case.decoder.prompt({"input_ids": torch.tensor([tokens[1]])}),
    ]
    kind, beta = ("late" if "late" in name else "early"), (0.8 if "beta" in name else 1.0)
    gaze = _gaze(kind, case.decoder.layers)
    makers = {"vhr": _vhr(case), "var": _var(case), "gift": _gift(**gaze, beta=beta)}
    key = name.split("_")[0]
    config = {"methods": [{key: {"beta": beta} if key == "gift" else {}}]}
    with sightline.attach(case.model, config, calibration=case.calibration(**gaze)):
        logits, chosen = _generate(case.model, batch)
    for i, methods in enumerate(([makers[key]()], [])):
        expected = ref.generate(case.decoder, prompts[i], methods, chosen[i])
        assert np.abs(logits[i] - expected).max() < BOUND
