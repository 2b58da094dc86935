"""A slow second opinion: a Llama-type decoder and the three methods in NumPy float64, from the papers' formulas.

Nothing of the engine is used here. The decoder takes the weights of a `LlavaForConditionalGeneration` and the embedded
prompt (text and image features) of one unpadded row, and computes every softmax in full, one head and one query row at
a time. A method is an object with four hooks, called for every layer of every pass:

    enter(layer, hidden, at)      the hidden states [rows, hidden] that enter the layer
    reweigh(layer, weights, at)   softmax weights [heads, rows, keys] -> weights, in the order of the methods
    rescale(layer, outputs, at)   head outputs [rows, heads, d] -> outputs, after all weights are settled
    begin(prompt, decoder)        once per prompt, before anything else

`at` are the absolute positions of the pass's query rows. Keys and values of earlier rows are kept as they were computed
at their time, edits included, as a key-value cache keeps them.

Sources: VHR arXiv 2412.13949, VAR arXiv 2503.03321, GIFT arXiv 2510.22067, PAI arXiv 2407.21771, PAINT arXiv 2501.12206;
secondary sinks arXiv 2512.22213.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def softmax(logits: Array) -> Array:
    """exp(z_j) / sum exp(z_k)."""
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * gain."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def rotate(x: Array, position: int, theta: float) -> Array:
    """RoPE of head vectors [heads, d]: the pair (x_i, x_{i + d/2}) is turned by position * theta^(-2i/d)."""
    half = x.shape[-1] // 2
    angles = position * theta ** (-2 * np.arange(half) / x.shape[-1])
    first, second = x[:, :half], x[:, half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)


def unbiased_std(values: Array) -> float:
    """sqrt(sum (x - mean)^2 / (n - 1))."""
    return float(np.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1)))


@dataclass(frozen=True)
class Prompt:
    """One unpadded prompt: embeddings [n, hidden], image and question tokens [n].

    Without a `query` of its own the question is every text token behind the last image except the prompt's last token,
    which is the one that begins to answer.
    """

    embeds: Array
    image: Mask
    query: Mask

    @property
    def length(self) -> int:
        return len(self.embeds)


@dataclass
class Cache:
    """Rotated keys and values by layer, one entry [kv heads, d] per position."""

    keys: list[list[Array]]
    values: list[list[Array]]


class Method:
    """A method that changes nothing."""

    def begin(self, prompt: Prompt, decoder: Decoder) -> None:
        """Called once per prompt."""

    def enter(self, layer: int, hidden: Array, at: Sequence[int]) -> None:
        """Sees the hidden states that enter a layer."""

    def reweigh(self, layer: int, weights: Array, at: Sequence[int]) -> Array:
        """Changes attention weights [heads, rows, keys]."""
        return weights

    def rescale(self, layer: int, outputs: Array, at: Sequence[int]) -> Array:
        """Changes head outputs [rows, heads, d] before o_proj."""
        return outputs


class Decoder:
    """The text decoder of a LLaVA model with Llama layers: RMSNorm, RoPE, grouped-query attention, gated MLP."""

    def __init__(self, model: Any):
        text = model.config.text_config
        self.layers: int = text.num_hidden_layers
        self.heads: int = text.num_attention_heads
        self.groups: int = text.num_key_value_heads
        self.hidden: int = text.hidden_size
        self.size: int = self.hidden // self.heads
        self.eps: float = text.rms_norm_eps
        self.theta: float = text.rope_parameters["rope_theta"]
        self.image_token: int = model.config.image_token_id
        self._weights = {
            name.rpartition("language_model.")[2].removeprefix("model."): value.detach().double().numpy()
            for name, value in model.state_dict().items()
            if "vision_tower" not in name and "projector" not in name
        }
        self._embedder = copy.deepcopy(model).double()
        self.logits: dict[
            int, Array
        ] = {}  # of the layer's last pass, -inf where a row does not see [heads, rows, keys]

    def _w(self, name: str) -> Array:
        return self._weights[name + ".weight"]

    def prompt(self, inputs: dict[str, torch.Tensor], query: Mask | None = None) -> Prompt:
        """Embed one unpadded row: what the text decoder of transformers would be handed."""
        assert len(inputs["input_ids"]) == 1
        caught: list[torch.Tensor] = []

        def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            caught.append(kwargs["inputs_embeds"])

        handle = self._embedder.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
        with torch.no_grad():
            self._embedder(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
        handle.remove()
        image = inputs["input_ids"][0].numpy() == self.image_token
        if query is None:
            last_image = max((j for j in range(len(image)) if image[j]), default=-1)
            query = np.array([last_image < j < len(image) - 1 for j in range(len(image))])
        return Prompt(caught[0][0].numpy(), image, query)

    def token(self, token: int) -> Array:
        """The embedding [1, hidden] of a generated token."""
        return self._w("embed_tokens")[[token]]

    def empty(self) -> Cache:
        return Cache([[] for _ in range(self.layers)], [[] for _ in range(self.layers)])

    def run(self, embeds: Array, cache: Cache, methods: Sequence[Method]) -> Array:
        """One pass over new rows; extends the cache and returns logits [rows, vocab]."""
        start = len(cache.keys[0])
        at = range(start, start + len(embeds))
        x = embeds
        for layer in range(self.layers):
            for method in methods:
                method.enter(layer, x, at)
            normed = rms_norm(x, self._w(f"layers.{layer}.input_layernorm"), self.eps)
            x = x + self._attend(layer, normed, at, cache, methods)
            normed = rms_norm(x, self._w(f"layers.{layer}.post_attention_layernorm"), self.eps)
            gate = normed @ self._w(f"layers.{layer}.mlp.gate_proj").T
            up = normed @ self._w(f"layers.{layer}.mlp.up_proj").T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self._w(f"layers.{layer}.mlp.down_proj").T
        return rms_norm(x, self._w("norm"), self.eps) @ self._w("lm_head").T

    def _attend(self, layer: int, x: Array, at: Sequence[int], cache: Cache, methods: Sequence[Method]) -> Array:
        """softmax(q k^T / sqrt(d)) v per head and row, with every method's changes, then o_proj."""
        q = (x @ self._w(f"layers.{layer}.self_attn.q_proj").T).reshape(len(x), self.heads, self.size)
        k = (x @ self._w(f"layers.{layer}.self_attn.k_proj").T).reshape(len(x), self.groups, self.size)
        v = (x @ self._w(f"layers.{layer}.self_attn.v_proj").T).reshape(len(x), self.groups, self.size)
        for i, position in enumerate(at):
            cache.keys[layer].append(rotate(k[i], position, self.theta))
            q[i] = rotate(q[i], position, self.theta)
            cache.values[layer].append(v[i])
        keys, values = np.stack(cache.keys[layer]), np.stack(cache.values[layer])

        weights = np.zeros((self.heads, len(x), len(keys)))
        self.logits[layer] = np.full(weights.shape, -np.inf)
        for h in range(self.heads):
            group = h // (self.heads // self.groups)
            for i, position in enumerate(at):
                logits = keys[: position + 1, group] @ q[i, h] / math.sqrt(self.size)
                self.logits[layer][h, i, : position + 1] = logits
                weights[h, i, : position + 1] = softmax(logits)
        for method in methods:
            weights = method.reweigh(layer, weights.copy(), at)
        outputs = np.zeros((len(x), self.heads, self.size))
        for h in range(self.heads):
            group = h // (self.heads // self.groups)
            for i in range(len(x)):
                outputs[i, h] = weights[h, i] @ values[:, group]
        for method in methods:
            outputs = method.rescale(layer, outputs.copy(), at)
        return outputs.reshape(len(x), -1) @ self._w(f"layers.{layer}.self_attn.o_proj").T


