"""A decoder that reads the likeliest next tokens ahead, each in a pass whose keys are dropped again (OPERA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.errors import UnsupportedModelError
from ..branches.decoder import Contrast
from ..branches.positions import Positions
from ..core.attention import merge
from ..core.compat import CACHE, grows_by_copies, saved_cache
from ..core.host import Host
from ..core.layout import Step
from .conversation import Conversation
from .passes import Call
from .prompt import Prompt
from .strategies import Contrasted


class Looking(Contrasted):
    """A prompt batch under such a decoder."""

    one_by_one = True

    def __init__(self, host: Host, prompt: Prompt, conversation: Conversation, contrast: Contrast):
        super().__init__(host, prompt, conversation, contrast)
        self.positions = Positions(host.decoder)

    def run(self, original: Call, kwargs: dict[str, Any], step: Step) -> tuple[Any, Tensor]:
        wanted = kwargs.get(CACHE) is not None or kwargs.get("use_cache") is not False
        with self.positions.noted():
            output, weak = super().run(original, {**kwargs, "use_cache": True}, step)
        if step.start + step.count >= self.layout.length:
            self.contrast.accept()
            self.look(original, output, Step(self.layout, step.start + step.count, 1))
        return output if wanted else type(output)(**{**output, CACHE: None}), weak

    @torch.no_grad()
    def look(self, original: Call, output: Any, step: Step) -> None:
        """Read the candidates behind a pass ahead, and take them back."""
        cache, layout = output[CACHE], self.layout
        if not grows_by_copies(cache):
            raise UnsupportedModelError(
                f"opera reads tokens ahead and takes them back, for which a {type(cache).__name__} has no room: use the default"
                " cache"
            )
        best = output.logits[:, -1].topk(self.contrast.candidates).indices
        given: dict[str, Any] = {
            "attention_mask": step.mask,
            CACHE: cache,
            **{"use_cache": True, "return_dict": True, "logits_to_keep": 1},
        }
        if self.positions.last.ndim > 2:  # Qwen lays out the whole mask's, where it is not told
            given["position_ids"] = self.positions.last + 1
        for tokens in best.T:
            restore = saved_cache(cache)
            plan = merge([*self.prompt.edits(step), self.contrast.watch(step)])
            with self.host.staged(plan, step.start, layout.length), self.positions.aside():
                original(input_ids=tokens[:, None], **given)
            self.contrast.tried(tokens)
            restore()
