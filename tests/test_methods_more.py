"""Attention methods that need no second branch, against naive float64 references written from the papers' formulas.

The reference runs a double-precision copy of a tiny model over one whole unpadded sequence at a time, without a cache,
and computes attention one head and one row at a time. Every row of a left-padded batch must give the reference's logits
at each generated step, and so must the row alone. The bound is 1e-4 on logits of order 1 to 10; the largest error seen is
printed by `pytest -s`.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sightline
import tiny
import tokenizers as tk
import torch
import transformers as tf
from conftest import assert_message, calibration, entry, generate, prompts, shared
from sightline import CalibrationError, ConfigError, LayoutError, SightlineError, UnsupportedModelError
from sightline.plugin.core.edits import move
from sightline.plugin.core.method import ModelFacts
from sightline.plugin.methods.emphasis import unmark
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
FAMILIES = ["llava_gqa", "qwen3", "mistral_sliding"]
BOUND = 1e-4
STEPS = 6


# --- the reference ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What a rule may know: number of prompt tokens, their ids, which of them are emphasised and which are image tokens

    [length], and, of a CLIP tower, the weights [pictures, H, 1 + patches, 1 + patches] of each layer.
    """

    length: int
    ids: npt.NDArray[np.int64]
    span: Mask
    image: Mask
    tower: list[Array]


@dataclass(frozen=True)
class Layer:
    """Rotated queries and keys [H, N, d] of one layer, keys repeated for grouped heads, and what sees what [N, N]."""

    number: int
    q: Array
    k: Array
    scale: float
    visible: Mask

    def logits(self, q: Array | None = None, k: Array | None = None) -> Array:
        """scale q . k, -inf where row i does not see key j: [H, N, N]."""
        q, k = self.q if q is None else q, self.k if k is None else k
        return np.where(self.visible, self.scale * np.einsum("hid,hjd->hij", q, k), -np.inf)


Rule = Callable[[Layer, Row], Array]  # attention weights [H, N, N]


def softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def each_row(change: Callable[[int, int, int, Array, Row], Array]) -> Rule:
    """A rule from one that is told layer, head, row index and the row's logits [N], and answers with weights [N]."""

    def rule(layer: Layer, row: Row) -> Array:
        logits = layer.logits()
        out = np.zeros_like(logits)
        for h, i in np.ndindex(logits.shape[:2]):
            out[h, i] = change(layer.number, h, i, logits[h, i], row)
        return out

    return rule


plain = each_row(lambda layer, h, i, logits, row: softmax(logits))


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **how: Any) -> Any:
    rule, row = module.__dict__["reference"]
    copies = query.shape[1] // key.shape[1]
    key, value = (x[0].repeat_interleave(copies, 0).numpy() for x in (key, value))
    visible = (attention_mask[0, 0] == 0).numpy()
    # OPT has multiplied its queries by the scale already: `q` is what they are without.
    q = (query[0] * how["scaling"] / module.scaling).numpy()
    weights = rule(Layer(module.layer_idx, q, key, module.scaling, visible), row)
    return torch.from_numpy(weights @ value).transpose(0, 1)[None], None


AttentionInterface.register("more_methods", _attend)
AttentionMaskInterface.register("more_methods", eager_mask)


@functools.cache
def case_of(family: str) -> tiny.TinyCase:
    """A tiny model by name; "deep" is a LLaVA whose tower has more layers than two."""
    if family != "deep":
        return shared(family)
    config = copy.deepcopy(shared("llava").model.config)
    config.vision_config.num_hidden_layers = 4
    return replace(shared("llava"), model=tiny._finish(tf.LlavaForConditionalGeneration(config)))


@functools.cache
def double(family: str) -> Any:
    """The model in double precision, with the attention above in its decoder."""
    model = copy.deepcopy(case_of(family).model).double()
    parts = {"text_config": "more_methods", "vision_config": "eager"}
    model.set_attn_implementation(parts if hasattr(model.config, "text_config") else "more_methods")
    return model


