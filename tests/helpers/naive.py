"""A slow second opinion on the contrastive decoders: float64, one unpadded row, no cache, two whole passes per step.

Nothing of the engine is used here. `Naive` holds a double-precision copy of a model whose attention is the textbook
formula; a pass reads prompt and answer from the first token to the last. How a pass differs from a plain one is said by
*changes*, small hooks on q_proj (a zero query attends uniformly), on o_proj (head outputs), on the first layer (picture
embeddings) and on the attention logits.

A reference decoder is a function `decoder(naive, prompt, tokens) -> scores [len(tokens) + 1, V]`: row t is what the next
token is chosen by after `tokens[:t]`. It is causal, so one call gives every step of a given answer; `greedy` and `beams`
call it once per step all the same, and use its last row only.

Formulas: DeCoRe arXiv 2410.18860, HICD 2503.12908, AvisC 2405.17820, SID 2408.02032, VCD 2311.16922, ICD 2403.18715,
PAI 2407.21771, CAD 2305.14739, M3ID 2403.14003, DoLa 2309.03883, DeCo 2410.11779, JuICE 2503.10996, SGRS 2601.20279,
CG-VLM 2512.05546.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sightline.decoders import vcd
from sightline.plugin.branches.decoder import DECODERS
from sightline.plugin.branches.pictures import random_pixels
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.helpers import tiny

Inputs = dict[str, Tensor]
Head = tuple[int, int]  # (layer, query head)
Change = Callable[["Naive"], list[Any]]  # registers hooks, returns their handles
Decoder = Callable[["Naive", Inputs, Sequence[int]], Tensor]

TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")


# --- the model -------------------------------------------------------------------------------------------------------


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **how: Any) -> Any:
    """softmax(scale q k^T + mask) v, in the precision of its arguments; [1, H, n, d] -> [1, n, H, d], weights."""
    naive: Naive = module.__dict__["naive"]
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    naive.logits = logits = how["scaling"] * query @ key.transpose(2, 3)
    for boost in naive.boosts:
        logits = boost(module.layer_idx, logits)
    weights = (logits + attention_mask).softmax(-1)
    if torch.is_grad_enabled():
        weights.requires_grad_()
    naive.weights[module.layer_idx], naive.whole[module.layer_idx] = weights[0], weights
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("naive", _attend)
AttentionMaskInterface.register("naive", eager_mask)


@dataclass(frozen=True)
class Pass:
    """What one pass left: logits [n, V], by layer the state that entered it [n, hidden], weights [H, n, n] and head

    outputs [n, H, d] as o_proj got them.
    """

    logits: Tensor
    entering: dict[int, Tensor]
    weights: dict[int, Tensor]
    outputs: dict[int, Tensor]


class Naive:
    """A float64 copy of a model, run one whole sequence at a time."""

    def __init__(self, model: Any):
        self.model = copy.deepcopy(model).double()
        self.model.set_attn_implementation(
            {"text_config": "naive"} if hasattr(model.config, "text_config") else "naive"
        )
        self.layers = list(tiny.decoder(self.model).layers)
        text = self.model.config.get_text_config()
        self.heads: int = text.num_attention_heads
        self.image_token: int | None = getattr(self.model.config, "image_token_id", None)
        self.boosts: list[Callable[[int, Tensor], Tensor]] = []
        self.weights: dict[int, Tensor] = {}
        self.logits = torch.empty(0)  # of the layer under way, before any boost
        self.whole: dict[int, Tensor] = {}  # the same [1, H, n, n], as a pass with gradients has them in its graph
        for layer in self.layers:
            assert tiny.attention(layer).config._attn_implementation == "naive"
            tiny.attention(layer).__dict__["naive"] = self

    def image(self, prompt: Inputs) -> Tensor:
        """Which prompt tokens are picture placeholders [n]."""
        return prompt["input_ids"][0].eq(-1 if self.image_token is None else self.image_token)

    def run(
        self, prompt: Inputs, tokens: Sequence[int] = (), changes: Iterable[Change] = (), gradients: bool = False
    ) -> Pass:
        """One pass over an unpadded prompt of one row and an answer behind it."""
        assert prompt["input_ids"].shape[0] == 1
        assert bool(prompt["attention_mask"].all())
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in append(prompt, tokens).items()}
        entering: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        self.boosts, self.weights, self.whole = [], {}, {}
        handles = [handle for change in changes for handle in change(self)]
        for i, layer in enumerate(self.layers):  # registered last: they see what the changes left

            def enter(module: Any, args: Any, kwargs: dict[str, Any], i: int = i) -> None:
                entering[i] = (args[0] if args else kwargs["hidden_states"])[0]

            def leave(module: Any, args: Any, i: int = i) -> None:
                outputs[i] = self.split(args[0])[0]

            handles += [layer.register_forward_pre_hook(enter, with_kwargs=True)]
            handles += [out_proj(layer).register_forward_pre_hook(leave)]
        try:
            with torch.set_grad_enabled(gradients):
                logits = tiny.speaker(self.model, inputs)(**inputs, use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
            self.boosts = []
        return Pass(logits, entering, self.weights, outputs)

    def split(self, states: Tensor) -> Tensor:
        """[.., H d] -> [.., H, d]."""
        return states.unflatten(-1, (self.heads, -1))

    def readout(self, states: Tensor, norm: bool) -> Tensor:
        """Logits of hidden states [.., hidden], with or without the final norm before the output matrix."""
        with torch.no_grad():
            decoder = tiny.decoder(self.model)
            last = decoder.norm if hasattr(decoder, "norm") else decoder.final_layer_norm
            return self.model.get_output_embeddings()(last(states) if norm else states)


@functools.cache
def of(model: Any) -> Naive:
    """The reference of a model, built once, before anything is attached to it."""
    return Naive(model)


# --- prompts ---------------------------------------------------------------------------------------------------------


def append(prompt: Inputs, tokens: Sequence[int]) -> Inputs:
    """The prompt with text tokens behind it."""
    return insert(prompt, prompt["input_ids"].shape[1], tokens)


def insert(prompt: Inputs, at: int, tokens: Sequence[int]) -> Inputs:
    """The prompt with text tokens put before position `at`."""
    out = dict(prompt)
    for key in TOKEN_KEYS:
        if key in prompt:
            old = prompt[key]
            fill = {"input_ids": list(tokens), "attention_mask": [1] * len(tokens)}.get(key, [0] * len(tokens))
            new = old.new_tensor([fill]).long()
            if key == "cross_attention_mask":  # new tokens see what the one behind them does, or else the last
                new = old[:, min(at, old.shape[1] - 1)][:, None].expand(-1, len(tokens), -1, -1)
            out[key] = torch.cat([old[:, :at], new, old[:, at:]], dim=1)
    return out


def keep(prompt: Inputs, mask: Tensor, pictures: bool = True) -> Inputs:
    """The prompt with only the tokens of `mask` [n]; with `pictures` False the pixels go, too."""
    short = {key: value[:, mask] for key, value in prompt.items() if key in TOKEN_KEYS}
    return {**prompt, **short} if pictures else {key: short[key] for key in short if key != "cross_attention_mask"}


# --- changes ---------------------------------------------------------------------------------------------------------


def out_proj(layer: Any) -> Any:
    """The linear map behind the heads, by its name in Llama and in OPT."""
    heads = tiny.attention(layer)
    return heads.o_proj if hasattr(heads, "o_proj") else heads.out_proj


def _by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    grouped: dict[int, list[int]] = {}
    for layer, head in heads:
        grouped.setdefault(layer, []).append(head)
    return grouped


def uniform(heads: Iterable[Head], rows: slice) -> Change:
    """These heads attend uniformly to the visible keys in `rows`: their query is zero."""

    def register(naive: Naive) -> list[Any]:
        def hook(module: Any, args: Any, output: Tensor, chosen: list[int]) -> Tensor:
            split = naive.split(output.clone())
            split[:, rows, chosen] = 0.0
            return split.flatten(-2)

        return [
            naive.layers[layer].self_attn.q_proj.register_forward_hook(functools.partial(hook, chosen=chosen))
            for layer, chosen in _by_layer(heads).items()
        ]

    return register


def outputs(change: Callable[[int, Tensor], Tensor]) -> Change:
    """Head outputs become `change(layer, outputs [n, H, d])` before o_proj."""

    def register(naive: Naive) -> list[Any]:
        def hook(module: Any, args: Any, layer: int) -> Any:
            return (change(layer, naive.split(args[0])[0].clone()).flatten(-2)[None],)

        return [
            out_proj(layer).register_forward_pre_hook(functools.partial(hook, layer=i))
            for i, layer in enumerate(naive.layers)
        ]

    return register


def silent(heads: Iterable[Head], rows: slice) -> Change:
    """These heads put out zero in `rows`."""
    grouped = _by_layer(heads)

    def change(layer: int, states: Tensor) -> Tensor:
        states[rows, grouped.get(layer, [])] = 0.0
        return states

    return outputs(change)


def scaled(heads: Iterable[Head], factor: float) -> Change:
    """These heads put out `factor` times as much in every row (VHR's reinforcement)."""
    grouped = _by_layer(heads)

    def change(layer: int, states: Tensor) -> Tensor:
        states[:, grouped.get(layer, [])] *= factor
        return states

    return outputs(change)


def embedded(mask: Tensor, value: float) -> Change:
    """The prompt tokens of `mask` [n] enter the first layer as a vector of `value`."""

    def register(naive: Naive) -> list[Any]:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            states = (args[0] if args else kwargs["hidden_states"]).clone()
            states[0, : len(mask)][mask] = value
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        return [naive.layers[0].register_forward_pre_hook(hook, with_kwargs=True)]

    return register


def boosted(image: Tensor, alpha: float, first_layer: int = 2) -> Change:
    """PAI's boost: e_j += alpha |e_j| for image keys, in the last prompt row and behind it."""

    def register(naive: Naive) -> list[Any]:
        def boost(layer: int, logits: Tensor) -> Tensor:
            if layer < first_layer:
                return logits
            n, out = len(image), logits.clone()
            out[:, :, n - 1 :, :n] += alpha * naive.logits[:, :, n - 1 :, :n].abs() * image
            return out

        naive.boosts.append(boost)
        return []

    return register


def reinforced(
    naive: Naive, prompt: Inputs, alpha: float, layers: Sequence[int], others: Iterable[Change] = ()
) -> tuple[Change, list[Head]]:
    """VHR (arXiv 2412.13949): chosen in the last prompt row, layer by layer, against the prompt without its image.

    Squared distances, the outlier filter where their unbiased std exceeds 1, above the lower median. `others` are changes
    to the prompt's run.
    """
    n = prompt["input_ids"].shape[1]
    text = naive.run(keep(prompt, ~naive.image(prompt), pictures=False)).outputs
    chosen: list[Head] = []

    def change(layer: int, states: Tensor) -> Tensor:
        if layer in layers:
            alone = text[layer][-1]
            divergence, amount = (states[n - 1] - alone).square().sum(-1), alone.square().sum(-1)
            if divergence.std() > 1:
                surge = (divergence > divergence.mean() + divergence.std()) & (amount > amount.mean() + amount.std())
                divergence = divergence.masked_fill(surge, 0.0)
            best = divergence > divergence.sort().values[(naive.heads - 1) // 2]
            chosen.extend((layer, h) for h in range(naive.heads) if best[h])
            states[:, best] *= alpha
        return states

    naive.run(prompt, (), [*others, outputs(change)])
    return scaled(chosen, alpha), chosen


# --- rules -----------------------------------------------------------------------------------------------------------


def entropy(lp: Tensor) -> Tensor:
    """-sum p ln p of log-probabilities [T, V], [T]."""
    return -(lp.exp() * lp).sum(-1)


def contrast(strong: Tensor, weak: Tensor, alpha: float | Tensor) -> Tensor:
    """(1 + a) strong - a weak, with a number or one per row."""
    a = alpha[:, None] if isinstance(alpha, Tensor) else alpha
    return (1 + a) * strong - a * weak


def plausible(scores: Tensor, base: Tensor, beta: float) -> Tensor:
    """Scores, -inf where the base is not within beta of its best: log p < log(beta) + max log p."""
    if beta == 0:
        return scores
    return scores.masked_fill(base < base.max(-1, keepdim=True).values + math.log(beta), -math.inf)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2, m the mean of both; [.., V] -> [..]."""
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2


def mean_divergence(p: Tensor, q: Tensor) -> Tensor:
    """(KL(m || p) + KL(m || q)) / 2, m the mean of both; [.., V] -> [..]."""
    m = (p + q) / 2
    return ((m * (m / p).log()).sum(-1) + (m * (m / q).log()).sum(-1)) / 2


# --- decoders --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Base of the reference decoders. `edits` are the attention method's changes to the base (and, where the branch

    shares the prompt's rows, to the branch).
    """

    edits: tuple[Change, ...] = ()

    def answer(
        self,
        naive: Naive,
        prompt: Inputs,
        tokens: Sequence[int],
        changes: Iterable[Change] = (),
    ) -> Tensor:
        """Logits [len(tokens) + 1, V] that predict the answer's tokens and the one behind it."""
        return naive.run(prompt, tokens, changes).logits[prompt["input_ids"].shape[1] - 1 :]

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        return self.answer(naive, prompt, tokens, self.edits)


@dataclass(frozen=True)
class DeCoRe(Reference):
    """(1 + a) log p - a log p', p' with masked heads."""

    heads: Sequence[Head] = ()
    alpha: float | str = "entropy"
    cap: float | None = None
    scale: bool = False
    mask: str = "query"
    span: str = "last"

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        first = prompt["input_ids"].shape[1] - 1 if self.span == "last" else 0
        masked = {"query": uniform, "output": silent}[self.mask](self.heads, slice(first, None))
        p = self.answer(naive, prompt, tokens, self.edits).log_softmax(-1)
        q = self.answer(naive, prompt, tokens, [*self.edits, masked]).log_softmax(-1)
        if not isinstance(self.alpha, str):
            return contrast(p, q, self.alpha)
        a = entropy(p) if self.alpha == "entropy" else entropy(q) - entropy(p)
        if self.scale:
            a = a / math.log(p.shape[-1])
        if self.cap is not None:
            a = a.clamp(max=self.cap)
        return contrast(p, q, a)


@dataclass(frozen=True)
class HICD(Reference):
    """log_softmax(log p + a (log p - log p')), p' with dispersed heads."""

    heads: Sequence[Head] = ()
    alpha: float = 1.1
    span: str = "all"
    beta: float = 0.0

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        rows = slice(None) if self.span == "all" else slice(0, prompt["input_ids"].shape[1])
        p = self.answer(naive, prompt, tokens, self.edits).log_softmax(-1)
        q = self.answer(naive, prompt, tokens, [*self.edits, uniform(self.heads, rows)]).log_softmax(-1)
        return plausible(p + self.alpha * (p - q), p, self.beta).log_softmax(-1)


@dataclass(frozen=True)
class AvisC(Reference):
    """(1 + a) z - a z', z' with nothing but the blind image tokens; z far from the best is cut off."""

    gamma: float = 0.5
    lam: float = 1.0
    alpha: float = 1.0
    beta: float = 0.1
    fill: float = 0.0

    def blind(self, naive: Naive, prompt: Inputs) -> Tensor:
        """The blind image tokens [n], by the last prompt row's attention."""
        image = naive.image(prompt)
        weights = naive.run(prompt, (), self.edits).weights
        rows = [weights[layer][:, -1].mean(0)[image] for layer in range(len(naive.layers))]
        masses = torch.stack([row.sum() for row in rows])
        share, chosen = 0.0, []
        for layer in masses.argsort(descending=True).tolist():
            chosen.append(rows[layer])
            share += float(masses[layer] / masses.sum())
            if share >= self.gamma:
                break
        mean = torch.stack(chosen).mean(0)
        out = torch.zeros_like(image)
        out[image] = mean >= mean.mean() + self.lam * mean.std()
        return out

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        unseen = naive.image(prompt) & ~self.blind(naive, prompt)
        strong = self.answer(naive, prompt, tokens, self.edits)
        weak = self.answer(naive, prompt, tokens, [embedded(unseen, self.fill)])
        return plausible(contrast(strong, weak, self.alpha), strong, self.beta)


@dataclass(frozen=True)
class SID(Reference):
    """(1 + a) z - a z', z' blind from `layer` on to all image tokens but the share that layer - 1 looks at least.

    The prompt's rows see what its last row decides, each later row what it decides itself. earlier: where the last rows of
    earlier turns stand, whose prompts were read before this one's.
    """

    share: float = 0.5
    layer: int = 2
    alpha: float = 0.5
    beta: float = 0.1
    earlier: tuple[range, ...] = ()

    def seen(self, weights: Tensor, image: Tensor) -> Tensor:
        """The image tokens [n] that are seen, by a row's weights [H, n]."""
        looked = weights.mean(0)
        order = sorted(image.nonzero().flatten().tolist(), key=lambda place: float(looked[place]))
        out = torch.zeros_like(image)
        out[order[: max(1, round(self.share * len(order)))]] = True
        return out

    def blinded(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Change:
        """What hides the others."""
        n, image = prompt["input_ids"].shape[1], naive.image(prompt)
        weights = naive.run(prompt, tokens, self.edits).weights[self.layer - 1]
        hidden = torch.zeros(n + len(tokens), n + len(tokens), dtype=torch.bool)
        for place in range(len(hidden)):
            deciding = max(place, n - 1)
            for rows in self.earlier:
                deciding = max(place, rows.start) if place < rows.stop else deciding
            hidden[place, :n] = image & ~self.seen(weights[:, deciding, :n], image)
        alone = (hidden | torch.ones_like(hidden).triu(1)).all(-1)  # a row that would see nothing sees what it did
        hidden[alone] = False

        def register(naive: Naive) -> list[Any]:
            def boost(layer: int, logits: Tensor) -> Tensor:
                return logits if layer < self.layer else logits.masked_fill(hidden, -torch.inf)

            naive.boosts.append(boost)
            return []

        return register

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        strong = self.answer(naive, prompt, tokens, self.edits)
        weak = self.answer(naive, prompt, tokens, [*self.edits, self.blinded(naive, prompt, tokens)])
        return plausible(contrast(strong, weak, self.alpha), strong, self.beta)


@dataclass(frozen=True)
class OtherPrompt(Reference):
    """(1 + a) z - a z', z' behind another prompt: VCD, ICD and, with beta 0, CAD."""

    other: Callable[[Inputs], Inputs] = field(default=lambda prompt: prompt)
    alpha: float = 1.0
    beta: float = 0.1

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        strong = self.answer(naive, prompt, tokens, self.edits)
        weak = self.answer(naive, self.other(prompt), tokens)
        return plausible(contrast(strong, weak, self.alpha), strong, self.beta)


@dataclass(frozen=True)
class PAIGuidance(Reference):
    """g (log p - log p') + log p', p' without the image."""

    gamma: float = 1.1
    beta: float = 0.1

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        text = keep(prompt, ~naive.image(prompt), pictures=False)
        p = self.answer(naive, prompt, tokens, self.edits).log_softmax(-1)
        q = self.answer(naive, text, tokens).log_softmax(-1)
        return plausible(self.gamma * (p - q) + q, p, self.beta)


@dataclass(frozen=True)
class M3ID(Reference):
    """log p + (1 - g) / g (log p - log p'), g = exp(-lambda t), p' without the image."""

    lam: float = 0.02
    first: int = 1
    beta: float = 0.1

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        text = keep(prompt, ~naive.image(prompt), pictures=False)
        p = self.answer(naive, prompt, tokens, self.edits).log_softmax(-1)
        q = self.answer(naive, text, tokens).log_softmax(-1)
        scores = p.clone()
        for step in range(len(p)):
            g = math.exp(-self.lam * (self.first + step))
            scores[step] += (1 - g) / g * (p[step] - q[step])
        return plausible(scores, p, self.beta)


@dataclass(frozen=True)
class DoLa(Reference):
    """log p - log p_early, the early layer by the largest divergence; both raw, cut off below beta."""

    layers: Sequence[int] = ()
    beta: float = 0.1
    norm: bool = False
    distance: Callable[[Tensor, Tensor], Tensor] = mean_divergence

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        run, first = naive.run(prompt, tokens, self.edits), prompt["input_ids"].shape[1] - 1
        p = run.logits[first:].log_softmax(-1)
        early = torch.stack([naive.readout(run.entering[i][first:], self.norm).log_softmax(-1) for i in self.layers])
        best = self.distance(p.exp(), early.exp()).argmax(0)
        return plausible(p - early[best, range(len(p))], p, self.beta)


@dataclass(frozen=True)
class DeCo(Reference):
    """z + a p_m z_m for the candidates of the last layer; m is the layer that gives one of them the most."""

    layers: Sequence[int] = ()
    alpha: float = 0.6
    top_p: float = 0.9
    top_k: int = 20

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        run, first = naive.run(prompt, tokens, self.edits), prompt["input_ids"].shape[1] - 1
        told = []
        for row in range(first, len(run.logits)):
            z = run.logits[row]
            p = z.softmax(-1)
            candidates, mass = [], 0.0
            for token in p.argsort(descending=True)[: self.top_k].tolist():
                if mass >= self.top_p:
                    break
                candidates.append(token)
                mass += p[token].item()
            early = [naive.readout(run.entering[layer][row], True) for layer in self.layers]
            sure = [float(one.softmax(-1)[candidates].max()) for one in early]
            best = sure.index(max(sure))
            scores = torch.full_like(z, -math.inf)
            for token in candidates:
                scores[token] = z[token] + self.alpha * sure[best] * early[best][token]
            told.append(scores)
        return torch.stack(told)


@dataclass(frozen=True)
class JuICE(Reference):
    """The raw logits of a run that adds, at every position, a clean run's head outputs to its own."""

    enhance: Sequence[Head] = ()
    suppress: Sequence[Head] = ()
    alpha_enhance: float = 1.0
    alpha_suppress: float = 1.0

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        clean = naive.run(prompt, tokens, self.edits).outputs

        def change(layer: int, states: Tensor) -> Tensor:
            for heads, factor in ((self.enhance, self.alpha_enhance), (self.suppress, -self.alpha_suppress)):
                for head in _by_layer(heads).get(layer, []):
                    states[:, head] += factor * clean[layer][:, head]
            return states

        return self.answer(naive, prompt, tokens, [*self.edits, outputs(change)])


@dataclass(frozen=True)
class SGRS(Reference):
    """The log of the law by which candidates are drawn until one's saliency reaches the threshold.

    A pass of its own over all tokens for every step, with a graph from the first layer to the last.
    """

    candidates: int = 5
    rounds: int | None = 3
    alpha: float = 0.6
    window: int = 5
    layers: Sequence[int] = ()
    generated: bool = False
    by_doubt: bool = False

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        remembered: list[float] = []
        told = []
        for step in range(len(tokens) + 1):
            chances, found = self.judged(naive, prompt, tokens[:step])
            last = remembered[-self.window :]
            threshold = self.alpha * sum(last) / len(last) if last else 0.0
            scores = torch.full((naive.model.config.get_text_config().vocab_size,), -math.inf, dtype=torch.float64)
            for token, chance in self.law(chances, found, threshold).items():
                if chance > 0:
                    scores[token] = math.log(chance)
            told.append(scores)
            if step < len(tokens) and found.get(tokens[step]) is not None:
                remembered.append(found[tokens[step]])
        return torch.stack(told)

    @torch.enable_grad()
    def judged(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> tuple[dict[int, float], dict[int, Any]]:
        """Probability and saliency of each candidate for the token behind `tokens`; no saliency where J is empty."""
        logits = naive.run(prompt, tokens, self.edits, gradients=True).logits
        weights = [naive.whole[layer] for layer in self.layers]
        image, n = naive.image(prompt), prompt["input_ids"].shape[1]
        first = n if self.generated or not image.any() else int(image.nonzero().max()) + 1
        p = logits[-1].softmax(-1)
        best = p.topk(self.candidates).indices.tolist()
        saliency: dict[int, Any] = {}
        for token in best:
            slopes = torch.autograd.grad(-p[token].log(), weights, retain_graph=True)
            rows = [(a * g)[0].abs().mean(0)[-1] for a, g in zip(weights, slopes, strict=True)]
            marks = [(row / row.square().sum().sqrt())[first:] for row in rows]
            doubt = 1 - p[token].item() if self.by_doubt else 1.0
            saliency[token] = torch.stack(marks).mean().item() / doubt if n + len(tokens) > first else None
        return {token: p[token].item() for token in best}, saliency

    def law(self, chances: dict[int, float], found: dict[int, Any], threshold: float) -> dict[int, float]:
        """Chance of each candidate to be the one chosen: every order of draws, one by one."""
        law = dict.fromkeys(chances, 0.0)
        rounds = len(chances) if self.rounds is None else self.rounds

        def draw(left: list[int], mass: float, number: int) -> None:
            if number == rounds or not left:
                law[max(found, key=lambda token: found[token])] += mass
                return
            for token in left:
                share = mass * chances[token] / sum(chances[other] for other in left)
                if found[token] is None or found[token] >= threshold:
                    law[token] += share
                else:
                    draw([other for other in left if other != token], share, number + 1)

        draw(list(chances), 1.0, 0)
        return law


@dataclass(frozen=True)
class CGVLM(Reference):
    """The raw logits of a run whose rows are boosted where the interaction of picture and text spreads wide."""

    alpha: float = 0.5
    threshold: float = 1.0
    candidates: int = 50
    layers: Sequence[int] = ()
    seed: int | None = 0  # None: the image is left out
    aside: Mapping[int, Sequence[int]] = field(default_factory=dict)  # image keys that get no bonus, by layer

    def spread(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        """D [len(tokens) + 1] of runs without any change."""
        asked = question(prompt["input_ids"])[0]
        image = naive.image(prompt)
        if self.seed is None:
            imageless = keep(prompt, ~image, pictures=False)
            neither = keep(prompt, ~image & ~asked, pictures=False)
        else:
            imageless = _randomised(prompt, self.seed)
            neither = keep(_unheard(imageless), ~asked)
        textless = keep(_unheard(prompt), ~asked)
        full, text, pixels, none = (
            self.answer(naive, inputs, tokens) for inputs in (prompt, textless, imageless, neither)
        )
        found = []
        for row in range(len(full)):
            best = full[row].topk(self.candidates).indices
            interaction = [float(full[row, i] - text[row, i] - pixels[row, i] + none[row, i]) for i in best]
            mean = sum(interaction) / len(interaction)
            found.append(sum((value - mean) ** 2 for value in interaction) / (len(interaction) - 1))
        return torch.tensor(found)

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        return self.answer(naive, prompt, tokens, [self.boosting(naive, prompt, tokens), *self.edits])

    def boosting(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Change:
        """The boost, in the rows where the gate is open."""
        n = prompt["input_ids"].shape[1]
        opened = (self.spread(naive, prompt, tokens) > self.threshold).nonzero().flatten() + n - 1
        image = naive.image(prompt).nonzero().flatten()

        def register(naive: Naive) -> list[Any]:
            def boost(layer: int, logits: Tensor) -> Tensor:
                out = logits.clone()
                for row in opened if layer in self.layers else ():
                    for key in image.tolist():
                        if key in self.aside.get(layer, ()):
                            continue
                        out[0, :, row, key] += self.alpha * naive.logits[0, :, row, key].abs().mean()
                return out

            naive.boosts.append(boost)
            return []

        return register


@dataclass(frozen=True)
class OPERA(Reference):
    """z - l phi for the likeliest tokens, or z + l (mass on the image) in an answer of at most ten; each read ahead."""

    candidates: int = 5
    scale: float = 50.0
    weight: float = 1.0
    short: int = 10

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        n, image, told = prompt["input_ids"].shape[1], naive.image(prompt), []
        for step, z in enumerate(self.answer(naive, prompt, tokens, self.edits)):
            scores = torch.full_like(z, -math.inf)
            for token in z.topk(self.candidates).indices.tolist():
                run = naive.run(prompt, [*tokens[:step], token], self.edits)
                w = run.weights[len(naive.layers) - 1].max(0).values
                w = w / w.sum(-1, keepdim=True)
                if step + 1 <= self.short:
                    penalty = -float(w[-1, :n][image].sum())
                else:
                    columns = []
                    for j in range(n, len(w)):
                        product = 1e-7
                        for i in range(j, len(w)):
                            product *= self.scale * float(w[i, j])
                        columns.append(product)
                    penalty = max(columns)
                scores[token] = z[token] - self.weight * penalty
            told.append(scores)
        return torch.stack(told)


@dataclass(frozen=True)
class CAI(Reference):
    """s_j += w_j |s_j| in the answer's rows, in layers whose entering state would say something unsure."""

    layers: Sequence[int] = ()
    above: float = 0.23

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        image, n = naive.image(prompt), prompt["input_ids"].shape[1]
        places = image.nonzero().flatten().tolist()
        entering: dict[int, Tensor] = {}

        def relevance(row: int) -> dict[int, float]:
            states = entering[0]
            told = states[places[-1] + 1 : n].mean(0) if row == n - 1 else states[row]
            alike = {j: float(states[j] @ told / states[j].norm() / told.norm()) for j in places}
            least = min(alike.values())
            return {j: 1 / (1 + math.exp(-100 * (one - least))) for j, one in alike.items()}

        def register(naive: Naive) -> list[Any]:
            def enter(module: Any, args: Any, kwargs: dict[str, Any], i: int) -> None:
                entering[i] = (args[0] if args else kwargs["hidden_states"])[0]

            def boost(layer: int, logits: Tensor) -> Tensor:
                out = logits.clone()
                for row in range(n - 1, logits.shape[2] if layer in self.layers else 0):
                    said = naive.readout(entering[layer][row], True).log_softmax(-1)
                    if float(entropy(said[None])) > self.above:
                        for j, share in relevance(row).items():
                            out[0, :, row, j] += share * naive.logits[0, :, row, j].abs()
                return out

            naive.boosts.append(boost)
            return [
                layer.register_forward_pre_hook(functools.partial(enter, i=i), with_kwargs=True)
                for i, layer in enumerate(naive.layers)
            ]

        return self.answer(naive, prompt, tokens, [register, *self.edits])


@dataclass(frozen=True)
class Gated(Reference):
    """Another reference where a signal opens the gate, the plain model elsewhere; or, without another, PAI's boost there.

    The boost is a run of its own for every token: what was boosted before stays so, as its keys are in the cache.
    """

    other: Reference | None = None
    signal: str = "entropy"
    above: float | None = None
    below: float | None = None
    scale: float | None = None
    now: bool = False
    alpha: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)  # grounding's, with its heads
    heads: Sequence[Head] = ()

    def value(self, naive: Naive, prompt: Inputs, tokens: Sequence[int], run: Pass | None) -> float:
        """The signal at the last row of a run; before the first, of a uniform distribution that looks nowhere."""
        size = naive.model.config.get_text_config().vocab_size
        if self.signal in ("divergence", "interaction"):
            text = keep(prompt, ~naive.image(prompt), pictures=False)
            p, q = (self.answer(naive, inputs, tokens)[-1].softmax(-1) for inputs in (prompt, text))
            return float(js_divergence(p, q))
        p = torch.full((size,), 1 / size, dtype=torch.float64) if run is None else run.logits[-1].softmax(-1)
        columns = {"entropy": float(-(p * p.log()).sum()), "probability": float(p.max())}
        for name, mask in {"image": naive.image(prompt), "query": question(prompt["input_ids"])[0]}.items():
            heads = self.heads or [(i, h) for i in range(len(naive.layers)) for h in range(naive.heads)]
            rows = [] if run is None else [run.weights[i][h, -1, : len(mask)][mask].sum() for i, h in heads]
            columns[name] = float(sum(rows)) / len(heads)
        if self.signal == "grounding":
            return sum(weight * columns[name] for name, weight in self.weights.items())
        return columns["image" if self.signal == "image_attention" else self.signal]

    def strength(self, value: float) -> float:
        beyond = value - self.above if self.above is not None else (self.below or 0.0) - value
        return float(beyond > 0) if self.scale is None else min(max(beyond / self.scale, 0.0), 1.0)

    def strengths(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> list[float]:
        """At each token."""
        n, found, last = prompt["input_ids"].shape[1], [], None
        for step in range(len(tokens) + 1):
            said = tokens[:step]
            if self.now:  # by a run in which this token is not boosted yet
                last = naive.run(prompt, said, [self.boosting(naive, prompt, n, found)])
            found.append(self.strength(self.value(naive, prompt, said, last)))
            last = naive.run(prompt, said, [self.boosting(naive, prompt, n, found)])
        return found

    def boosting(self, naive: Naive, prompt: Inputs, n: int, shares: Sequence[float]) -> Change:
        """PAI's boost by a share of it in each row from the prompt's last on; none where a decoder is gated."""
        image = naive.image(prompt)

        def register(naive: Naive) -> list[Any]:
            def boost(layer: int, logits: Tensor) -> Tensor:
                out = logits.clone()
                for step, share in enumerate(shares if self.other is None and layer >= 2 else ()):
                    row = naive.logits[0, :, n - 1 + step, : len(image)]
                    out[0, :, n - 1 + step, : len(image)] += share * self.alpha * row.abs() * image
                return out

            naive.boosts.append(boost)
            return []

        return register

    def __call__(self, naive: Naive, prompt: Inputs, tokens: Sequence[int]) -> Tensor:
        shares = self.strengths(naive, prompt, tokens)
        if self.other is None:
            n = prompt["input_ids"].shape[1]
            return self.answer(naive, prompt, tokens, [self.boosting(naive, prompt, n, shares)])
        base, scores = self.answer(naive, prompt, tokens), self.other(naive, prompt, tokens)
        rows = [b if s == 0 else b + s * (z - b) for s, b, z in zip(shares, base, scores, strict=True)]
        return torch.stack(rows)


# --- answers ---------------------------------------------------------------------------------------------------------


def greedy(naive: Naive, decoder: Decoder, prompt: Inputs, steps: int) -> tuple[list[int], Tensor]:
    """Tokens, and the scores [steps, V] that each was the best of."""
    tokens: list[int] = []
    scores: list[Tensor] = []
    for _ in range(steps):
        scores.append(decoder(naive, prompt, tokens)[-1])
        tokens.append(int(scores[-1].argmax()))
    return tokens, torch.stack(scores)


def beams(naive: Naive, decoder: Decoder, prompt: Inputs, steps: int, width: int) -> list[int]:
    """The best answer of `steps` tokens of a beam search; every beam's scores are normalised to log-probabilities."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(steps):
        grown = []
        for total, tokens in live:
            best = decoder(naive, prompt, tokens)[-1].log_softmax(-1).topk(width)
            grown += [(total + float(v), [*tokens, int(i)]) for v, i in zip(best.values, best.indices, strict=True)]
        live = sorted(grown, key=lambda beam: -beam[0])[:width]
    return live[0][1]


# --- configurations --------------------------------------------------------------------------------------------------


def _scores(seed: int) -> list[list[float]]:
    return torch.rand(tiny.LAYERS, tiny.HEADS, generator=torch.Generator().manual_seed(seed)).tolist()


def _top(scores: list[list[float]], count: int) -> list[Head]:
    """The heads with the highest scores, earlier heads first among equals."""
    ranked = sorted((-scores[i][h], i, h) for i in range(tiny.LAYERS) for h in range(tiny.HEADS))
    return [(i, h) for _, i, h in ranked[:count]]


#: What a tiny model's calibration says of heads.
SECTIONS: dict[str, Any] = {
    "retrieval_heads": {"scores": _scores(11)},
    "inducing_heads": {"scores": _scores(12)},
    "conflict_heads": {"enhance": [[2, 3], [0, 6], [3, 1]], "suppress": [[1, 4], [3, 7], [0, 0]]},
}


def sections(case: tiny.TinyCase) -> dict[str, Any]:
    """`SECTIONS` for a model that may have more layers, whose heads score nothing."""
    more = [[0.0] * tiny.HEADS] * (case.model.config.get_text_config().num_hidden_layers - tiny.LAYERS)
    return {
        name: {key: value + more if key == "scores" else value for key, value in section.items()}
        for name, section in SECTIONS.items()
    }


RETRIEVAL = _top(SECTIONS["retrieval_heads"]["scores"], 6)
INDUCING = _top(SECTIONS["inducing_heads"]["scores"], 6)
LISTED: list[Head] = [(1, 0), (1, 5), (2, 2), (2, 3), (3, 0), (3, 6)]  # the first layer is shared
INSTRUCTION = [41, 17, 200, 99]
HEARD = [60, 61]  # the same in the ids of a Q-Former that reads the question


def context(ids: Tensor) -> Tensor:
    """A context [B, n] for `cad`, of another length in every row: text of low ids and two tokens near the end."""
    mask = (ids >= tiny.TEXT[0]) & (ids < 90)
    mask[:, -3:-1] = True
    mask[:, -1] = False
    return mask


def question(ids: Tensor) -> Tensor:
    """A question [B, n]: the two tokens before the last."""
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -3:-1] = True
    return mask


def _without_context(prompt: Inputs) -> Inputs:
    return keep(prompt, ~context(prompt["input_ids"])[0])


def _instructed(prompt: Inputs, place: str) -> Inputs:
    """The instruction in the prompt, and behind the first token of what a Q-Former reads with each picture."""
    n, prompt = prompt["input_ids"].shape[1], dict(prompt)
    for key, new in (("qformer_input_ids", HEARD), ("qformer_attention_mask", [1] * len(HEARD))):
        if key in prompt:
            prompt[key] = torch.tensor([[row[0], *new, *row[1:]] for row in prompt[key].tolist()])
    return prompt if place == "qformer" else insert(prompt, 1 if place == "start" else n - 3, INSTRUCTION)


def _unheard(prompt: Inputs) -> Inputs:
    """What a Q-Former reads beside each picture, without the words between its first token and its last."""
    if "qformer_input_ids" not in prompt:
        return prompt
    rows = zip(prompt["qformer_input_ids"].tolist(), prompt["qformer_attention_mask"].tolist(), strict=True)
    read = [[token for token, seen in zip(*row, strict=True) if seen] for row in rows]
    ids = torch.tensor([[words[0], words[-1]] for words in read])
    return {**prompt, "qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}


def _randomised(prompt: Inputs, seed: int) -> Inputs:
    """CG-VLM's other pictures, drawn as `cgvlm` draws one; their law has a test of its own."""
    return _redrawn(prompt, lambda picture: random_pixels(picture, seed))


def _noised(prompt: Inputs, step: int, seed: int) -> Inputs:
    """VCD's other prompt: every picture gets the same noise. It is the decoder's own; its law has a test of its own."""
    return _redrawn(prompt, lambda picture: vcd.noised(picture, step, seed))


def _redrawn(prompt: Inputs, draw: Callable[[Tensor], Tensor]) -> Inputs:
    """The prompt with `draw` of each of its pictures."""
    pixels = prompt["pixel_values"].double()
    grids = prompt.get("image_grid_thw")  # Qwen: the patches of all pictures in one long row
    pictures = pixels.split([1] * len(pixels) if grids is None else grids.prod(1).tolist())
    drawn = torch.cat([draw(picture) for picture in pictures])
    if pixels.ndim > 4:  # tables of tiles and pictures, where a missing one is all zeros
        drawn *= (pixels != 0).flatten(-3).any(-1)[..., None, None, None]
    return {**prompt, "pixel_values": drawn}


@dataclass(frozen=True)
class Setup:
    """A decoder's settings, the reference that they mean, and what `attach` needs besides.

    `alone`: the branch has a prompt of its own. `scoring`: the reference under `sightline.score`, where it is another.
    """

    name: str
    settings: dict[str, Any]
    reference: Reference
    image: bool = False
    alone: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    scoring: Reference | None = None

    def fits(self, family: str) -> bool:
        """Whether the family's prompts have what it weighs."""
        return not (family == "mllama" and DECODERS.find(self.name).weighs_image)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration's `decoder` entry."""
        return {self.name: self.settings}


def _static(**more: Any) -> DeCoRe:
    return DeCoRe(heads=LISTED, alpha=0.5, **more)


def _listed(**more: Any) -> dict[str, Any]:
    return {"head_list": [list(head) for head in LISTED], **more}


def _conflict(count: int) -> JuICE:
    enlarged, suppressed = (SECTIONS["conflict_heads"][key][:count] for key in ("enhance", "suppress"))
    return JuICE(enhance=[tuple(head) for head in enlarged], suppress=[tuple(head) for head in suppressed])


#: One setup per decoder, near its defaults.
SETUPS: dict[str, Setup] = {
    "decore": Setup("decore", {"heads": 6}, DeCoRe(heads=RETRIEVAL), scoring=DeCoRe(heads=RETRIEVAL, span="prompt")),
    "hicd": Setup("hicd", {"heads": 6}, HICD(heads=INDUCING)),
    "juice": Setup("juice", {"heads": 2}, _conflict(2)),
    "dola": Setup("dola", {"layers": [0, 1, 2, 3]}, DoLa(layers=[0, 1, 2, 3])),
    "deco": Setup("deco", {"layers": [1, 2, 3], "top_p": 0.99}, DeCo(layers=[1, 2, 3], top_p=0.99)),
    "cad": Setup(
        "cad", {}, OtherPrompt(other=_without_context, alpha=0.5, beta=0.0), alone=True, options={"context": context}
    ),
    "icd": Setup(
        "icd",
        {"instruction_ids": INSTRUCTION, "qformer_ids": HEARD},
        OtherPrompt(other=lambda prompt: _instructed(prompt, "question")),
        alone=True,
        options={"query": question},
    ),
    "pai_guidance": Setup("pai_guidance", {}, PAIGuidance(), image=True, alone=True),
    "m3id": Setup("m3id", {}, M3ID(), image=True, alone=True),
    "vcd": Setup("vcd", {}, OtherPrompt(other=lambda prompt: _noised(prompt, 500, 0)), image=True, alone=True),
    "avisc": Setup("avisc", {}, AvisC(), image=True, alone=True),
    "sid": Setup("sid", {"share": 0.5}, SID(), image=True),
    "sgrs": Setup("sgrs", {"layers": [1, 2]}, SGRS(layers=[1, 2])),
    "opera": Setup("opera", {}, OPERA(), image=True),
}

#: Every other setting, each away from its default.
VARIANTS: dict[str, Setup] = {
    "decore static": Setup("decore", _listed(alpha=0.5), _static(), scoring=_static(span="prompt")),
    "decore scaled": Setup(
        "decore",
        _listed(scale=True, span="last"),
        DeCoRe(heads=LISTED, scale=True),
        scoring=DeCoRe(heads=LISTED, scale=True),
    ),
    "decore capped": Setup("decore", _listed(cap=1.5, span="prompt"), DeCoRe(heads=LISTED, cap=1.5, span="prompt")),
    "decore gain": Setup(
        "decore",
        _listed(alpha="entropy_gain"),
        DeCoRe(heads=LISTED, alpha="entropy_gain"),
        scoring=DeCoRe(heads=LISTED, alpha="entropy_gain", span="prompt"),
    ),
    "decore scaled gain": Setup(
        "decore",
        _listed(alpha="entropy_gain", scale=True, span="last"),
        DeCoRe(heads=LISTED, alpha="entropy_gain", scale=True),
    ),
    "decore output": Setup("decore", _listed(mask="output", span="last"), DeCoRe(heads=LISTED, mask="output")),
    "decore output prompt": Setup(
        "decore", _listed(mask="output", span="prompt"), DeCoRe(heads=LISTED, mask="output", span="prompt")
    ),
    "hicd prompt": Setup("hicd", _listed(span="prompt", alpha=2.0), HICD(heads=LISTED, alpha=2.0, span="prompt")),
    "hicd cut off": Setup("hicd", _listed(beta=0.2), HICD(heads=LISTED, beta=0.2)),
    "juice listed": Setup(
        "juice",
        {"enhance": [[1, 1], [1, 2]], "suppress": [[2, 0]], "alpha_enhance": 2.0, "alpha_suppress": 0.5},
        JuICE(enhance=[(1, 1), (1, 2)], suppress=[(2, 0)], alpha_enhance=2.0, alpha_suppress=0.5),
    ),
    "juice suppress": Setup("juice", {"suppress": [[0, 3]]}, JuICE(suppress=[(0, 3)])),
    "dola paper": Setup(
        "dola",
        {"layers": [0, 1, 2, 3], "form": "paper"},
        DoLa(layers=[0, 1, 2, 3], distance=js_divergence),
    ),
    "deco default layers": Setup("deco", {"alpha": 1.5, "top_k": 7}, DeCo(layers=[2, 3], alpha=1.5, top_k=7)),
    "dola low": Setup("dola", {}, DoLa(layers=[0])),
    "dola high": Setup("dola", {"layers": "high", "beta": 0.0}, DoLa(layers=[2], beta=0.0)),
    "dola norm": Setup(
        "dola", {"layers": [1, 2, 3], "norm": True, "beta": 0.01}, DoLa(layers=[1, 2, 3], beta=0.01, norm=True)
    ),
    "cad strong": Setup(
        "cad",
        {"alpha": 1.5, "beta": 0.1},
        OtherPrompt(other=_without_context, alpha=1.5, beta=0.1),
        alone=True,
        options={"context": context},
    ),
    "icd start": Setup(
        "icd",
        {"instruction_ids": INSTRUCTION, "place": "start", "alpha": 0.5, "beta": 0.0},
        OtherPrompt(other=lambda prompt: _instructed(prompt, "start"), alpha=0.5, beta=0.0),
        alone=True,
    ),
    "pai_guidance strong": Setup(
        "pai_guidance", {"gamma": 2.0, "beta": 0.3}, PAIGuidance(gamma=2.0, beta=0.3), image=True, alone=True
    ),
    "m3id fast": Setup(
        "m3id", {"lam": 0.3, "first": 0, "beta": 0.0}, M3ID(lam=0.3, first=0, beta=0.0), image=True, alone=True
    ),
    "vcd late": Setup(
        "vcd",
        {"noise_step": 999, "seed": 4, "alpha": 0.5, "beta": 0.0},
        OtherPrompt(other=lambda prompt: _noised(prompt, 999, 4), alpha=0.5, beta=0.0),
        image=True,
        alone=True,
    ),
    "avisc ones": Setup(
        "avisc",
        {"fill": "ones", "gamma": 0.9, "lam": -0.5, "alpha": 2.5, "beta": 0.0},
        AvisC(fill=1.0, gamma=0.9, lam=-0.5, alpha=2.5, beta=0.0),
        image=True,
        alone=True,
    ),
    "sid later": Setup(
        "sid",
        {"share": 0.3, "layer": 3, "alpha": 2.0, "beta": 0.0},
        SID(share=0.3, layer=3, alpha=2.0, beta=0.0),
        image=True,
    ),
    "sgrs default layers": Setup("sgrs", {"alpha": 0.9}, SGRS(alpha=0.9, layers=[1])),
    "sgrs two rounds": Setup(
        "sgrs",
        {"layers": [0, 3], "rounds": 2, "candidates": 8, "alpha": 1.0, "window": 2},
        SGRS(layers=[0, 3], rounds=2, candidates=8, alpha=1.0, window=2),
    ),
    "sgrs all rounds": Setup(
        "sgrs",
        {"layers": [3], "rounds": None, "alpha": 1.1},
        SGRS(layers=[3], rounds=None, alpha=1.1),
    ),
    "sgrs by doubt": Setup("sgrs", {"layers": [1, 2], "form": "by_doubt"}, SGRS(layers=[1, 2], by_doubt=True)),
    "sgrs generated": Setup("sgrs", {"layers": [2], "span": "generated"}, SGRS(layers=[2], generated=True)),
}

#: ICD as its authors run InstructBLIP; no other family has such a Q-Former.
MISLED = Setup(
    "icd",
    {"qformer_ids": HEARD, "place": "qformer"},
    OtherPrompt(other=lambda prompt: _instructed(prompt, "qformer")),
    alone=True,
)
