"""PAINT: raise the attention on the image tokens that the vision tower itself looks at.

Source: arXiv 2501.12206 and its release. From the attention a of CLIP's class token to the patches, summed over heads:

- local tokens: the `ratio` of the patches with the largest a of the tower's first layer;
- summary tokens: as many of the largest a of its last layer but one as there are outliers, a > Q3 + 1.5 (Q3 - Q1); they
  are not local.

In the last prompt row and every decode row, for all heads of the chosen layers of the decoder, before the softmax:

    e_j <- e_j + alpha |e_j| (local),    e_j <- e_j + beta |e_j| (summary)

What paper and release say apart from that, and what is ours: docs/methods/paint.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ...common.errors import LayoutError, UnsupportedModelError
from ..core.edits import Edit, Keys, Reweight, boosted
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session
from ..core.registry import register
from .guard import GuardSettings, ReplyGuard
from .secondary import Boostable, SkipSecondary

FIRST_LAYER = 2


class PAINTSettings(GuardSettings):
    alpha: float = Field(0.7, ge=0, description="share of its absolute value that a local token's logit gains")
    beta: float = Field(0.3, ge=0, description="the same for summary tokens")
    ratio: float = Field(0.25, gt=0, le=1, description="share of the patches that are local tokens")
    layers: list[int] | None = Field(None, min_length=1, description="boosted layers; default: from 2 on")
    skip_secondary: SkipSecondary = True


@register("paint")
class PAINT(Method):
    summary = "raise the attention logits of what the vision tower looks at"
    source = "arXiv 2501.12206"
    cost = "no extra pass; explicit weights for one row"
    acts = "weights"
    excludes: ClassVar = {"pai": "both raise image logits by a share of their size, PAINT those of chosen tokens only"}
    weighs_image = True
    config = PAINTSettings

    def __init__(self, settings: PAINTSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        config = getattr(facts.tower, "config", None)
        kind = getattr(config, "model_type", "no tower")
        if facts.tower is None or facts.architecture != "llava" or kind != "clip_vision_model":
            raise UnsupportedModelError(
                f"paint needs the class token's attention to the patches, one per image token, as LLaVA-1.5 has it; this is"
                f" '{facts.architecture}' with '{kind}': use pai, which boosts all image tokens"
            )
        layers = settings.layers if settings.layers is not None else range(FIRST_LAYER, facts.layers)
        self.layers = facts.check_layers(layers, "paint.layers")
        self.guard = ReplyGuard(settings, facts)
        self.watch = ClassAttention(facts.tower)

    def start(self, layout: Layout) -> PAINTSession:
        return PAINTSession(self, layout)

    @contextmanager
    def around(self) -> Iterator[None]:
        with self.watch.looking():
            yield


class PAINTSession(Session):
    def __init__(self, method: PAINT, layout: Layout):
        self.method, self.layout = method, layout
        self.share: Tensor | None = None  # what of |e| each prompt token gains [B, n]
        self.earlier: Tensor | None = None  # the same of the turns before
        self.boostable = Boostable(layout, method.facts, method.layers, method.settings.skip_secondary)

    def resume(self, earlier: PAINTSession) -> None:
        self.boostable.resume(earlier.boostable)
        self.earlier = earlier.share

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        edits, rows = self.boostable.probes(step), None
        if step.reading:
            rows = step.rows(self.layout.last_token)
            if rows is None:
                return edits
        for layer in self.method.layers:
            edits.setdefault(layer, []).append(Reweight(self._boost, rows, headwise=True, along=self._image(layer)))
        return edits

    def _image(self, layer: int) -> Callable[[], tuple[Tensor, Tensor]]:
        def along() -> tuple[Tensor, Tensor]:
            if self.share is None:  # only now has the tower run, where the model is called outside `generate`
                self.share = self._shares()
            return self.boostable[layer], self.share

        return along

    def _boost(self, weights: Tensor, logits: Tensor, keys: Keys, image: Tensor, share: Tensor) -> Tensor:
        bonus = share[:, None, None] * logits[..., : share.shape[-1]].abs()
        return boosted(weights, bonus, image[:, None, None] & self.method.guard.within(logits, keys))

    def _shares(self) -> Tensor:
        """What the pictures of this turn ask for, behind what those before did."""
        earlier = self.layout.ids.new_zeros(self.layout.batch, 0).float() if self.earlier is None else self.earlier
        new = self.layout.image[:, earlier.shape[1] :]
        share = torch.zeros_like(new, dtype=torch.float32)
        if bool(new.any()):
            first, late = self.method.watch.seen()
            settings = self.method.settings
            local, summary = local_tokens(first, settings.ratio), summary_tokens(late)
            share = on_prompt(torch.where(summary, settings.beta, torch.where(local, settings.alpha, 0.0)), new)
        return torch.cat([earlier.to(share.device), share], dim=1)

    def report(self) -> dict[str, Any]:
        """boosted: number of image tokens per row whose logits are raised, secondary sinks among them."""
        return {} if self.share is None else {"boosted": (self.share > 0).sum(-1).tolist()}


class ClassAttention:
    """Watches a CLIP tower: the attention of its class token in the first layer and the last but one."""

    def __init__(self, tower: nn.Module):
        layers = [m for m in tower.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]
        self.watched = (layers[0], layers[max(0, len(layers) - 2)])
        self.heads: int = tower.config.num_attention_heads  # type: ignore[union-attr, assignment]
        self._query: dict[int, Tensor] = {}
        self._seen: dict[int, Tensor] = {}

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Until it is left, every run of the tower is noted; the last counts."""
        with ExitStack() as hooks:
            for which, layer in enumerate(self.watched):
                for part, see in (("q_proj", self._see_query), ("k_proj", self._see_keys)):
                    handle = getattr(layer, part).register_forward_hook(partial(see, which))
                    hooks.callback(handle.remove)
            try:
                yield
            finally:
                self._query.clear()
                self._seen.clear()

    def seen(self) -> tuple[Tensor, Tensor]:
        """Attention [pictures, patches], summed over heads, of the two layers."""
        if len(self._seen) < 2:
            raise LayoutError("paint has not seen the vision tower run: pass pixel_values, not encoded pictures")
        return self._seen[0], self._seen[1]

    def _see_query(self, which: int, module: nn.Module, args: Any, output: Tensor) -> None:
        self._query[which] = output[:, 0]

    def _see_keys(self, which: int, module: nn.Module, args: Any, output: Tensor) -> None:
        query = self._query.pop(which).float().unflatten(-1, (self.heads, -1))
        keys = output.detach().float().unflatten(-1, (self.heads, -1))
        logits = torch.einsum("mhd,mphd->mhp", query.detach(), keys) * query.shape[-1] ** -0.5
        self._seen[which] = logits.softmax(-1)[..., 1:].sum(1)