@torch.no_grad()
def expected(family: str, inputs: tiny.Inputs, tokens: list[int], rule: Rule) -> Array:
    """Logits [steps, V] by which each of `tokens` is chosen after one unpadded prompt."""
    model, ids = double(family), inputs["input_ids"]
    tower: list[Array] = []
    if family == "deep":
        seen = model.model.vision_tower(inputs["pixel_values"].double(), output_attentions=True).attentions
        tower = [weights.numpy() for weights in seen]
    row = Row(ids.shape[1], ids[0].numpy(), emphasised(ids)[0].numpy(), (ids[0] == tiny.IMAGE).numpy(), tower)
    for layer in tiny.decoder(model).layers:  # whatever the method, an image is read plainly
        tiny.attention(layer).__dict__["reference"] = rule if hasattr(layer, "self_attn") else plain, row
    answer = torch.tensor([tokens[:-1]])
    longer = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    longer["input_ids"] = torch.cat([ids, answer], 1)
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    if "cross_attention_mask" in longer:
        seen = longer["cross_attention_mask"]
        longer["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, answer.shape[1], -1, -1)], 1)
    return model(**longer, use_cache=False).logits[0, row.length - 1 :].numpy()


def emphasised(ids: Tensor) -> Tensor:
    """A scattered third of the text tokens, none of them the start token."""
    return (ids % 3 == 1) & (ids >= 10) & (ids < 230)


def compare(
    family: str, settings: dict[str, Any], rule: Rule, *, kind: str = "padded", processor: Any = None, **more: Any
) -> None:
    """Engine against reference: a padded batch and each of its rows alone."""
    case = case_of(family)
    batch = prompts(case, kind)
    rows = [case.row(batch, i) for i in range(len(batch["input_ids"]))]
    known = {**calibration(case), **more}
    with sightline.attach(
        case.model, {"methods": [settings]}, calibration=known, processor=processor, emphasis=emphasised
    ):
        together = generate(case.model, batch, max_new_tokens=STEPS)
        alone = [generate(case.model, row, max_new_tokens=STEPS) for row in rows]
    worst, changed = 0.0, 0.0
    for i, row in enumerate(rows):
        tokens = alone[i].tokens[0].tolist()
        wanted, bare = expected(family, row, tokens, rule), expected(family, row, tokens, plain)
        assert together.tokens[i].tolist() == tokens
        changed = max(changed, float(np.abs(wanted - bare).max()))
        for got in (alone[i].logits[0], together.logits[i]):
            worst = max(worst, float(np.abs(got.double().numpy() - wanted).max()))
    print(f"{family} {settings}: largest logit error {worst:.1e}, largest change {changed:.2f}")
    assert worst < BOUND
    assert changed > 100 * BOUND, "the method hardly changed anything"


every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_the_reference_is_the_model(family: str) -> None:
    """Without any method, so that a difference elsewhere is a method's."""
    case = shared(family)
    inputs = prompts(case, "one")
    got = generate(case.model, inputs, max_new_tokens=STEPS)
    wanted = expected(family, inputs, got.tokens[0].tolist(), plain)
    assert np.abs(got.logits[0].double().numpy() - wanted).max() < BOUND


# --- ZeroTuning, arXiv 2505.11739 ------------------------------------------------------------------------------------


def zerotuning(gains: Array) -> Rule:
    """a_0' = g a_0 / ((g - 1) a_0 + 1), a_i' = a_i / ((g - 1) a_0 + 1)."""

    def change(layer: int, h: int, i: int, logits: Array, row: Row) -> Array:
        a, g = softmax(logits), gains[layer, h]
        out = a / ((g - 1) * a[0] + 1)
        out[0] *= g
        return out

    return each_row(change)


def gain_table(heads: list[tuple[int, int]], gain: float) -> Array:
    table = np.ones((tiny.LAYERS, tiny.HEADS))
    for layer, head in heads:
        table[layer, head] = gain
    return table


EVERY = [(layer, head) for layer in range(tiny.LAYERS) for head in range(tiny.HEADS)]
SOME = [(0, 3), (2, 0), (2, 7), (3, 4)]
RANDOM_GAINS = np.exp(np.random.default_rng(0).normal(size=(tiny.LAYERS, tiny.HEADS)))


@every_family
@pytest.mark.parametrize(
    ("settings", "known", "gains"),
    [
        ({}, {}, gain_table(EVERY, 4.0)),
        ({"gain": 0.2}, {}, gain_table(EVERY, 0.2)),
        ({"gain": 3.0, "layers": [1, 2]}, {}, gain_table([(n, h) for n, h in EVERY if n in (1, 2)], 3.0)),
        ({"gain": 8.0, "head_list": SOME}, {}, gain_table(SOME, 8.0)),
        ({}, {"first_token": {"gains": RANDOM_GAINS.tolist()}}, RANDOM_GAINS),
        ({"gain": 0.3}, {"first_token": {"gains": RANDOM_GAINS.tolist()}}, gain_table(EVERY, 0.3)),
    ],
    ids=["default", "down", "layers", "heads", "calibrated", "setting before calibration"],
)
def test_zerotuning(family: str, settings: dict[str, Any], known: dict[str, Any], gains: Array) -> None:
    compare(family, {"zerotuning": settings}, zerotuning(gains), **known)


# --- PASTA, arXiv 2311.02262 -----------------------------------------------------------------------------------------


def pasta(alpha: float, heads: list[tuple[int, int]]) -> Rule:
    """On `heads`: prompt tokens outside the span times alpha, then normalise."""

    def change(layer: int, h: int, i: int, logits: Array, row: Row) -> Array:
        a = softmax(logits)
        if (layer, h) not in heads:
            return a
        for j in range(min(row.length, len(a))):
            if not row.span[j]:
                a[j] *= alpha
        return a / a.sum()

    return each_row(change)


@every_family
@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_pasta(family: str, alpha: float) -> None:
    compare(family, {"pasta": {"alpha": alpha, "head_list": SOME}}, pasta(alpha, SOME))


@every_family
def test_pasta_takes_the_best_retrieval_heads(family: str) -> None:
    """A share of 0.1 of 32 heads is 4 of them."""
    scores = np.random.default_rng(1).random((tiny.LAYERS, tiny.HEADS))
    best = sorted(EVERY, key=lambda pair: -scores[pair])[:4]
    known = {"retrieval_heads": {"scores": scores.tolist()}}
    compare(family, {"pasta": {"share": 0.1}}, pasta(0.01, best), **known)


# --- Spotlight, arXiv 2505.12025 -------------------------------------------------------------------------------------


def bias_for(target: float, mass: float) -> float:
    """The bias that lifts a group from `mass` to `target`, by bisection: mass e^b / (mass e^b + 1 - mass) = target."""
    low, high = -50.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        lifted = mass * math.exp(middle) / (mass * math.exp(middle) + 1 - mass)
        low, high = (middle, high) if lifted < target else (low, middle)
    return low


def spotlight(target: float, form: str, scope: str, layers: list[int]) -> Rule:
    """m: mass on the span. Per head and row, or its mean over heads, or over heads and the rows of a pass, which is the

    prompt, or one generated token. Where 0 < m < t the span's logits are raised.
    """

    def rule(layer: Layer, row: Row) -> Array:
        logits = layer.logits()
        heads, count, _ = logits.shape
        span = np.zeros(count, dtype=bool)
        span[: row.length] = row.span
        masses = np.array([[softmax(logits[h, i])[span].sum() for i in range(count)] for h in range(heads)])
        if scope != "head":
            masses[:] = masses.mean(0)
        if scope == "layer":
            masses[:, : row.length] = masses[:, : row.length].mean()
        out = np.zeros_like(logits)
        for h, i in np.ndindex(heads, count):
            m = masses[h, i]
            bias = 0.0
            if layer.number in layers and 0 < m < target:
                bias = bias_for(target, m) if form == "exact" else math.log(target / m)
            out[h, i] = softmax(logits[h, i] + bias * span)
        return out

    return rule


@every_family
@pytest.mark.parametrize("scope", ["head", "row", "layer"])
@pytest.mark.parametrize("form", ["exact", "released"])
@pytest.mark.parametrize("target", [0.2, 0.8])
def test_spotlight(family: str, form: str, scope: str, target: float) -> None:
    settings = {"form": form, "scope": scope, "target": target}
    compare(family, {"spotlight": settings}, spotlight(target, form, scope, list(range(tiny.LAYERS))))


@every_family
def test_spotlight_in_some_layers(family: str) -> None:
    compare(family, {"spotlight": {"target": 0.6, "layers": [0, 3]}}, spotlight(0.6, "exact", "head", [0, 3]))


def test_the_default_spotlight_is_exact_per_head() -> None:
    config = sightline.methods()["spotlight"].config()
    assert config.model_dump() | {"form": "exact", "scope": "head", "target": 0.2} == config.model_dump()


def test_a_mass_too_small_to_lift_stays() -> None:
    """A factor on it would overflow and make the row NaN."""
    masses = torch.tensor([0.0, 1e-42, 1e-38, 1e-20, 0.1])
    change = move(0.99)(masses)
    assert torch.isfinite(change).all()
    assert change[:3].tolist() == [0, 0, 0]
    lifted = masses * (1 + change) / (masses * (1 + change) + 1 - masses)
    torch.testing.assert_close(lifted[3:], torch.full((2,), 0.99))


def test_a_layers_mean_needs_the_prompt_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    case = shared("llava")
    config = {"methods": [{"spotlight": {"span": "question", "scope": "layer", "target": 0.5}}]}
    monkeypatch.setattr("sightline.plugin.core.attention.CHUNK_ELEMENTS", 1000)
    with sightline.attach(case.model, config), pytest.raises(LayoutError) as caught:
        generate(case.model, prompts(case, "one"))
    assert_message(caught.value, "scope: layer", "scope: row")


# --- LocoRE, arXiv 2601.20279 ----------------------------------------------------------------------------------------


def locore(beta: float, window: int, layers: list[int], *, logit: bool, renormalise: bool) -> Rule:
    """gamma_j = 1 + beta [P - j <= w] for the query at P + 1 and output positions j <= P."""

    def change(layer: int, h: int, i: int, logits: Array, row: Row) -> Array:
        last = i - 1  # P
        gamma = np.ones(len(logits))
        for j in range(row.length, last + 1):
            if layer in layers and last - j <= window:
                gamma[j] = 1 + beta
        if logit:
            return softmax(np.where(np.isinf(logits), logits, gamma * np.nan_to_num(logits)))
        a = softmax(logits) * gamma
        return a / a.sum() if renormalise else a

    return each_row(change)


@every_family
@pytest.mark.parametrize(("form", "renormalise"), [("weights", True), ("weights", False), ("logits", True)])
@pytest.mark.parametrize("window", [0, 2, 32])
def test_locore(family: str, form: str, renormalise: bool, window: int) -> None:
    settings = {"beta": 1.5, "window": window, "form": form, "renormalise": renormalise, "layers": [0, 2, 3]}
    rule = locore(1.5, window, [0, 2, 3], logit=form == "logits", renormalise=renormalise)
    compare(family, {"locore": settings}, rule)


@pytest.mark.parametrize(
    ("layers", "wanted"), [(32, [9, 10, 11, 12, 13, 14]), (4, [1]), (1, [0]), (30, [8, *range(9, 14)])]
)
def test_layers_in_proportion(layers: int, wanted: list[int]) -> None:
    assert ModelFacts("m", "llama", layers, heads=8, hidden=64).proportion(9, 15) == wanted


def test_locore_looks_past_the_room_of_a_static_cache() -> None:
    case = shared("llava_gqa")
    batch = prompts(case, "padded")
    with sightline.attach(case.model, {"methods": [{"locore": {"beta": 4.0, "window": 1}}]}):
        grown = generate(case.model, batch, max_new_tokens=STEPS)
        static = generate(case.model, batch, max_new_tokens=STEPS, cache_implementation="static")
    torch.testing.assert_close(static.logits, grown.logits, atol=BOUND, rtol=BOUND)


def test_locore_when_the_window_has_dropped_the_prompt() -> None:
    """A sliding cache whose first column is a generated token."""
    case = shared("mistral_sliding")
    steps = case.model.config.sliding_window + 6
    inputs = prompts(case, "one")
    with sightline.attach(case.model, {"methods": [{"locore": {"beta": 2.0, "window": 40}}]}):
        got = generate(case.model, inputs, max_new_tokens=steps)
    rule = locore(2.0, 40, [1], logit=False, renormalise=True)
    wanted = expected("mistral_sliding", inputs, got.tokens[0].tolist(), rule)
    assert np.abs(got.logits[0].double().numpy() - wanted).max() < BOUND


# --- OCR heads' sink sharing, arXiv 2505.15865 -----------------------------------------------------------------------


def ocr_sink(beta: float, heads: list[tuple[int, int]]) -> Rule:
    """The first key keeps beta of its weight; what it loses goes to the others in proportion."""

    def change(layer: int, h: int, i: int, logits: Array, row: Row) -> Array:
        a = softmax(logits)
        rest = a[1:].sum()
        if (layer, h) not in heads or rest == 0:
            return a
        lost = (1 - beta) * a[0]
        out = a + lost * a / rest
        out[0] = beta * a[0]
        return out

    return each_row(change)


@every_family
@pytest.mark.parametrize("beta", [0.0, 0.4, 0.9])
def test_ocr_sink(family: str, beta: float) -> None:
    compare(family, {"ocr_sink": {"beta": beta, "head_list": SOME}}, ocr_sink(beta, SOME))


@pytest.mark.parametrize("section", ["ocr_heads", "concept_heads"])
@pytest.mark.parametrize("measured", [("scores",), ("scores", "hits")])
def test_ocr_sink_takes_the_calibrations_heads(section: str, measured: tuple[str, ...]) -> None:
    """By `hits` where they are measured, else by `scores`."""
    tables = {name: np.random.default_rng(i).random((tiny.LAYERS, tiny.HEADS)) for i, name in enumerate(measured)}
    best = sorted(EVERY, key=lambda pair: -tables[measured[-1]][pair])[:3]
    known = {section: {name: table.tolist() for name, table in tables.items()}}
    compare("llava_gqa", {"ocr_sink": {"section": section, "heads": 3}}, ocr_sink(0.4, best), **known)


# --- Focus Directions, arXiv 2503.23306 ------------------------------------------------------------------------------


def focus(factor: float, heads: list[tuple[int, int]], directions: Array) -> Rule:
    """As released: q + f d_q and k + f d_k on the chosen heads, behind the rotation, d_k random."""

    def rule(layer: Layer, row: Row) -> Array:
        q, k = layer.q.copy(), layer.k.copy()
        for (number, head), direction in zip(heads, directions, strict=True):
            if number == layer.number:
                q[head] += factor * direction
                k[head] += factor * np.random.default_rng(head).normal(size=k.shape[-1])
        logits = layer.logits(q, k)
        out = np.zeros_like(logits)
        for h, i in np.ndindex(logits.shape[:2]):
            out[h, i] = softmax(logits[h, i])
        return out

    return rule


@pytest.mark.parametrize("family", [*FAMILIES, "blip_2"])  # OPT scales its queries before anyone sees them
@pytest.mark.parametrize(("factor", "count"), [(0.2, 20), (3.0, 20), (-3.0, 2)])
def test_focus(family: str, factor: float, count: int) -> None:
    size = tiny.decoder(shared(family).model).layers[0].self_attn.head_dim
    heads = [(1, 3), (1, 4), (0, 7), (3, 0)]
    directions = np.random.default_rng(2).normal(size=(4, size))
    rule = focus(factor, heads[:count], directions[:count])
    known = {"focus_heads": {"heads": [list(head) for head in heads], "directions": directions.tolist()}}
    compare(family, {"focus": {"factor": factor, "heads": count}}, rule, **known)


# --- PAINT, arXiv 2501.12206 -----------------------------------------------------------------------------------------


def paint_groups(row: Row, ratio: float) -> tuple[Mask, Mask]:
    """Local and summary tokens [length].

    a: the class token's weights on the patches, summed over heads. Local: the largest `ratio` of a in the tower's first
    layer. Summary: in the layer before its last, as many of the largest as exceed Q3 + 1.5 IQR; they are not local.
    """
    local, summary = np.zeros(row.length, dtype=bool), np.zeros(row.length, dtype=bool)
    places = np.flatnonzero(row.image)
    for picture in range(len(row.tower[0])):
        first, late = (row.tower[n][picture, :, 0, 1:].sum(0) for n in (0, len(row.tower) - 2))
        own = places[picture * len(first) : (picture + 1) * len(first)]
        q1, q3 = np.percentile(late, [25, 75])
        outliers = sum(a > q3 + 1.5 * (q3 - q1) for a in late)
        summary[own[np.argsort(-late)[:outliers]]] = True
        local[own[np.argsort(-first)[: int(ratio * len(first))]]] = True
    return local & ~summary, summary


def paint(alpha: float, beta: float, ratio: float, layers: list[int]) -> Rule:
    """From the last prompt row on: s_j += alpha |s_j| on local, s_j += beta |s_j| on summary tokens."""

    def change(layer: int, h: int, i: int, logits: Array, row: Row) -> Array:
        if layer in layers and i >= row.length - 1:
            local, summary = paint_groups(row, ratio)
            for j in np.flatnonzero(local):
                logits[j] += alpha * abs(logits[j])
            for j in np.flatnonzero(summary):
                logits[j] += beta * abs(logits[j])
        return softmax(logits)

    return each_row(change)


@pytest.mark.parametrize("kind", ["padded", "images"])
@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, paint(0.7, 0.3, 0.25, [2, 3])),
        ({"alpha": 0.0, "beta": 1.5}, paint(0.0, 1.5, 0.25, [2, 3])),
        ({"alpha": 1.0, "ratio": 0.5, "layers": [1, 3]}, paint(1.0, 0.3, 0.5, [1, 3])),
    ],
    ids=["default", "summary", "local"],
)
def test_paint(settings: dict[str, Any], rule: Rule, kind: str) -> None:
    compare("deep", {"paint": settings}, rule, kind=kind)


