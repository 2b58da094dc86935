"""The prompt without its image, read in the pass that reads the prompt: its tokens are more positions of every row.

Linear maps and norms work on both together, attention on each by itself. A pass of its own would read every weight and
launch every kernel once more, for a few dozen tokens. Who cannot carry it (`possible`) has that pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..branches.cache import TappedCache
from ..branches.rider import attend
from ..core.attention import Plan, Stage, merge
from ..core.compat import CACHE
from ..core.host import Host
from ..core.layout import Layout
from .prompt import Prompt

ROTARY = "position_embeddings"
#: Text tokens that ride: to a longer text one more reading of the weights is nothing, and its rows would take memory.
MOST = 512


class _Begun(Exception):
    """A pass has come to its first layer."""


class TextBeside:
    """A prompt's text tokens aboard its pass. plan: what looks at them, by layer; it ends behind the last of these."""

    def __init__(self, host: Host, layout: Layout, plan: Plan):
        self.host, self.plan, self.length = host, plan, layout.length
        self.hidden, told = _entering(host, *layout.text_only())
        self.mask: Tensor | None = told.get("attention_mask")
        self.rotary: tuple[Tensor, ...] | None = told.get(ROTARY)
        self._fresh: dict[int, tuple[Tensor, Tensor]] = {}  # its keys and values, until their attention runs
        self._joined: tuple[Any, tuple[Tensor, ...]] = (None, ())  # the model's cosines and sines, and those of both

    @staticmethod
    def possible(host: Host, kwargs: Mapping[str, Any]) -> bool:
        """Whether a pass with these arguments can carry the text: every layer is told the same, and nobody else looks."""
        types = getattr(host.text_config, "layer_types", None) or ("",)
        alike = not (host.family.inferred or host.across or host.linear or host.latent) and len({*types}) == 1
        wanted = ("output_hidden_states", "output_attentions", "labels")
        told = kwargs.get(CACHE) is not None and kwargs.get("return_dict") is not False
        whole = host.stage.shard is None and host.stage.rider is None and not torch.is_grad_enabled()
        return alike and told and whole and not any(kwargs.get(name) not in (None, False) for name in wanted)

    def read(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run the staged pass of the prompt with the text aboard; returns its output."""
        stage, tapped = self.host.stage, TappedCache(kwargs[CACHE], self._take)
        with ExitStack() as undo:
            for layer in self.host.layers[: max(self.plan) + 1]:
                undo.callback(layer.register_forward_pre_hook(self._board, with_kwargs=True).remove)
                undo.callback(layer.register_forward_hook(self._leave).remove)
            stage.rider = self
            undo.callback(setattr, stage, "rider", None)
            output = original(**{**kwargs, CACHE: tapped})
        return type(output)(**{**output, CACHE: kwargs[CACHE]})

    def _board(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        both = torch.cat([hidden, self.hidden.to(hidden.device)], dim=1)
        if self.rotary is not None:
            if kwargs[ROTARY] is not self._joined[0]:
                self._joined = kwargs[ROTARY], tuple(map(_side_by_side, kwargs[ROTARY], self.rotary))
            kwargs = {**kwargs, ROTARY: self._joined[1]}
        return ((both, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": both})

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        both = output[0] if isinstance(output, tuple) else output
        hidden, self.hidden = both[:, : self.length], both[:, self.length :]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _take(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if not self.rides(layer):
            return key, value
        self._fresh[layer] = key[:, :, self.length :], value[:, :, self.length :]
        return key[:, :, : self.length], value[:, :, : self.length]

    def rides(self, layer: int) -> bool:
        """Whether the layer's tensors hold the text, too."""
        return layer <= max(self.plan)

    def attend(
        self,
        stage: Stage,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """Head outputs of both, the text's first: the prompt's edits may depend on them."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        prompt, text = query[:, :, : self.length], query[:, :, self.length :]
        seen = None if self.mask is None else self.mask.to(query.device)
        beside = attend(self.plan.get(layer), stage, module, text, *self._fresh.pop(layer), seen, **kwargs)
        output = attend(stage.plan.get(layer), stage, module, prompt, key, value, mask, **kwargs)
        return torch.cat([output, beside], dim=1)


def read_text(host: Host, prompt: Prompt, kwargs: Mapping[str, Any], room: bool) -> TextBeside | None:
    """Read the prompt without its image, where a method asks for that.

    Where there is room in the prompt's one pass, whose arguments these are, it is returned to be read there.
    """
    layout, plan = prompt.layout, merge([session.read_text_edits() for session in prompt.sessions])
    if not plan:
        return None
    ids, mask = layout.text_only()
    short = ids.shape[1] <= MOST
    if room and short and not (layout.turn or prompt.gates) and TextBeside.possible(host, kwargs):
        return TextBeside(host, layout, plan)
    with host.staged(plan, 0, 0), torch.no_grad():
        host.family.read_text(host.model, ids, mask)
    return None


def _entering(host: Host, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What enters the first layer where the model reads these tokens [B, m], and what it is told beside that."""
    found: list[tuple[Tensor, dict[str, Any]]] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"], kwargs))
        raise _Begun

    handle = host.layers[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        host.family.read_text(host.model, ids, mask)
    except _Begun:
        pass
    finally:
        handle.remove()
    return found[0]


def _side_by_side(model: Tensor, text: Tensor) -> Tensor:
    """Cosines or sines [.., B or 1, q, d] of both."""
    rows = torch.broadcast_shapes(model.shape[:-2], text.shape[:-2])
    return torch.cat([one.to(model.device).expand(*rows, *one.shape[-2:]) for one in (model, text)], dim=-2)
