"""A branch on one prompt batch: how it reads its prompt, and what it rides along on behind it.

A `Branch` says how the copy differs; a `Fork` carries it through one prompt batch, in the model's own passes (`rider.py`)
or, over a prompt of its own, in one pass for each copy. The caller's cache holds the model's rows and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import compat
from ..core.attention import LayerPlan, Stage
from ..core.compat import CACHE
from ..core.edits import PROBES, Edit, placed
from ..core.families.inferred import blocks
from ..core.layout import Layout, Step
from ..core.shards import Shard
from .branch import Branch, Edits
from .cache import BranchCache, TappedCache, below
from .extra import ExtraPosition, ExtraRows
from .joint import Joint
from .positions import Positions
from .rider import Rider


class Fork:
    """A branch on one prompt batch. It has B rows for each of its copies, N in all, those of the first copy first."""

    def __init__(
        self,
        branch: Branch,
        layout: Layout,
        carried: Callable[[Step], Sequence[Edits]],
        across: frozenset[int],
        latent: bool = False,
        lasting: bool = True,
    ):
        """carried: the methods' edits of a pass. across: layers that read the image by cross-attention.

        latent: the model's cache holds what keys are made of, not keys (MLA). lasting: the carried edits are the same in
        every decode step.
        """
        self._lasting = lasting and not branch.anew
        self.branch, self.layout, self.across, self.latent = branch, layout, across, latent
        self.copies = max(1, len(branch.prompts))
        self.cache = BranchCache(layout.valid, layout.length - (branch.prompt == "shared"))
        self._carried = carried
        self._decode_plan: dict[int, LayerPlan | None] = {}
        self.joint = Joint(self)  # what it is while its rows are in the model's cache

    def resume(self, earlier: Fork) -> None:
        """Go on from the branch of the turn before, if its rows read what the model's do: what it read stays read."""
        if self.branch.prompt == "beside":
            earlier.joint.leave(self.layout.turn)
            self.cache = earlier.cache
            self.cache.settle(self.layout.valid, self.layout.turn)

    def rides_in(self, step: Step) -> bool:
        """Whether its rows are part of this pass of the model."""
        if not step.reading or self.branch.prompt == "beside":
            return True
        return self.branch.prompt == "shared" and step.start + step.count == self.layout.length

    def ride(
        self, original: Callable[..., Any], kwargs: Mapping[str, Any], stage: Stage, decoder: nn.Module, step: Step
    ) -> tuple[Any, Tensor]:
        """Run a pass of the model with the branch aboard: the model's output, and the branch's logits [N, T, V]."""
        self.joint.leave(step.start)
        if step.start == 0 and self.branch.prompt == "beside":
            self.cache.length = step.count  # a prompt read in two parts: the rest is grown
        shared_prompt = step.reading and self.branch.prompt == "shared"
        cache = kwargs.get(CACHE)
        base_cache = compat.new_cache(decoder.config) if cache is None else cache
        windows = compat.windows(base_cache)
        rider: Rider = (ExtraPosition if shared_prompt else ExtraRows)(self, step, windows)
        tapped = TappedCache(base_cache, rider.take, rider.whole)
        kept = kwargs.get("logits_to_keep")
        if shared_prompt and isinstance(kept, int) and kept:
            kwargs = {**kwargs, "logits_to_keep": kept + 1}  # the branch's token stands behind the model's
        with rider.aboard(blocks(decoder), stage):
            output = original(**{**kwargs, CACHE: tapped, "use_cache": True, "return_dict": True})
        logits, weak = rider.split(output.logits, rider.along)
        wanted = cache is not None or kwargs.get("use_cache") is not False
        base: dict[str, Any] = {"logits": logits, CACHE: tapped.base if wanted else None}
        if output.get("hidden_states") is not None:
            base["hidden_states"] = tuple(map(rider.model_part, output.hidden_states))
        return type(output)(**{**output, **base}), weak  # built anew: an output keeps what is set to None

    def read(
        self,
        original: Callable[..., Any],
        kwargs: dict[str, Any],
        model: nn.Module,
        decoder: nn.Module,
        positions: Positions,
    ) -> Tensor:
        """Read its copies' own prompts, each in a pass whose end `positions` tells; the caller stages its edits.

        Returns logits [N, 1, V].
        """
        masks, logits, caches = [], [], []
        for rewrite in self.branch.prompts:
            cache = compat.new_cache(decoder.config)
            own = rewrite(kwargs)
            own |= {CACHE: cache, "use_cache": True, "return_dict": True}
            if "logits_to_keep" in inspect.signature(original).parameters:
                own["logits_to_keep"] = 1
            with positions.ended_alike(), compat.offsets_kept(model):
                output = original(**own)
            masks.append(own["attention_mask"].bool())
            logits.append(output.logits[:, -1:])
            caches.append(cache.layers)
        valid = below(masks, 1)
        self.cache.begin(valid, valid.shape[1])
        for number, layers in enumerate(zip(*caches, strict=True)):
            pairs = [pair for pair in map(compat.held, layers) if pair is not None]
            if len(pairs) == len(layers):  # one that reads an image has nothing where there is none
                keys, values = zip(*pairs, strict=True)
                self.cache.prompt[number] = below(keys, 2), below(values, 2)
        return torch.cat(logits)

    def left_out(self, layer: int) -> bool:
        """Whether the layer reads an image, and the branch's own prompt has none: the model leaves it out then."""
        return layer in self.across and not self.branch.carries and layer not in self.cache.prompt

    def plan(self, layer: int, step: Step, shard: Shard | None, device: torch.device) -> LayerPlan | None:
        """The branch's edits of a layer: those of the methods, if it carries them, and its own."""
        if not step.reading and layer in self._decode_plan:
            return self._decode_plan[layer]
        carried = self._carried(step) if self.branch.carries else ()
        edits: list[Edit] = [e for plan in carried for e in plan.get(layer, ()) if not isinstance(e, PROBES)]
        edits += [placed(edit, device) for edit in self.branch.edits(step).get(layer, ())]
        plan = LayerPlan.of(edits).on(shard) if edits else None
        if not step.reading and self._lasting:
            self._decode_plan[layer] = plan
        return plan

    def select(self, rows: Tensor) -> None:
        """Take these batch rows, for each copy, as a beam search does with the model's."""
        own = torch.cat([rows + copy * self.layout.batch for copy in range(self.copies)])
        self.joint.select(own)
        self.cache.select(own)

    def saved(self) -> Callable[[], None]:
        """What takes back all that passes from now on add."""
        grown = self.cache.grown.copy()

        def restore() -> None:
            if not self.joint.holds:  # there the next pass writes over them
                self.cache.grown = grown

        return restore

    def clear(self) -> None:
        """Let go of all keys and values."""
        self.joint.clear()
        self.cache.clear()