def test_paint_with_several_answers_per_picture() -> None:
    """`generate` encodes the pictures before it repeats the rows; every copy of a row is boosted alike."""
    case = case_of("deep")
    batch = prompts(case, "images")
    with sightline.attach(case.model, {"methods": [entry("paint")]}) as plug:
        once = generate(case.model, batch)
        boosted = plug.report()["paint"]["boosted"]
        several = generate(case.model, batch, do_sample=True, num_return_sequences=2)
        assert plug.report()["paint"]["boosted"] == [count for count in boosted for _ in range(2)]
    assert len(set(boosted)) > 1, "the rows have 2, 1 and 3 pictures"
    torch.testing.assert_close(several.logits[::2, 0], once.logits[:, 0], atol=BOUND, rtol=BOUND)


def test_paint_leaves_the_tower_as_it_was() -> None:
    """Hooks are on the tower while a call runs, also where it fails, and not after."""
    case = case_of("deep")
    tower = case.model.model.vision_tower

    def hooks() -> int:
        return sum(len(m._forward_hooks) for name, m in tower.named_modules() if name.endswith(("q_proj", "k_proj")))

    seen: list[int] = []
    watch = tower.register_forward_pre_hook(lambda module, args: seen.append(hooks()))
    with sightline.attach(case.model, {"methods": [entry("paint")]}):
        generate(case.model, prompts(case, "one"))
        case.model(**prompts(case, "one"))
        with pytest.raises(LayoutError):
            case.model(input_ids=prompts(case, "one")["input_ids"])
        assert hooks() == 0
    watch.remove()
    assert seen == [4, 4]


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_vl", "smolvlm", "llama"])
def test_paint_refuses_other_towers(family: str) -> None:
    model = shared(family).model
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, "paint")
    assert_message(caught.value, "paint", "class token", model.config.model_type, "use pai")


