"""The attach check: a few tokens through a model show whether our attention reaches what it should, before anything is edited.

Two passes, one plain and one with our function in place, and each attention once more with a head silenced. They prove that
every layer with softmax attention calls the function, once and with the heads that the configuration names; that a plan
without effect leaves the model's bits; that silencing a head changes what its layer says. What does not hold is refused
with what was seen. They also tell what nobody has declared: whether prompt rows see later ones, and what the readout is.

The result is kept per class and configuration, so that a process pays once for each model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...common.errors import UnsupportedModelError
from . import compat
from .attention import LayerPlan, Stage, edited_attention
from .edits import Gain, Reweight
from .families import Family

TOKENS = 8
AS_THEY_ARE = Reweight(lambda weights, logits, keys: weights, headwise=True)
CLOSE = {
    torch.float32: 1e-3,
    torch.float64: 1e-6,
}  # where the model runs on another kernel than sdpa; half precision below
HALF = 0.1


@dataclass(frozen=True)
class Checked:
    """What the check found.

    heads: query heads by layer, of those that we compute. bidirectional: prompt rows see later ones. readout: the factor
    between head(norm(hidden)) and the model's logits; None where they are something else.
    """

    heads: Mapping[int, int] = field(default_factory=dict)
    bidirectional: bool = False
    readout: float | None = 1.0


class Checkable(Protocol):
    """What the check needs of a host."""

    model: nn.Module
    family: Family
    layers: list[nn.Module]
    attentions: dict[int, nn.Module]
    across: frozenset[int]
    heads: int
    stage: Stage
    text_config: Any

    def add(self, plug: Any) -> None: ...

    def drop(self, plug: Any) -> None: ...

    def readout(self, hidden: Tensor, norm: bool) -> Tensor: ...


@dataclass
class Seen:
    """One call of the attention function."""

    heads: int
    key_heads: int
    keys: int
    later: bool  # a row saw a later one


class Watcher:
    """An attachment for one pass: notes the calls of the attention function and runs them with a gain of one."""

    active = True
    reading = None

    def __init__(self, host: Checkable):
        self.host = host
        self.calls: dict[int, list[Seen]] = {}
        self.idle: list[int] = []  # layers in which silencing a head changed nothing
        self.silencing = False
        self.odd: list[
            tuple[int, list[str]]
        ] = []  # layers whose explicit weights say something else, and what they were told

    def forward(self, original: Any, kwargs: dict[str, Any]) -> Any:
        stage = self.host.stage
        with ExitStack() as hooks:
            for index, attention in self.host.attentions.items():
                hook = functools.partial(self._again, index)
                hooks.callback(attention.register_forward_hook(hook, with_kwargs=True).remove)
            stage.rider, stage.start, stage.prompt = self, 0, TOKENS
            try:
                return original(**kwargs)
            finally:
                stage.rider = None

    def rides(self, layer: int) -> bool:
        return True

    def attend(
        self, stage: Stage, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kw: Any
    ) -> Tensor:
        """The attention of one layer, every head times one; or with its last head silenced, while that is asked for."""
        if not self.silencing:
            index = next((i for i, one in self.host.attentions.items() if one is module), -1)
            seen = Seen(query.shape[1], key.shape[1], key.shape[2], _sees_later(module, mask, kw.get("is_causal")))
            self.calls.setdefault(index, []).append(seen)
        factor = torch.ones(1, query.shape[1], device=query.device)
        factor[0, -1] = float(not self.silencing)
        output = edited_attention(LayerPlan.of([Gain(factor)]), stage, module, query, key, value, mask, **kw)
        if not self.silencing:
            explicit = edited_attention(LayerPlan.of([AS_THEY_ARE]), stage, module, query, key, value, mask, **kw)
            off = (explicit - output).abs().max() / output.abs().max().clamp(min=1e-6)
            if not bool(off <= CLOSE.get(output.dtype, HALF)):
                self.odd.append((index, sorted(name for name, one in kw.items() if isinstance(one, Tensor))))
        return output

    def _again(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Behind an attention: once more, its last head silenced."""
        self.silencing = True
        try:
            silent = module.forward(*args, **kwargs)
        finally:
            self.silencing = False
        if torch.equal(_first(silent), _first(output)):
            self.idle.append(index)


