"""CAI: raise the image's logits by relevance to the token under way, in deep layers that are unsure of it.

Source: arXiv 2606.29847 (ECCV 2026) and its release. With e_j the embeddings of image tokens and t the last token's (of a
prompt: the mean of all behind the image), in the last row of the pass, before the softmax, for all heads of the chosen
layers:

    s_j <- s_j + w_j |s_j|,    w_j = sigmoid(100 (cos(e_j, t) - min over k of cos(e_k, t)))

It acts in a layer where the gate is open: on the entropy of what the state that enters the layer would say.

What paper and release say apart from that, and what is ours: docs/methods/cai.md.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..core.edits import Edit, InputProbe, Keys, Reweight, boosted
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings
from ..core.registry import register
from ..core.when import When

SHARPNESS = 100.0
GATE = When(signal="entropy", above=0.23, by="layer")  # entropy / ln 10 above 0.1


class CAISettings(Settings):
    when: When | None = Field(GATE, description="the gate; published: entropy / ln 10 above 0.1, layer by layer")
    layers: list[int] | None = Field(None, min_length=1, description="raised; default: 26 to 31 of 32 in proportion")


@register("cai")
class CAI(Method):
    summary = "raise the image's logits by relevance, in layers that are unsure"
    source = "arXiv 2606.29847"
    cost = "no extra pass; a readout per chosen layer; explicit weights for one row"
    acts = "weights"
    weighs_image = True
    config = CAISettings

    def __init__(self, settings: CAISettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = facts.proportion(26, 32) if settings.layers is None else settings.layers
        self.layers = facts.check_layers(layers, "cai.layers")

    def start(self, layout: Layout) -> CAISession:
        return CAISession(self, layout)


class CAISession(Session):
    def __init__(self, method: CAI, layout: Layout):
        self.method, self.layout = method, layout
        self.prompt: Tensor | None = None  # the prompt's embeddings [B, n, hidden], as far as it was read
        self.weights = torch.zeros(0)  # of the pass's last rows [B, R, n]

    def resume(self, earlier: CAISession) -> None:
        self.prompt = earlier.prompt

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        edits: dict[int, list[Edit]] = {0: [InputProbe(lambda hidden: self._see(step, hidden))]}
        rows = None
        if step.reading:
            rows = step.rows(self.layout.last_token)
            if rows is None:
                return edits
        for layer in self.method.layers:
            edits.setdefault(layer, []).append(Reweight(self._raise, rows, headwise=True))
        return edits

    def _see(self, step: Step, hidden: Tensor) -> None:
        """Note the embeddings [B, q, hidden] of a prompt's part, and how relevant the image is to the pass's last rows."""
        hidden, told = hidden.float(), hidden.float()
        if step.reading:
            own = hidden[:, : self.layout.length - step.start]
            before = own[:, :0] if self.prompt is None else self.prompt[:, : step.start].to(own)
            # Room for the answers before this turn.
            between = own.new_zeros(len(own), step.start - before.shape[1], own.shape[2])
            held = torch.cat([before, between, own], dim=1)
            behind = self.layout.after_image[:, : held.shape[1]].to(own.device)
            behind = behind & (torch.arange(held.shape[1], device=own.device) >= self.layout.turn)
            self.prompt = held
            told = (held * behind[..., None]).sum(1, keepdim=True)  # a sum points where the mean does
        assert self.prompt is not None
        count = self.prompt.shape[1]
        image = self.layout.image[:, None, :count].to(hidden.device)
        alike = cosine_similarity(self.prompt.to(hidden)[:, None], told[:, :, None], dim=-1)
        least = alike.masked_fill(~image, torch.inf).amin(-1, keepdim=True)
        self.weights = torch.sigmoid(SHARPNESS * (alike - least)) * image

    def _raise(self, weights: Tensor, logits: Tensor, keys: Keys) -> Tensor:
        share = self.weights[:, :, keys.prompt].to(logits)[:, None]
        return boosted(weights, share * logits[..., : share.shape[-1]].abs(), share > 0)