# --- emphasis --------------------------------------------------------------------------------------------------------

TEXTS = [
    "Name a city. <emphasis>Answer in one word.</emphasis> It is late.",
    "Is it late? <emphasis>Say no.</emphasis> Then name <emphasis>one city</emphasis>.",
]


@functools.cache
def tokenizer() -> tf.PreTrainedTokenizerFast:
    """A byte-level BPE with few enough tokens for the tiny models; padding on the left."""
    raw = tk.Tokenizer(tk.models.BPE())
    raw.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tk.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", *(f"<{i}>" for i in range(7))]  # ids below 10, as in `tiny`
    raw.train_from_iterator(
        [*TEXTS, "[]"] * 3, tk.trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", padding_side="left", clean_up_tokenization_spaces=False
    )


def encoded(texts: list[str], **how: Any) -> tiny.Inputs:
    out = tokenizer()(texts, return_tensors="pt", padding=True, **how)
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


def overlapping(texts: list[str], spans: list[list[tuple[int, int]]]) -> Tensor:
    """By the tokenizer's own offsets: which tokens of a left-padded batch share a character with the row's spans."""
    out = tokenizer()(texts, return_offsets_mapping=True)["offset_mapping"]
    width = max(map(len, out))
    rows = [
        [any(a < stop and b > start for start, stop in own) for a, b in row]
        for row, own in zip(out, spans, strict=True)
    ]
    return torch.tensor([[False] * (width - len(row)) + row for row in rows])


