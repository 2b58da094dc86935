"""Methods as rules on float64 attention weights: the naive reference that `compare` holds the engine against."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sightline
import tokenizers as tk
import torch
import transformers as tf
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.helpers import tiny
from tests.helpers.engine import calibration, generate, prompts, shared

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
FAMILIES = ["llava_gqa", "qwen3", "mistral_sliding"]
BOUND = 1e-4
STEPS = 6


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


def vaf(enhance: float, suppress: float, layers: list[int]) -> Rule:
    """Behind the last image token: s_j := e s_j on the image, s_j := u s_j in front of it."""

    def change(layer: int, h: int, i: int, logits: Array, row: Row) -> Array:
        image = np.flatnonzero(row.image)
        if layer in layers and i > image[-1]:
            for j in range(image[0]):
                logits[j] *= suppress
            for j in image:
                logits[j] *= enhance
        return softmax(logits)

    return each_row(change)


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


def answer(texts: list[str], emphasis: Any) -> Any:
    case = shared("llama")
    config = {"methods": [{"spotlight": {"target": 0.7}}, {"pasta": {"head_list": SOME}}]}
    with sightline.attach(case.model, config, processor=tokenizer(), emphasis=emphasis):
        return generate(case.model, encoded(texts))


def directions(size: int, count: int) -> list[list[float]]:
    return [[0.5] * size] * count


def before_mark(row: Row) -> Array:
    """Mask [length]: the token before the last one with a question mark behind the image."""
    marked = np.zeros(row.length, dtype=bool)
    first = max(np.flatnonzero(row.image), default=-1) + 1
    places = [j for j in range(first, row.length) if row.ids[j] % 7 == 2]
    if places and places[-1] > 0:
        marked[places[-1] - 1] = True
    return marked


def scaled(gains: Array, rows: str = "all") -> Rule:
    """o_h := g_h o_h in the named rows, which is the same factor on all weights of the row."""

    def rule(layer: Layer, row: Row) -> Array:
        out = plain(layer, row).copy()
        count = out.shape[1]
        chosen = np.ones(count, dtype=bool)
        if rows != "all":
            chosen[:] = False
            chosen[: row.length] = before_mark(row) if rows == "question_mark" else row.span
        for h in range(len(out)):
            for i in np.flatnonzero(chosen):
                out[h, i] *= gains[layer.number, h]
        return out

    return rule
