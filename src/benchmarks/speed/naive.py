"""Methods as one writes them without an engine, for `bench` to compare with: on the same transformers and machine.

DeCoRe is two models' worth of passes and two caches. The prompt but its last token is read once, its cache is copied, and
each step then runs the model twice: plain on one cache, with the masked heads' queries zeroed by hooks on the other. This
is how the release decodes.

VAR and GIFT run on eager attention, which makes the weights of every row in every layer, and change them there. GIFT's
saliency comes from a pass over the prompt before, with `output_attentions`. This is how their releases do it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...common.errors import ConfigError
from ...plugin.core import compat
from ...plugin.core.compat import CACHE
from ...plugin.core.edits import Edit, InputProbe, Keys, Mass, WeightProbe
from ...plugin.core.explicit import active_rows
from ...plugin.core.families import find_family
from ...plugin.core.layout import Layout, Step, read_layout
from ...plugin.core.method import Method, Session

ATTENTION = "sightline_naive"  # the name under which transformers knows eager attention with edits
CHANGE = "_sightline_naive"  # attribute of an attention module that changes its weights [B, H, q, K]


def check(config: Any) -> None:
    """Raises ConfigError for a configuration that is not written here."""
    names = [name for name, _ in config.methods]
    name, settings = config.decoder or ("no decoder", config)
    if config.decoder is None and names in (["var"], ["gift"]):
        return
    if names or name != "decore" or settings.mask != "query" or settings.alpha == "entropy_gain":
        raise ConfigError(
            f"naive: runs var, gift, or decore with mask query, alone, not {' and '.join([*names, name])}: write --methods"
            " decore,naive:decore"
        )


@torch.no_grad()
def answer(model: Any, inputs: Mapping[str, Any], method: Method, **how: Any) -> Tensor:
    """`generate` of a prompt without padding, on eager attention that a method changes."""
    family = find_family(model)
    layout = read_layout(inputs["input_ids"], inputs["attention_mask"], family.image_ids(model.config), None)
    session, layers = method.start(layout), family.layers(model)
    with _eager(model, layers, session, layout) as begin:
        if any(isinstance(edit, WeightProbe) for edits in begin(layout.unread).values() for edit in edits):
            weights = model(**inputs, use_cache=False, logits_to_keep=1, output_attentions=True).attentions
            for layer, edits in begin(layout.unread).items():
                for edit in edits:
                    if isinstance(edit, WeightProbe):
                        rows = weights[layer][:, :, edit.rows.start : edit.rows.stop].float()
                        edit.see(rows, slice(0, layout.length), edit.rows.start)
            del weights
        return model.generate(**inputs, **how)


@contextmanager
def _eager(
    model: Any, layers: Sequence[nn.Module], session: Session, layout: Layout
) -> Iterator[Callable[[Step], Mapping[int, Sequence[Edit]]]]:
    """Eager attention inside, with a session's edits in each pass of `generate`; yields what asks for those of a pass."""
    compat.register_attention(ATTENTION, _attend, eager=True)
    family, passes = find_family(model), _Passes(session, layout)
    text = model.config.get_text_config(decoder=True)
    before = compat.attention_name(text)
    with ExitStack() as undo:
        compat.set_attention_name(text, ATTENTION)
        undo.callback(compat.set_attention_name, text, before or "sdpa")
        for number, layer in enumerate(layers):
            hook = layer.register_forward_pre_hook(partial(passes.enter, number), with_kwargs=True)
            undo.callback(hook.remove)
            table = family.attention(layer).__dict__
            table[CHANGE] = partial(passes.change, number)
            undo.callback(table.pop, CHANGE)
        yield session.edits


class _Passes:
    """The passes of one `generate`: which edits each has, by what its layers see."""

    def __init__(self, session: Session, layout: Layout):
        self.session, self.layout, self.seen = session, layout, 0
        self.edits: Mapping[int, Sequence[Edit]] = {}

    def enter(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, cache = args[0] if args else kwargs["hidden_states"], kwargs.get(CACHE)
        if layer == 0:
            held = 0 if cache is None else cache.get_seq_length()
            answering, self.seen = self.seen > self.layout.length, held + hidden.shape[1]
            if not answering:
                self.edits = {} if cache is None else self.session.edits(Step(self.layout, held, hidden.shape[1]))
        for edit in self.edits.get(layer, ()):
            if isinstance(edit, InputProbe):
                edit.see(hidden)

    def change(self, layer: int, weights: Tensor) -> Tensor:
        keys = Keys(slice(0, self.layout.length), self.layout.length)
        for edit in self.edits.get(layer, ()):
            if isinstance(edit, Mass) and not (edit.idle is not None and edit.idle()):
                changed = edit(weights.clone(), weights, keys)
                if edit.rows is not None:
                    active = active_rows(edit.rows, 0, weights.shape[2])
                    changed = torch.where(active[:, None, :, None], changed, weights)
                weights = changed
        return weights


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Eager attention as model files write it: head outputs [B, q, H, d] and weights [B, H, q, K]."""
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    logits = torch.matmul(query, key.transpose(2, 3)) * scaling
    weights = torch.softmax(logits if mask is None else logits + mask, dim=-1, dtype=torch.float32)
    weights = module.__dict__[CHANGE](weights).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


@torch.no_grad()
def decode(
    model: Any,
    inputs: Mapping[str, Tensor],
    heads: Sequence[tuple[int, int]],
    settings: Any,
    new_tokens: int,
    tick: Callable[[Tensor], object],
) -> Tensor:
    """Greedy decoding of text prompts [B, n] without padding; `tick` is called with the ids after every token."""
    ids = inputs["input_ids"]
    cache = DynamicCache(config=model.config.get_text_config())
    model(input_ids=ids[:, :-1], **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    masked_cache = copy.deepcopy(cache)
    for _ in range(new_tokens):
        last = ids[:, -1:]
        base = model(input_ids=last, **{CACHE: cache}, use_cache=True).logits[:, -1].float().log_softmax(-1)
        with _queries_zeroed(model, heads):
            weak = model(input_ids=last, **{CACHE: masked_cache}, use_cache=True).logits[:, -1]
        strength: float | Tensor = settings.alpha
        if isinstance(strength, str):
            strength = -(base.exp() * base).sum(-1, keepdim=True)
        scores = (1 + strength) * base - strength * weak.float().log_softmax(-1)
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        tick(ids)
    return ids


@contextmanager
def _queries_zeroed(model: nn.Module, heads: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Zero the given heads' queries: a query of zero stays zero under the rotary embedding."""
    family = find_family(model)
    size = model.config.get_text_config().head_dim  # type: ignore[operator, union-attr]
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)

    def zero(chosen: list[int]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output.view(*output.shape[:-1], -1, size)[..., chosen, :] = 0
            return output

        return hook

    layers = family.layers(model)
    with ExitStack() as hooks:
        for layer, chosen in by_layer.items():
            attention: Any = family.attention(layers[layer])
            hooks.callback(attention.q_proj.register_forward_hook(zero(chosen)).remove)
        yield