def between_marks(text: str) -> list[tuple[int, int]]:
    return [match.span(1) for match in re.finditer("<emphasis>(.*?)</emphasis>", text)]


def found(texts: list[str], settings: dict[str, Any], emphasis: Any) -> list[int]:
    """The number of emphasised tokens in each row, as the report tells."""
    with sightline.attach(
        shared("llama").model, {"methods": [{"spotlight": settings}]}, processor=tokenizer(), emphasis=emphasis
    ) as plug:
        generate(shared("llama").model, encoded(texts))
        return plug.report()["spotlight"]["emphasised"]


def answer(texts: list[str], emphasis: Any) -> Any:
    case = shared("llama")
    config = {"methods": [{"spotlight": {"target": 0.7}}, {"pasta": {"head_list": SOME}}]}
    with sightline.attach(case.model, config, processor=tokenizer(), emphasis=emphasis):
        return generate(case.model, encoded(texts))


def test_marks_in_the_prompt() -> None:
    """A batch of two rows, the second with two passages: as if a function had marked their tokens."""
    mask = overlapping(TEXTS, [between_marks(text) for text in TEXTS])
    assert 0 < mask.sum() < encoded(TEXTS)["attention_mask"].sum() / 2
    assert answer(TEXTS, None).same_bits(answer(TEXTS, lambda ids: mask))
    assert not answer(TEXTS, None).same_bits(answer(TEXTS, lambda ids: mask.roll(1, 1)))