_KNOWN: dict[Any, Checked] = {}


def check(host: Checkable) -> Checked:
    """Check a model that nothing is attached to. Raises UnsupportedModelError with what was found."""
    model = host.model
    key = (
        type(model),
        model.config.to_json_string(use_diff=False),  # type: ignore[union-attr, operator]
        frozenset(
            (type(one), one.forward.__func__ if hasattr(one.forward, "__func__") else id(one))
            for one in host.attentions.values()
        ),
        getattr(host.text_config, "_attn_implementation", None),
    )
    if key not in _KNOWN:
        _KNOWN[key] = _check(host)
    return _KNOWN[key]


def _check(host: Checkable) -> Checked:
    model, watcher = host.model, Watcher(host)
    native, kernel = getattr(host.text_config, "_attn_implementation", None), "eager" if host.stage.eager else "sdpa"
    with _untouched(model):
        try:
            with compat.kernel_named(host.text_config, kernel):  # as it runs while attached
                plain = _pass(host)
        except Exception as error:
            raise UnsupportedModelError(
                f"a plain pass of {_name(host)} over {TOKENS} tokens fails, so that nothing can be checked"
                f" ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            ) from error
        host.add(watcher)
        try:
            with _norm_noted(host) as noted:
                ours = _pass(host)
            _check_calls(host, watcher)
            _check_same(host, plain, ours, same_kernel=native == kernel)
        finally:
            host.drop(watcher)
        if watcher.odd:
            index, told = watcher.odd[0]
            raise UnsupportedModelError(
                f"layer {index} of {_name(host)} weighs its keys by more than their logits, scale, cap, sinks and mask"
                f"{' (it is told ' + ', '.join(told) + ')' if told else ''}: its weights cannot be made explicit"
            )
        if watcher.idle:
            raise UnsupportedModelError(
                f"silencing a head changed nothing in {_layers(watcher.idle)} of {_name(host)}: what the attention function"
                " returns is not what the layer uses, or its weights are zero"
            )
        both_ways = any(seen[0].later for seen in watcher.calls.values())
        if both_ways and getattr(host.text_config, "is_decoder", None) is False:
            raise UnsupportedModelError(
                f"{_name(host)} is an encoder, its tokens see later ones: load it with is_decoder=True, or use a decoder"
            )
        calls = {index: seen[0] for index, seen in watcher.calls.items()}
        return Checked(
            heads={index: seen.heads for index, seen in calls.items()},
            bidirectional=any(seen.later for seen in calls.values()),
            readout=_readout(host, noted, ours),
        )


def _pass(host: Checkable) -> Tensor:
    """Logits of a few ordinary tokens [1, n, V]."""
    generator: Any = host.family.generator(host.model)
    table = generator.get_input_embeddings()
    special = {v for v in vars(host.model.config).values() if isinstance(v, int)} | set(
        host.family.image_ids(host.model.config)
    )
    room = [
        token
        for token in range(3, min(table.num_embeddings if hasattr(table, "num_embeddings") else 64, 1000))
        if token not in special
    ]
    ids = torch.tensor([[room[i * len(room) // TOKENS] for i in range(TOKENS)]], device=_device(generator))
    torch.manual_seed(0)  # for a model that is left in training mode
    return generator.forward(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, return_dict=True
    ).logits


def _device(model: Any) -> torch.device:
    return next((p.device for p in model.get_input_embeddings().parameters() if not p.is_meta), model.device)


def _check_calls(host: Checkable, watcher: Watcher) -> None:
    text, calls = host.text_config, watcher.calls
    missing = [index for index in host.attentions if index not in calls and index not in host.across]
    if missing:
        kind = type(host.attentions[missing[0]]).__name__
        raise UnsupportedModelError(
            f"{_layers(missing)} of {_name(host)} never reached our attention function ({kind}): another library has replaced"
            " their forward, or it does not go through transformers' attention interface; attach to the model as"
            " from_pretrained returns it"
        )
    several = [index for index, seen in calls.items() if len(seen) > 1 or index < 0]
    if several:
        raise UnsupportedModelError(
            f"{_name(host)} calls attention in a way that layers cannot be told apart by:"
            f" {', '.join(f'layer {i}: {len(calls[i])} calls' for i in sorted(several))}"
        )
    named = _named_heads(text)
    for index, (seen,) in sorted(calls.items()):
        stated = host.stage.fewer[index].count if index in host.stage.fewer else host.heads
        if host.stage.shard is None and (
            seen.heads != stated or seen.heads not in named or seen.heads % seen.key_heads
        ):
            raise UnsupportedModelError(
                f"layer {index} of {_name(host)} computes {seen.heads} query heads over {seen.key_heads} key heads, its"
                f" configuration says {' or '.join(map(str, sorted(named)))}: correct num_attention_heads"
            )
        if seen.keys != TOKENS:
            raise UnsupportedModelError(
                f"layer {index} of {_name(host)} attends to {seen.keys} keys where the sequence has {TOKENS} tokens: keys that"
                " stand for no token of their own cannot be edited"
            )


def _named_heads(config: Any) -> set[int]:
    """The numbers of query heads that a text configuration names, for all layers or for some kinds of them."""
    parts = [config, *(getattr(config, "per_layer_config", None) or ())]
    named = {name for one in parts for name in dir(one) if name.endswith("attention_heads")}
    values = [getattr(one, name, None) for one in parts for name in {*named, "num_attention_heads"}]
    return {value for value in values if isinstance(value, int)}


def _check_same(host: Checkable, plain: Tensor, ours: Tensor, same_kernel: bool) -> None:
    if torch.equal(plain, ours):
        return
    off = float((plain - ours).abs().max() / plain.abs().max().clamp(min=1e-6))
    if not same_kernel:
        if off < CLOSE.get(plain.dtype, HALF):
            return
    else:  # some kernels add in no fixed order: the plain model need not repeat its own bits
        host.drop(host.plugs[-1])  # type: ignore[attr-defined]
        again = _pass(host)
        if not torch.equal(again, plain) and off < CLOSE.get(plain.dtype, HALF):
            return
    raise UnsupportedModelError(
        f"a plan without effect changes the logits of {_name(host)} by {off:.1e} of their size: its attention computes"
        " something that our function does not"
    )


def _readout(host: Checkable, noted: list[Tensor], logits: Tensor) -> float | None:
    """The factor between head(norm(hidden)) and the model's logits [1, n, V]; None where there is none."""
    if not noted or host.model.get_output_embeddings() is None:  # type: ignore[operator]
        return None
    read = host.readout(noted[-1], False)
    if read.shape != logits.shape:
        return None
    factor = float((read * logits).sum() / (read * read).sum())
    close = CLOSE.get(logits.dtype, HALF) * logits.abs().max()
    return factor if bool(((read * factor - logits).abs() <= close).all()) else None


@contextmanager
def _norm_noted(host: Checkable) -> Iterator[list[Tensor]]:
    """What the decoder's final norm returns in the passes inside."""
    noted: list[Tensor] = []
    norm = host.family.norm(host.model)
    if norm is None:
        yield noted
        return
    handle = norm.register_forward_hook(lambda module, args, output: noted.append(output))
    try:
        yield noted
    finally:
        handle.remove()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Passes inside leave no trace: no gradients, no compilation, the random state and what modules note as they were."""
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            for module, attributes in before:
                now = module.__dict__
                if len(now) != len(attributes) or any(now[name] is not value for name, value in attributes.items()):
                    now.clear()
                    now.update(attributes)


def _sees_later(module: nn.Module, mask: Tensor | None, causal: bool | None) -> bool:
    if mask is None:
        return not (getattr(module, "is_causal", True) if causal is None else causal)
    seen = mask if mask.dtype == torch.bool else mask == 0
    return bool(seen[0, 0].triu(1).any())


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _layers(numbers: list[int]) -> str:
    return f"layer{'s'[: len(numbers) > 1]} {', '.join(map(str, sorted(numbers)))}"


def _name(host: Checkable) -> str:
    return f"'{host.model.config.model_type}' ({type(host.model).__name__})"  # type: ignore[union-attr]