# --- VHR, arXiv 2412.13949 -------------------------------------------------------------------------------------------


def vhr_layers(layers: int, model: str = "llava") -> list[int]:
    """The second layer and the last 14 of 32, in proportion (section 4.4 names {1, 18..31} for 32 layers); InstructBLIP

    the last 18.
    """
    if model == "instructblip":
        return list(range(layers - round(18 * layers / 32), layers))
    return sorted({1, *range(layers - round(14 * layers / 32), layers)})


def vhr_heads(
    image: Array,
    text: Array,
    *,
    squared: bool = True,
    outlier_filter: bool = True,
    filter_min_std: float = 1.0,
) -> tuple[Mask, Mask]:
    """The chosen heads [H] and the outliers [H], from head outputs [H, d] at the last prompt position.

    Eq. 4: VHD_h = ||A_h(image, text) - A_h(text)||, or its square.
    Eq. 6: VHD_h := 0 where VHD_h > mean + std of VHD and TA_h = ||A_h(text)||^2 > mean + std of TA; the release's
    guard: only in layers whose (unbiased) std of VHD exceeds a number.
    Eq. 7: chosen are heads with VHD_h > median(VHD), the lower of the two middle values.
    """
    heads = len(image)
    vhd, ta = np.zeros(heads), np.zeros(heads)
    for h in range(heads):
        distance = sum((a - b) ** 2 for a, b in zip(image[h], text[h], strict=True))
        vhd[h] = distance if squared else math.sqrt(distance)
        ta[h] = sum(b**2 for b in text[h])
    outliers = np.zeros(heads, dtype=bool)
    if outlier_filter and unbiased_std(vhd) > filter_min_std:
        for h in range(heads):
            outliers[h] = vhd[h] > vhd.mean() + unbiased_std(vhd) and ta[h] > ta.mean() + unbiased_std(ta)
    vhd[outliers] = 0
    median = sorted(vhd)[(heads - 1) // 2]
    return vhd > median, outliers


@dataclass
class VHR(Method):
    """Alg. 1: choose heads layer by layer in the prompt's pass, earlier layers already reinforced; scale every row.

    The pass without the image runs plain and drops the image tokens from the sequence.
    """

    layers: Sequence[int]
    alpha: float = 2.0
    squared: bool = True
    outlier_filter: bool = True
    filter_min_std: float = 1.0
    chosen: dict[int, Mask] = field(default_factory=dict)
    outliers: dict[int, Mask] = field(default_factory=dict)
    _text: dict[int, Array] = field(default_factory=dict)
    _last: int = -1
    _has_image: bool = True

    def begin(self, prompt: Prompt, decoder: Decoder) -> None:
        self._last = prompt.length - 1
        self._has_image = bool(prompt.image.any())
        recorder = _Recorder()
        decoder.run(prompt.embeds[~prompt.image], decoder.empty(), [recorder])
        self._text = {layer: outputs[-1] for layer, outputs in recorder.outputs.items()}

    def rescale(self, layer: int, outputs: Array, at: Sequence[int]) -> Array:
        if layer not in self.layers or not self._has_image:
            return outputs
        if layer not in self.chosen:
            assert self._last in at, "the heads are chosen in a pass that holds the last prompt row"
            self.chosen[layer], self.outliers[layer] = vhr_heads(
                outputs[at.index(self._last)],
                self._text[layer],
                squared=self.squared,
                outlier_filter=self.outlier_filter,
                filter_min_std=self.filter_min_std,
            )
        for h in range(outputs.shape[1]):
            if self.chosen[layer][h]:
                outputs[:, h] *= self.alpha
        return outputs


class _Recorder(Method):
    """Keeps the head outputs of a plain pass."""

    def __init__(self) -> None:
        self.outputs: dict[int, Array] = {}

    def rescale(self, layer: int, outputs: Array, at: Sequence[int]) -> Array:
        self.outputs[layer] = outputs
        return outputs


# --- secondary sinks, arXiv 2512.22213 -------------------------------------------------------------------------------


@dataclass
class Secondary:
    """Prompt tokens j > 0 whose state x_j, entering one of `layers`, has |cos(x_j, x_0)| > `cosine`: masks [n]."""

    layers: Sequence[int]
    cosine: float = 0.9
    margin: float = math.inf
    _first: dict[int, Array] = field(default_factory=dict)
    _found: dict[int, set[int]] = field(default_factory=dict)

    def enter(self, layer: int, hidden: Array, at: Sequence[int], length: int) -> None:
        if layer not in self.layers:
            return
        for x, position in zip(hidden, at, strict=True):
            if position == 0:
                self._first[layer], self._found[layer] = x, set()
            elif position < length:
                first = self._first[layer]
                cosine = abs(float(x @ first)) / math.sqrt(float(x @ x) * float(first @ first))
                self.margin = min(self.margin, abs(cosine - self.cosine))
                if cosine > self.cosine:
                    self._found[layer].add(position)

    def mask(self, layer: int, keys: int) -> Mask:
        found = self._found.get(layer, set())
        return np.array([j in found for j in range(keys)])


@dataclass
class Boost(Method):
    """PAI and PAINT: from the last prompt row on, s_j += share_j |s_j| in `layers`, except for secondary sinks.

    `share` [n]: alpha on every image token (PAI); alpha on local, beta on summary tokens (PAINT).
    """

    share: Callable[[Prompt], Array]
    layers: Sequence[int]
    secondary: Secondary = field(default_factory=lambda: Secondary([]))
    _prompt: Prompt | None = None
    _decoder: Decoder | None = None

    def begin(self, prompt: Prompt, decoder: Decoder) -> None:
        self._prompt, self._decoder = prompt, decoder

    def enter(self, layer: int, hidden: Array, at: Sequence[int]) -> None:
        assert self._prompt is not None
        self.secondary.enter(layer, hidden, at, self._prompt.length)

    def reweigh(self, layer: int, weights: Array, at: Sequence[int]) -> Array:
        assert self._prompt is not None
        assert self._decoder is not None
        if layer not in self.layers:
            return weights
        share, sinks = self.share(self._prompt), self.secondary.mask(layer, self._prompt.length)
        for i, position in enumerate(at):
            if position < self._prompt.length - 1:
                continue
            for h in range(len(weights)):
                logits = self._decoder.logits[layer][h, i].copy()
                for j in range(self._prompt.length):
                    if not sinks[j]:
                        logits[j] += share[j] * abs(logits[j])
                weights[h, i] = softmax(logits)
        return weights


# --- VAR, arXiv 2503.03321 -------------------------------------------------------------------------------------------


def var_phi(x: Array, dims: Sequence[int]) -> float:
    """phi(x) = max over the sink dimensions of |x_d| / RMS(x), RMS without a learned gain, eps 1e-6."""
    rms = math.sqrt(sum(v * v for v in x) / len(x) + 1e-6)
    return max(abs(x[d]) for d in dims) / rms


def var_image_centric(row: Array, visual: Mask, sinks: Mask, *, paper: bool, rho: float, min_visual: float) -> bool:
    """vis = sum_V a >= min_visual, and the sink share sum_{S and V} a / (vis + 1e-6 |V|) small enough.

    Release: share <= rho. Paper: the visual non-sink ratio 1 - share >= rho.
    """
    vis = row[visual].sum()
    share = row[visual & sinks].sum() / (vis + 1e-6 * visual.sum())
    return bool(vis >= min_visual and (1 - share >= rho if paper else share <= rho))


def var_redistribute(
    row: Array, visual: Mask, sinks: Mask, *, paper: bool, p: float, aside: Mask | None = None
) -> Array:
    """Sinks keep p (release) or 1 - p (paper) of their weight; what they lose goes to V \\ S in proportion.

    `aside`: tokens of V \\ S that get nothing.
    """
    keep = 1 - p if paper else p
    budget = (1 - keep) * row[sinks].sum()
    rest = visual & ~sinks if aside is None else visual & ~sinks & ~aside
    total = row[rest].sum()
    out = row.copy()
    for j in range(len(row)):
        if sinks[j]:
            out[j] = keep * row[j]
        elif rest[j]:
            out[j] = row[j] + budget * row[j] / total
    return out


@dataclass
class VAR(Method):
    """Sinks of the layers 2.. are found in the prompt and stay; rows behind the image and decode rows are edited.

    `text_rows`: all text rows instead of those behind the last image. `kept` counts (image-centric, seen) head rows.
    """

    dims: Sequence[int]
    tau: float
    p: float = 0.6
    rho: float = 0.5
    min_visual: float = 0.2
    paper: bool = False
    last_layer: bool = True
    text_rows: bool = False
    kept: list[int] = field(default_factory=lambda: [0, 0])
    sinks: dict[int, Mask] = field(default_factory=dict)
    margin: float = math.inf
    secondary: Secondary = field(default_factory=lambda: Secondary([]))
    _prompt: Prompt | None = None
    _layers: range = range(0)

    def begin(self, prompt: Prompt, decoder: Decoder) -> None:
        self._prompt = prompt
        self._layers = range(2, decoder.layers if self.last_layer else decoder.layers - 1)
        self.sinks = {layer: np.zeros(prompt.length, dtype=bool) for layer in self._layers}

    def enter(self, layer: int, hidden: Array, at: Sequence[int]) -> None:
        assert self._prompt is not None
        self.secondary.enter(layer, hidden, at, self._prompt.length)
        if layer not in self._layers:
            return
        for x, position in zip(hidden, at, strict=True):
            if position < self._prompt.length:
                phi = var_phi(x, self.dims)
                self.sinks[layer][position] = phi > self.tau
                self.margin = min(self.margin, abs(phi / self.tau - 1))

    def reweigh(self, layer: int, weights: Array, at: Sequence[int]) -> Array:
        assert self._prompt is not None
        if layer not in self._layers:
            return weights
        image, n = self._prompt.image, self._prompt.length
        keys = weights.shape[2]
        visual = np.array([j < n and bool(image[j]) for j in range(keys)])
        sinks = np.array([j < n and bool(self.sinks[layer][j]) for j in range(keys)])
        aside = self.secondary.mask(layer, keys)
        last_image = max(j for j in range(n) if image[j])
        for i, position in enumerate(at):
            if position < n and (image[position] if self.text_rows else position <= last_image):
                continue
            if not (visual & sinks)[: position + 1].any():
                continue  # a row that sees no visual sink stays
            for h in range(weights.shape[0]):
                row = weights[h, i]
                centric = var_image_centric(
                    row, visual, sinks, paper=self.paper, rho=self.rho, min_visual=self.min_visual
                )
                self.kept[1] += 1
                if centric:
                    self.kept[0] += 1
                    weights[h, i] = var_redistribute(row, visual, sinks, paper=self.paper, p=self.p, aside=aside)
        return weights


# --- GIFT, arXiv 2510.22067 ------------------------------------------------------------------------------------------


def gift_saliency(layers: Sequence[Array], query: Mask, image: Mask, *, rows: Mask | None = None) -> Array | None:
    """The map s [n], zero outside the image, from weights [H, n, n] of each saliency layer; None where it is flat.

    Delta_{h,i,j} = max(a_{h,i,j} - a_{h,i-1,j}, 0) for question rows i and image columns j, the first row against the
    token just before it; per layer the H/2 heads with the largest total; mean over layers, those heads and rows; clamp
    to mean +- 3 std (unbiased); min-max. `rows` narrows the question rows, after the difference and before the totals.
    """
    rows = query if rows is None else query & rows
    picked = [i for i in range(len(rows)) if rows[i]]
    columns = [j for j in range(len(image)) if image[j]]
    if not picked or not columns:
        return None
    changes: list[Array] = []
    for a in layers:
        totals = []
        for h in range(len(a)):
            delta = np.zeros((len(picked), len(columns)))
            for r, i in enumerate(picked):
                for c, j in enumerate(columns):
                    delta[r, c] = max(a[h, i, j] - a[h, i - 1, j], 0.0)
            totals.append(delta)
        best = sorted(range(len(a)), key=lambda h: -totals[h].sum())[: len(a) // 2]
        changes += [totals[h] for h in best]
    s = np.stack(changes).mean((0, 1))
    mean, std = s.mean(), unbiased_std(s)
    s = np.clip(s, mean - 3 * std, mean + 3 * std)
    if s.max() == s.min():
        return None
    out = np.zeros(len(image))
    out[columns] = (s - s.min()) / (s.max() - s.min())
    return out


def gift_enhance(rows: Array, multiplier: Array, image: Mask, query: Mask, beta: float) -> Array:
    """The last row of every head, [H, K] -> [H, K].

    H_V: the H/2 heads with the largest visual mass get a_j m_j on the image. r: ratio of visual mass after to before
    over H_V, one number. H_T: the H/2 heads with the largest mass on the question get beta r a_j there. Rows are
    normalised again.
    """
    heads = len(rows)
    out = rows.copy()
    by_image = sorted(range(heads), key=lambda h: -rows[h][image].sum())[: heads // 2]
    before = after = 0.0
    for h in by_image:
        out[h][image] = rows[h][image] * multiplier[image]
        before += rows[h][image].sum()
        after += out[h][image].sum()
    r = after / before
    by_query = sorted(range(heads), key=lambda h: -rows[h][query].sum())[: heads // 2]
    for h in by_query:
        out[h][query] = beta * r * rows[h][query]
    for h in range(heads):
        out[h] /= out[h].sum()
    return out


@dataclass
class GIFT(Method):
    """Saliency from the question rows as this method finds them, once per prompt; last prompt row and decode rows."""

    saliency_layers: Sequence[int]
    enhanced_layers: Sequence[int]
    alpha: float
    beta: float = 1.0
    saliency: Array | None = None
    secondary: Secondary = field(default_factory=lambda: Secondary([]))
    _prompt: Prompt | None = None
    _weights: dict[int, Array] = field(default_factory=dict)
    _done: bool = False

    @property
    def late(self) -> bool:
        """Whether the map is complete only after a layer that already needs it."""
        return max(self.saliency_layers) >= min(self.enhanced_layers)

    def begin(self, prompt: Prompt, decoder: Decoder) -> None:
        self._prompt = prompt
        n = prompt.length
        self._weights = {layer: np.full((decoder.heads, n, n), np.nan) for layer in self.saliency_layers}

    def enter(self, layer: int, hidden: Array, at: Sequence[int]) -> None:
        assert self._prompt is not None
        self.secondary.enter(layer, hidden, at, self._prompt.length)

    def reweigh(self, layer: int, weights: Array, at: Sequence[int]) -> Array:
        assert self._prompt is not None
        n = self._prompt.length
        if layer in self.saliency_layers and at[0] < n - 1:
            for i, position in enumerate(at):
                self._weights[layer][:, position, : weights.shape[2]] = weights[:, i, :n]
        if layer in self.enhanced_layers and at[-1] >= n - 1:
            if not self._done:
                maps = [self._weights[k] for k in self.saliency_layers]
                self.saliency, self._done = gift_saliency(maps, self._prompt.query, self._prompt.image), True
            if self.saliency is not None:
                pad = np.zeros(weights.shape[2] - n)
                multiplier = np.exp(self.alpha * np.concatenate([self.saliency, pad]))
                multiplier[self.secondary.mask(layer, len(multiplier))] = 1.0
                image, query = (np.concatenate([m, pad > 0]) for m in (self._prompt.image, self._prompt.query))
                weights[:, -1] = gift_enhance(weights[:, -1], multiplier, image, query, self.beta)
        return weights


# --- generation ------------------------------------------------------------------------------------------------------


def generate(decoder: Decoder, prompt: Prompt, methods: Sequence[Method], tokens: Sequence[int]) -> Array:
    """Logits [steps, vocab] that predict each of `tokens`, every token fed back after its step.

    A saliency map that comes late for its own layers is settled before the last prompt row runs: that row is read by
    itself, after the others (which cannot see it). A choice of heads that needs the last row then comes from a pass of
    its own, without the enhancement.
    """
    for method in methods:
        method.begin(prompt, decoder)
    cache = decoder.empty()
    late = any(isinstance(m, GIFT) and m.late for m in methods)
    if late:
        if any(isinstance(m, VHR) for m in methods):
            decoder.run(prompt.embeds, decoder.empty(), [m for m in methods if not isinstance(m, GIFT)])
        decoder.run(prompt.embeds[:-1], cache, methods)
        logits = decoder.run(prompt.embeds[-1:], cache, methods)
    else:
        logits = decoder.run(prompt.embeds, cache, methods)
    steps = [logits[-1]]
    for token in tokens[:-1]:
        steps.append(decoder.run(decoder.token(token), cache, methods)[-1])
    return np.stack(steps)