def test_marks_taken_out_before_tokenising() -> None:
    text, passages = unmark(TEXTS[1])
    assert (text, passages) == ("Is it late? Say no. Then name one city.", ["Say no.", "one city"])
    mask = overlapping([text], [[(text.find(p), text.find(p) + len(p)) for p in passages]])
    assert answer([text], passages).same_bits(answer([text], lambda ids: mask))
    one = overlapping([text], [[(12, 19)]])
    assert answer([text], "Say no.").same_bits(answer([text], lambda ids: one))


def test_overlapping_passages_are_united() -> None:
    """Twice emphasised is emphasised; a passage that occurs twice is emphasised twice."""
    text = "Say no. Say no. It is late."
    mask = overlapping([text], [[(0, 15)]])
    assert answer([text], ["Say no.", "no. Say"]).same_bits(answer([text], lambda ids: mask))
    nested = "Say <emphasis>no. <emphasis>It is</emphasis> late</emphasis>."
    assert unmark(nested) == ("Say no. It is late.", ["no. It is late"])
    assert between_marks(nested)[0][0] == 14
    mask = overlapping([nested], [[(14, nested.rfind("</emphasis>"))]])
    assert answer([nested], None).same_bits(answer([nested], lambda ids: mask))


def test_marks_of_your_own() -> None:
    text = "Say [no]. It is late."
    settings = {"begin": "[", "end": "]"}
    assert unmark(text, "[", "]") == ("Say no. It is late.", ["no"])
    assert found([text], settings, None) == overlapping([text], [[(5, 7)]]).sum(-1).tolist()


