"""The pure pieces of the methods and the attention function, against naive float64 loops and exact identities.

Random tensors, float32 against float64, to 1e-5. The naive attention walks over batch rows, heads and query rows; keys
carry absolute positions, so padding on the left, a cache that dropped its oldest keys and one with room at its end are
the same code. Hidden keys hold values fifty times larger than the others: one weight on them would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import sightline.plugin.core.attention as engine
import sightline.plugin.core.explicit as explicit
import torch
from sightline.plugin.core.edits import (
    Bias,
    Edit,
    Gain,
    InputProbe,
    Mass,
    OutputProbe,
    Reweight,
    Rows,
    WeightProbe,
    move,
)
from sightline.plugin.core.method import ModelFacts
from sightline.plugin.methods.gift import enhance, saliency
from sightline.plugin.methods.var import VAR, VARSettings, redistribute
from sightline.plugin.methods.vhr import VHRSettings, choose_heads
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.helpers import reference as ref

BATCH, HEADS, SIZE, PROMPT, PADDING = 2, 8, 8, 14, 3  # the second batch row is padded on the left
TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
RowEdit = Callable[[int, int, np.ndarray], np.ndarray]  # (batch row, query row, weights [H, K]) -> weights


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


class _Layer(nn.Module):
    """What the attention function reads from an attention module."""

    def __init__(self, groups: int):
        super().__init__()
        self.layer_idx = 0
        self.is_causal = True
        self.num_key_value_groups = HEADS // groups
        self.training = False


@dataclass
class Pass:
    """One forward pass of one layer: tensors, absolute key positions, and the mask [B, 1, q, K]."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    start: int
    positions: list[int]
    groups: int

    @property
    def count(self) -> int:
        return self.query.shape[2]

    def run(self, *edits: Edit, mask: Tensor | None = None) -> Tensor:
        """The engine's output [B, q, H, d]."""
        layer = _Layer(self.groups)
        layer.__dict__[engine.SLOT] = engine.Stage(engine.merge([{0: list(edits)}]), self.start, PROMPT)
        mask = self.mask if mask is None else mask
        return engine.attention(layer, self.query, self.key, self.value, mask, scaling=SIZE**-0.5)[0]

    def sdpa(self) -> Tensor:
        return sdpa_attention_forward(
            _Layer(self.groups), self.query, self.key, self.value, self.mask, scaling=SIZE**-0.5
        )[0]

    def seen(self, b: int, row: int) -> np.ndarray:
        """The keys [K] that a query row sees."""
        if self.mask is None:
            return np.array([p <= self.start + row for p in self.positions])
        return self.mask[b, 0, row].numpy()

    def naive(self, edit: RowEdit | None = None, bias: np.ndarray | None = None) -> np.ndarray:
        """softmax(q k^T / sqrt(d) + bias) v by loops; `edit` changes the weights; bias [B, H, n]. Padding rows: NaN."""
        q, k, v = (t.double().numpy() for t in (self.query, self.key, self.value))
        out = np.full((BATCH, self.count, HEADS, v.shape[-1]), np.nan)
        for b in range(BATCH):
            for row in range(self.count):
                seen = self.seen(b, row)
                if not seen.any():
                    continue
                weights = np.zeros((HEADS, len(self.positions)))
                for h in range(HEADS):
                    logits = k[b, h * self.groups // HEADS] @ q[b, h, row] / np.sqrt(SIZE)
                    if bias is not None:
                        logits = logits + [bias[b, h, p] if p < PROMPT else 0.0 for p in self.positions]
                    weights[h, seen] = ref.softmax(logits[seen])
                if edit is not None:
                    weights = edit(b, row, weights)
                for h in range(HEADS):
                    out[b, row, h] = weights[h] @ v[b, h * self.groups // HEADS]
        return out

    def check(self, got: Tensor, expected: np.ndarray) -> None:
        """Equal in every row that is not padding."""
        rows = ~np.isnan(expected).any((2, 3))
        assert rows.sum() >= BATCH * self.count - PADDING
        np.testing.assert_allclose(got.double().numpy()[rows], expected[rows], **TOLERANCE)

    def at(self, mask: np.ndarray) -> np.ndarray:
        """Values by prompt position [n] -> by key [K], zero for answer tokens."""
        return np.array([mask[p] if p < PROMPT else mask.dtype.type(0) for p in self.positions])


KINDS = ["prefill", "prefill_unmasked", "second_part", "decode", "decode_unmasked", "sliding", "sliding_far", "static"]


def _pass(kind: str, groups: int, seed: int = 0, identity: bool = False) -> Pass:
    """A pass of each kind. With `identity` the values are unit vectors, so that the output is the weights."""
    start, count, first, stop = {
        "prefill": (0, PROMPT, 0, PROMPT),
        "prefill_unmasked": (0, PROMPT, 0, PROMPT),
        "second_part": (PROMPT - 1, 1, 0, PROMPT),  # a held-back token
        "decode": (PROMPT + 2, 1, 0, PROMPT + 3),
        "decode_unmasked": (PROMPT + 2, 1, 0, PROMPT + 3),
        "sliding": (PROMPT + 2, 1, 5, PROMPT + 3),  # the cache dropped its five oldest keys
        "sliding_far": (PROMPT + 9, 1, PROMPT + 2, PROMPT + 10),  # and all of the prompt
        "static": (PROMPT + 2, 1, 0, PROMPT + 8),  # five keys of room
    }[kind]
    rng = torch.Generator().manual_seed(seed)
    total = stop - first
    positions = list(range(first, stop))
    query = 1.5 * torch.randn(BATCH, HEADS, count, SIZE, generator=rng)
    key = 1.5 * torch.randn(BATCH, groups, total, SIZE, generator=rng)
    value = torch.randn(BATCH, groups, total, SIZE, generator=rng)
    if kind.endswith("unmasked"):
        mask = None
    else:
        rows, columns = torch.arange(start, start + count), torch.tensor(positions)
        mask = (columns[None, :] <= rows[:, None]).expand(BATCH, 1, -1, -1).clone()
        mask[1, :, :, columns < PADDING] = False
        hidden = torch.zeros(BATCH, total, dtype=torch.bool)
        hidden[1, columns < PADDING] = True
        hidden[:, columns > start + count - 1] = True
        key, value = (torch.where(hidden[:, None, :, None], 50 * t, t) for t in (key, value))
    if identity:
        value = torch.eye(total).expand(BATCH, groups, -1, -1).clone()
    return Pass(query, key, value, mask, start, positions, groups)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[8, 2], ids=["mha", "gqa"])
def groups(request: pytest.FixtureRequest) -> int:
    return request.param


def _named(count: int) -> Rows | None:
    """Some rows of a prompt pass, others for each batch row; every row of a single-row pass."""
    if count == 1:
        return None
    active = torch.rand(BATCH, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    active[:, 0], active[0, 1], active[1, 2] = True, False, False
    return Rows(6, 13, active)


def _is_named(rows: Rows | None, b: int, row: int) -> bool:
    return rows is None or (rows.start <= row < rows.stop and bool(rows.active[b, row - rows.start]))


def _facts() -> ModelFacts:
    return ModelFacts(name="tiny", architecture="llava", layers=4, heads=HEADS, hidden=64)


# --- the attention function without edits ----------------------------------------------------------------------------


def test_naive_attention_is_sdpa(kind: str, groups: int) -> None:
    case = _pass(kind, groups)
    case.check(case.sdpa(), case.naive())


def test_unedited_layers_are_bit_equal(kind: str, groups: int) -> None:
    """Without a stage, with an empty one, with edits for another layer only: sdpa's own bits."""
    case = _pass(kind, groups)
    layer, plain = _Layer(groups), case.sdpa()
    for stage in (None, engine.Stage(), engine.Stage(engine.merge([{1: [Gain(torch.zeros(BATCH, HEADS))]}]))):
        if stage is not None:
            layer.__dict__[engine.SLOT] = stage
        got = engine.attention(layer, case.query, case.key, case.value, case.mask, scaling=SIZE**-0.5)[0]
        assert torch.equal(got, plain)


def test_probes_leave_the_bits(kind: str, groups: int) -> None:
    """Probes of weights, outputs and inputs together; what they see is right."""
    case = _pass(kind, groups)
    weights: list[tuple[Tensor, slice, int]] = []
    outputs: list[Tensor] = []
    low, high = (0, 1) if case.count == 1 else (4, 11)
    rows = Rows(low, high, torch.ones(BATCH, high - low, dtype=torch.bool))
    probes = [
        WeightProbe(lambda w, keys, first: weights.append((w, keys, first)), rows),
        OutputProbe(outputs.append),
        InputProbe(lambda hidden: None),
    ]
    got = case.run(*probes)
    assert torch.equal(got, case.sdpa())
    assert torch.equal(outputs[0], got)
    shown, keys, first = weights[0]
    assert first == low
    assert keys == slice(case.positions[0], max(case.positions[0], min(PROMPT, case.positions[-1] + 1)))
    expected: dict[tuple[int, int], np.ndarray] = {}

    def keep(b: int, row: int, w: np.ndarray) -> np.ndarray:
        expected[b, row] = w
        return w

    case.naive(keep)
    for (b, row), w in expected.items():
        if low <= row < high:
            np.testing.assert_allclose(shown[b, :, row - low].numpy(), w, **TOLERANCE)


# --- gains and biases ------------------------------------------------------------------------------------------------


def test_gain_scales_the_columns_of_o_proj(kind: str, groups: int) -> None:
    """W (g * a) = (W diag g) a: a gain on head outputs is a scaling of o_proj's columns."""
    case = _pass(kind, groups)
    factor = 3 * torch.rand(BATCH, HEADS, generator=torch.Generator().manual_seed(2))
    o_proj = torch.randn(20, HEADS * SIZE, generator=torch.Generator().manual_seed(3))
    plain = case.sdpa().flatten(2)
    for gain in (Gain(factor), Gain(lambda output: factor)):
        edited = case.run(gain).flatten(2) @ o_proj.T
        for b in range(BATCH):
            scaled = o_proj * factor[b].repeat_interleave(SIZE)
            torch.testing.assert_close(edited[b], plain[b] @ scaled.T, atol=1e-4, rtol=1e-5, equal_nan=True)


def test_gain_sees_the_edited_output() -> None:
    """A gain that is a function gets the outputs after the weight edits and after the gains before it."""
    case = _pass("decode", 2)
    seen: list[Tensor] = []

    def double(output: Tensor) -> Tensor:
        seen.append(output)
        return torch.full((BATCH, HEADS), 2.0)

    uniform = Reweight(lambda weights, logits, keys: torch.full_like(weights, 1 / weights.shape[-1]))
    got = case.run(Gain(torch.full((BATCH, HEADS), 3.0)), Gain(double), uniform)
    mean = case.value.mean(2).repeat_interleave(HEADS // 2, dim=1)[:, None]
    torch.testing.assert_close(seen[0], 3 * mean, **TOLERANCE)
    torch.testing.assert_close(got, 6 * mean, **TOLERANCE)


def _bias(shape: str, seed: int = 4) -> Tensor:
    sizes = {"full": (BATCH, HEADS, PROMPT), "shared": (1, 1, PROMPT), "heads": (1, HEADS, PROMPT)}[shape]
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", ["full", "shared", "heads"])
def test_bias_fused_and_explicit(kind: str, groups: int, shape: str) -> None:
    """softmax(z + bias): on the fused kernel, with explicit weights, and naively."""
    case = _pass(kind, groups)
    bias = _bias(shape)
    expected = case.naive(bias=bias.expand(BATCH, HEADS, PROMPT).double().numpy())
    same = Reweight(lambda weights, logits, keys: weights)
    case.check(case.run(Bias(bias)), expected)
    case.check(case.run(Bias(bias), same), expected)
    case.check(case.run(same, Bias(bias)), expected)
    half = bias / 2
    case.check(case.run(Bias(half), Bias(half)), expected)
    logged = Reweight(lambda weights, logits, keys: torch.softmax(logits, dim=-1))  # the biased logits, as documented
    case.check(case.run(Bias(bias), logged), expected)


def test_bias_is_a_multiplication(kind: str, groups: int) -> None:
    """Softmax weights times f_j, normalised again, are the bias log f_j."""
    case = _pass(kind, groups)
    bias = _bias("full").double().numpy()

    def multiply(b: int, row: int, weights: np.ndarray) -> np.ndarray:
        factors = np.exp([[bias[b, h, p] if p < PROMPT else 0.0 for p in case.positions] for h in range(HEADS)])
        return weights * factors / (weights * factors).sum(-1, keepdims=True)

    case.check(case.run(Bias(_bias("full"))), case.naive(multiply))


def test_bias_with_edited_rows(groups: int) -> None:
    """Rows that another edit names get bias and edit; the others the bias alone."""
    case = _pass("prefill", groups)
    rows, bias = _named(case.count), _bias("full")

    def square(b: int, row: int, weights: np.ndarray) -> np.ndarray:
        return weights**2 if _is_named(rows, b, row) else weights

    got = case.run(Bias(bias), Reweight(lambda weights, logits, keys: weights**2, rows=rows))
    case.check(got, case.naive(square, bias=bias.double().numpy()))


def test_additive_mask_equals_bool_mask(kind: str, groups: int) -> None:
    case = _pass(kind, groups)
    if case.mask is None:
        pytest.skip("no mask")
    added = torch.zeros(case.mask.shape).masked_fill(~case.mask, torch.finfo(torch.float32).min)
    reverse = Reweight(lambda weights, logits, keys: weights**2, rows=_named(case.count))
    expected = case.run(reverse)
    got = case.run(reverse, mask=added)
    rows = case.mask[:, 0].any(-1)
    torch.testing.assert_close(got[rows], expected[rows], **TOLERANCE)


# --- mass ------------------------------------------------------------------------------------------------------------


def _group(seed: int = 5) -> Tensor:
    """A random group of prompt keys [B, n, 1], with the last prompt token in it."""
    group = torch.rand(BATCH, PROMPT, 1, generator=torch.Generator().manual_seed(seed)) < 0.4
    group[:, -1], group[:, -3] = True, False
    return group.float()


@pytest.mark.parametrize("target", [0.0, 0.1, 0.5, 0.97])
def test_move_reaches_the_target(kind: str, groups: int, target: float) -> None:
    """The group's mass becomes t, both sides keep their proportions; a group out of sight changes nothing."""
    case = _pass(kind, groups, identity=True)
    group, rows = _group(), _named(case.count)
    got = case.run(Mass(lambda: group, move(target), renormalise=True, rows=rows)).double().numpy()

    def moved(b: int, row: int, weights: np.ndarray) -> np.ndarray:
        inside = case.at(group[b, :, 0].double().numpy()) > 0
        mass = weights[:, inside].sum(-1)
        if not _is_named(rows, b, row) or not (mass > 0).all():
            return weights
        out = weights.copy()
        for h in range(HEADS):
            out[h, inside] *= target / mass[h]
            out[h, ~inside] *= (1 - target) / (1 - mass[h])
            if (mass[h] < 1 - 1e-9) and _is_named(rows, b, row):
                assert out[h, inside].sum() == pytest.approx(target)
                np.testing.assert_allclose(got[b, row, h, inside].sum(), target, **TOLERANCE)
        return out

    case.check(torch.from_numpy(got), case.naive(moved))


@pytest.mark.parametrize("one_row", ["second_part", "decode", "decode_unmasked", "sliding", "static"])
def test_move_is_a_bias(one_row: str, groups: int) -> None:
    """Moving mass m to t is the bias logit(t) - logit(m) on the group."""
    case, target, group = _pass(one_row, groups), 0.35, _group()
    masses = np.zeros((BATCH, HEADS))

    def measure(b: int, row: int, weights: np.ndarray) -> np.ndarray:
        masses[b] = weights[:, case.at(group[b, :, 0].double().numpy()) > 0].sum(-1)
        return weights

    case.naive(measure)
    logit = np.log(target / (1 - target)) - np.log(masses / (1 - masses))
    bias = torch.from_numpy(logit).float()[:, :, None] * group[:, None, :, 0]
    by_mass = case.run(Mass(lambda: group, move(target), renormalise=True))
    torch.testing.assert_close(case.run(Bias(bias)), by_mass, **TOLERANCE)
    case.check(by_mass, case.naive(bias=logit[:, :, None] * group[:, None, :, 0].double().numpy()))


def test_mass_with_gradients_equals_mass_without(groups: int) -> None:
    """The path that autograd takes computes the same, and leaves the weights that it saw alone."""
    case = _pass("prefill", groups)
    group, rows = _group(), _named(case.count)
    edit = Mass(lambda: group, move(0.4), renormalise=True, rows=rows)
    expected = case.run(edit)
    with torch.enable_grad():
        case.query.requires_grad_()
        got = case.run(edit)
        got.nansum().backward()
    assert case.query.grad is not None
    torch.testing.assert_close(got.detach(), expected, equal_nan=True, **TOLERANCE)


def test_two_edits_with_different_rows(groups: int) -> None:
    """Each edit changes its own rows only; where both act, the second sees what the first left."""
    case = _pass("prefill", groups)
    first, second = Rows(3, 9, torch.ones(BATCH, 6, dtype=torch.bool)), _named(case.count)
    inside = [case.at(_group()[b, :, 0].double().numpy()) > 0 for b in range(BATCH)]

    def both(b: int, row: int, weights: np.ndarray) -> np.ndarray:
        if _is_named(first, b, row):
            weights = weights**2
        if _is_named(second, b, row):
            weights = weights * np.where(inside[b], 1 + weights[:, inside[b]].sum(-1, keepdims=True), 1.0)
        return weights

    edits = (
        Reweight(lambda weights, logits, keys: weights**2, rows=first),
        Mass(_group, lambda masses: masses, rows=second),
    )
    case.check(case.run(*edits), case.naive(both))


@pytest.mark.parametrize("elements", [1, 3 * BATCH * HEADS * PROMPT])
def test_chunks_change_nothing(groups: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in several chunks equal rows at once; a probe sees every row once and in order."""
    case, rows = _pass("prefill", groups), _named(PROMPT)
    assert rows is not None
    seen: list[tuple[int, Tensor]] = []
    edits: list[Edit] = [
        Bias(_bias("full")),
        WeightProbe(lambda w, keys, first: seen.append((first, w.clone())), Rows(2, 10, torch.ones(BATCH, 8).bool())),
        Mass(_group, move(0.3), renormalise=True, rows=rows),
        Mass(_group, lambda masses: masses, rows=Rows(1, 4, torch.ones(BATCH, 3).bool())),
        Gain(torch.rand(BATCH, HEADS)),
    ]
    whole = case.run(*edits)
    ((_, at_once),) = seen
    seen.clear()
    monkeypatch.setattr(explicit, "CHUNK_ELEMENTS", elements)
    chunked = case.run(*edits)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert len(seen) > 1
    at = 2
    for first, weights in seen:
        assert first == at
        at += weights.shape[2]
    assert at == 10
    torch.testing.assert_close(torch.cat([w for _, w in seen], 2), at_once, atol=1e-6, rtol=1e-6)


# --- VHR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("heads", [7, 8, 32])
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
@pytest.mark.parametrize("settings", [{}, {"filter_min_std": 0}, {"outlier_filter": False}], ids=str)
def test_choose_heads(settings: dict[str, Any], distance: str, heads: int, scale: float) -> None:
    """Eq. 4, 6 and 7 against loops, with heads planted that surge without the image; the guard is met and missed."""
    rng = torch.Generator().manual_seed(heads)
    image, text = (scale * torch.randn(16, heads, SIZE, generator=rng) for _ in range(2))
    surging = torch.randint(heads, (16,), generator=rng)
    text[torch.arange(16), surging] *= 4
    chosen = choose_heads(image, text, VHRSettings(distance=distance, **settings))
    dropped = 0
    for b in range(16):
        x, y = image[b].double().numpy(), text[b].double().numpy()
        expected, outliers = ref.vhr_heads(x, y, squared=distance == "squared", **settings)
        assert chosen[b].tolist() == expected.tolist()
        assert not (expected & outliers).any()
        dropped += outliers.sum()
    wanted = settings.get("outlier_filter", True) and (scale > 1 or not settings.get("filter_min_std", 1))
    assert dropped > 0 if wanted else True
    if scale == 0.05 and "filter_min_std" not in settings:
        assert dropped == 0


# --- VAR -------------------------------------------------------------------------------------------------------------


def _var_masks() -> tuple[np.ndarray, np.ndarray]:
    """Image and sink tokens [B, n]; the padded row's image lies elsewhere; sinks of both kinds, text sinks behind."""
    image, sinks = np.zeros((2, BATCH, PROMPT), dtype=bool)
    image[0, 2:8], image[1, 5:10] = True, True
    sinks[0, [0, 3, 9]], sinks[1, [3, 6, 9, 11]] = True, True
    return image, sinks


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize(
    ("p", "rho", "min_visual"), [(0.6, 0.5, 0.2), (0.3, 0.2, 0.4), (1.0, 0.8, 0.0), (0.0, 0.5, 0.1)]
)
def test_redistribute(kind: str, groups: int, form: str, p: float, rho: float, min_visual: float) -> None:
    """The weights of image-centric heads and rows, moved from sinks to the rest of the image; row sums stay 1."""
    case = _pass(kind, groups)
    image, sinks = _var_masks()
    settings = VARSettings(form=form, p=p, rho=rho, min_visual=min_visual, sink_dims=[0], tau=1.0)
    method = VAR(settings, _facts())
    groups_of_keys = torch.from_numpy(np.stack([sinks & image, sinks & ~image, image & ~sinks], -1)).float()
    images, rows = torch.from_numpy(image.sum(-1)).float()[:, None, None], _named(case.count)
    masses: list[Tensor] = []

    def rule(m: Tensor) -> Tensor:
        masses.append(m)
        return redistribute(m, images, method)

    got = case.run(Mass(lambda: groups_of_keys, rule, rows=rows))
    changed = [0, 0]
    paper = form == "paper"

    def edit(b: int, row: int, weights: np.ndarray) -> np.ndarray:
        visual, idle = case.at(image[b]), case.at(sinks[b])
        # The rule gets masses alone: no visual sink in sight is to it what no visual sink in the layer is.
        if not _is_named(rows, b, row) or not weights[:, visual & idle].sum() > 0:
            return weights
        out = weights.copy()
        for h in range(HEADS):
            how: dict[str, Any] = {"rho": rho, "min_visual": min_visual, "paper": paper}
            changed[1] += 1
            if ref.var_image_centric(weights[h], visual, idle, **how):
                changed[0] += 1
                out[h] = ref.var_redistribute(weights[h], visual, idle, paper=paper, p=p)
                assert out[h].sum() == pytest.approx(1.0)
        return out

    case.check(got, case.naive(edit))
    if kind != "sliding_far":
        assert changed[1] > 0
        assert changed[0] > 0 or min_visual > 0.3  # few heads of one row look at the image that much
        assert masses[0].dtype == torch.float32


# --- GIFT ------------------------------------------------------------------------------------------------------------


def _gift_masks() -> tuple[np.ndarray, np.ndarray]:
    """Image and question tokens [B, n]; the last prompt token is no question."""
    image, query = np.zeros((2, BATCH, PROMPT), dtype=bool)
    image[0, 2:8], image[1, 5:10] = True, True
    query[0, 8:13], query[1, 11:13] = True, True
    return image, query


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("heads", [7, 8])
@pytest.mark.parametrize("columns", [6, 40])
def test_saliency(layers: int, heads: int, columns: int) -> None:
    """Positive change, the better half of the heads per layer, mean, clamp at 3 unbiased std, min-max; per batch row.

    With forty columns the clamp bites: one of them is planted far outside.
    """
    rng = np.random.default_rng(columns)
    length = columns + 9
    image, query = np.zeros((2, BATCH, length), dtype=bool)
    image[0, 1 : 1 + columns], image[1, 2 : columns - 1] = True, True
    query[0, columns + 2 : columns + 7], query[1, [columns + 1, columns + 2, columns + 5]] = True, True
    weights = rng.dirichlet(np.full(length, 0.4), (layers, BATCH, heads, length))
    weights[:, 0, :, columns + 3, 4] += 3.0
    weights[:, 1, :, columns + 5, 4] += 3.0
    rise = np.maximum(weights[:, :, :, 1:] - weights[:, :, :, :-1], 0)
    change = np.einsum("lbhin,bi->lbhn", rise, query[:, 1:].astype(float)) * image[:, None]
    got = saliency(
        [torch.from_numpy(c).float() for c in change],
        torch.from_numpy(query.sum(-1)),
        torch.from_numpy(image),
        heads // 2,
    )
    for b in range(BATCH):
        expected = ref.gift_saliency(list(weights[:, b]), query[b], image[b])
        assert expected is not None
        np.testing.assert_allclose(got[b].numpy(), expected, **TOLERANCE)
        assert expected.min() == 0
        assert expected.max() == 1


def test_saliency_of_a_flat_map() -> None:
    """No change, no question row, a single image column: no saliency, and no NaN."""
    image, query = (torch.from_numpy(m) for m in _gift_masks())
    none = saliency([torch.zeros(BATCH, HEADS, PROMPT)], query.sum(-1), image, HEADS // 2)
    assert not none.any()
    change = torch.rand(BATCH, HEADS, PROMPT) * image[:, None]
    one = torch.zeros_like(image)
    one[:, 5] = True
    assert not saliency([change * one[:, None]], query.sum(-1), one, HEADS // 2).any()
    assert not saliency([change * 0], torch.zeros(BATCH), torch.zeros_like(image), HEADS // 2).any()


@pytest.mark.parametrize("beta", [1.0, 0.8, 2.0])
@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_enhance(kind: str, groups: int, alpha: float, beta: float) -> None:
    """m_j on the image for H_V, beta r on the question for H_T, one r per layer and batch row, normalised again."""
    case = _pass(kind, groups)
    image, query = _gift_masks()
    rng = torch.Generator().manual_seed(7)
    multiplier = torch.exp(alpha * torch.rand(BATCH, PROMPT, generator=rng))
    seen, asked = torch.from_numpy(image).float(), torch.from_numpy(query).float()
    keys = torch.stack([seen, asked, seen * multiplier], -1)
    basis = torch.stack([seen * (multiplier - 1), asked], -1)
    rows = None
    if case.count > 1:  # the last prompt row
        rows = Rows(case.count - 1, case.count, torch.ones(BATCH, 1, dtype=torch.bool))
    rule = Mass(lambda: keys, lambda m: enhance(m, HEADS // 2, beta), lambda: basis, renormalise=True, rows=rows)

    def edit(b: int, row: int, weights: np.ndarray) -> np.ndarray:
        visual = case.at(image[b])
        if not _is_named(rows, b, row) or not visual.any():  # the image left the window: no ratio
            return weights
        factors = case.at(multiplier[b].double().numpy())
        return ref.gift_enhance(weights, factors, visual, case.at(query[b]), beta)

    case.check(case.run(rule), case.naive(edit))