def local_tokens(attention: Tensor, ratio: float) -> Tensor:
    """The patches that a picture's class token looks at most, a `ratio` of them: mask [pictures, patches]."""
    kept = attention.topk(int(ratio * attention.shape[1]), dim=-1).indices
    return torch.zeros_like(attention, dtype=torch.bool).scatter(1, kept, True)


def summary_tokens(attention: Tensor) -> Tensor:
    """The outliers above the third quartile by 1.5 times the interquartile range: mask [pictures, patches]."""
    low, high = attention.quantile(torch.tensor([0.25, 0.75], device=attention.device), dim=-1)
    return attention > (high + 1.5 * (high - low))[:, None]


def on_prompt(values: Tensor, image: Tensor) -> Tensor:
    """Values [pictures, patches] at the image tokens [B, n] that `image` marks. Beams and several answers repeat rows, not pictures."""
    places = image.to(values.device)
    total = int(places.sum())
    copies, odd = divmod(total, values.numel())
    if odd or not copies or len(places) % copies:
        raise LayoutError(
            f"paint: {len(values)} pictures of {values.shape[1]} patches were encoded for {total} image tokens: build the"
            " prompt with this model's processor and pass its whole output"
        )
    places = places[::copies]
    out = torch.zeros(places.shape, dtype=values.dtype, device=values.device)
    out[places] = values.flatten()
    return out.repeat_interleave(copies, 0)