def test_the_image_as_emphasis() -> None:
    """Spotlight on the picture; a row without any stays plain."""
    case = shared("llava")
    batch = prompts(case, "mixed")
    bare = generate(case.model, case.row(batch, 1))
    with sightline.attach(case.model, {"methods": [{"spotlight": {"span": "image", "target": 0.9}}]}) as plug:
        both = generate(case.model, batch)
        assert plug.report()["spotlight"]["emphasised"] == (batch["input_ids"] == tiny.IMAGE).sum(-1).tolist()
    torch.testing.assert_close(both.logits[1:2], bare.logits, atol=BOUND, rtol=BOUND)


def refused_prompt(texts: list[str], emphasis: Any, *words: str, **how: Any) -> None:
    """Every one of the two methods refuses the prompt, with a LayoutError that says `words`."""
    case = shared("llama")
    for config in ({"spotlight": {}}, {"pasta": {"head_list": SOME}}):
        with (
            sightline.attach(case.model, {"methods": [config]}, processor=tokenizer(), emphasis=emphasis),
            pytest.raises(LayoutError) as caught,
        ):
            generate(case.model, encoded(texts, **how))
        assert_message(caught.value, *words)


def test_a_mark_that_never_closes() -> None:
    refused_prompt(["Say <emphasis>no."], None, "row 0", "'<emphasis>' at character 4", "never closes", "truncation")
    refused_prompt([TEXTS[0], "Say no.</emphasis>"], None, "row 1", "'</emphasis>' at character 7", "ends nothing")
    for text in ("Say <emphasis>no.", "Say no.</emphasis>", "<emphasis>a</emphasis></emphasis>"):
        with pytest.raises(LayoutError) as caught:
            unmark(text)
        assert_message(caught.value, "the text", "character")


def test_a_passage_cut_by_truncation() -> None:
    length = int(overlapping(TEXTS[:1], [between_marks(TEXTS[0])])[0].nonzero()[-1])
    cut = {"truncation": True, "max_length": length}
    refused_prompt(TEXTS[:1], None, "never closes", "truncation", **cut)
    refused_prompt(TEXTS[:1], ["Answer in one word."], "'Answer in one word.'", "row 0", "truncation", **cut)


def test_nothing_emphasised() -> None:
    refused_prompt([TEXTS[0], "Say no."], None, "row 1", "nothing between")
    refused_prompt(["Say <emphasis></emphasis>no."], None, "row 0", "nothing between")
    refused_prompt([TEXTS[0], "Say no."], ["Answer in one word."], "row 1", "does not stand in")
    refused_prompt(TEXTS, lambda ids: torch.zeros_like(ids), "no token", "marked")


def test_an_emphasis_function_that_does_not_fit() -> None:
    refused_prompt(TEXTS, lambda ids: torch.ones_like(ids[:, 1:]), "emphasis function", "shape")
    refused_prompt(TEXTS, lambda ids: [[True]], "emphasis function", "list")
    shorter = int(encoded(TEXTS)["attention_mask"].sum(-1).argmin())
    refused_prompt(TEXTS, lambda ids: torch.ones_like(ids), "padding", f"row {shorter}", "outside the prompt")


# --- what does not fit -----------------------------------------------------------------------------------------------


def directions(size: int, count: int) -> list[list[float]]:
    return [[0.5] * size] * count


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[SightlineError], tuple[str, ...]]] = {
    "a target of 0": ({"spotlight": {"target": 0.0}}, {}, ConfigError, ("spotlight.target", "greater than 0")),
    "a target of 1": ({"spotlight": {"target": 1.0}}, {}, ConfigError, ("spotlight.target", "less than 1")),
    "spotlight without a processor": ({"spotlight": {}}, {}, ConfigError, ("spotlight", "processor=", "emphasis=")),
    "pasta without a processor": ({"pasta": {"head_list": SOME}}, {}, ConfigError, ("pasta", "processor=")),
    "marks that are the same": (
        {"spotlight": {"begin": "*", "end": "*"}},
        {},
        ConfigError,
        ("spotlight", "begin", "end", "different"),
    ),
    "an empty mark": ({"pasta": {"begin": ""}}, {}, ConfigError, ("pasta.begin",)),
    "no retrieval heads": ({"pasta": {"span": "question"}}, {}, CalibrationError, ("pasta", "retrieval_heads")),
    "alpha 0": ({"pasta": {"alpha": 0.0}}, {}, ConfigError, ("pasta.alpha",)),
    "pasta's empty head list": ({"pasta": {"head_list": []}}, {}, ConfigError, ("pasta.head_list",)),
    "a head too many": (
        {"pasta": {"span": "image", "head_list": [[0, 8]]}},
        {},
        CalibrationError,
        ("pasta.head_list", "0-8", "4 layers of 8 heads"),
    ),
    "zerotuning's empty head list": ({"zerotuning": {"head_list": []}}, {}, ConfigError, ("zerotuning.head_list",)),
    "a gain of 0": ({"zerotuning": {"gain": 0}}, {}, ConfigError, ("zerotuning.gain",)),
    "a layer too many": ({"zerotuning": {"layers": [4]}}, {}, CalibrationError, ("zerotuning.layers", "layer 4")),
    "a gain of 0 in the table": (
        {"zerotuning": {}},
        {"first_token": {"gains": [[0.0] * 8] * 4}},
        CalibrationError,
        ("first_token.gains", "greater than 0"),
    ),
    "a table of other heads": (
        {"zerotuning": {}},
        {"first_token": {"gains": [[1.0] * 7] * 4}},
        CalibrationError,
        ("first_token.gains", "4 lists of 8"),
    ),
    "no OCR heads": ({"ocr_sink": {}}, {}, CalibrationError, ("ocr_sink", "ocr_heads")),
    "ocr_sink's empty head list": ({"ocr_sink": {"head_list": []}}, {}, ConfigError, ("ocr_sink.head_list",)),
    "more than the whole sink": ({"ocr_sink": {"beta": 1.5}}, {}, ConfigError, ("ocr_sink.beta",)),
    "more OCR heads than there are": (
        {"ocr_sink": {"heads": 33}},
        {"ocr_heads": {"scores": [[1.0] * 8] * 4}},
        CalibrationError,
        ("ocr_sink.heads", "33", "32"),
    ),
    "locore's empty layers": ({"locore": {"layers": []}}, {}, ConfigError, ("locore.layers",)),
    "a negative window": ({"locore": {"window": -1}}, {}, ConfigError, ("locore.window",)),
    "no directions": ({"focus": {}}, {"focus_heads": None}, CalibrationError, ("focus", "focus_heads")),
    "directions of another size": (
        {"focus": {}},
        {"focus_heads": {"heads": [[0, 1]], "directions": directions(7, 1)}},
        CalibrationError,
        ("focus_heads", "8 numbers", "7 numbers"),
    ),
    "fewer directions than heads": (
        {"focus": {}},
        {"focus_heads": {"heads": [[0, 1], [0, 2]], "directions": directions(8, 1)}},
        CalibrationError,
        ("focus_heads", "2 heads", "there are 1"),
    ),
    "a focus head too many": (
        {"focus": {}},
        {"focus_heads": {"heads": [[4, 1]], "directions": directions(8, 1)}},
        CalibrationError,
        ("focus_heads", "4-1"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit(name: str) -> None:
    settings, known, kind, words = BAD[name]
    case = shared("llava")
    with pytest.raises(kind) as caught:
        sightline.attach(case.model, {"methods": [settings]}, calibration={**calibration(case), **known})
    assert_message(caught.value, *words)


@pytest.mark.parametrize("given", [[], [""], ["Say no.", 3]], ids=["none", "empty", "a number"])
def test_emphasis_that_names_no_passage(given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        sightline.attach(shared("llama").model, "spotlight", processor=tokenizer(), emphasis=given)
    assert_message(caught.value, "emphasis=", "no passage")
