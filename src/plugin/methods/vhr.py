"""VHR, vision-aware head reinforcement: heads whose output changes most when the image is taken away speak louder.

Source: arXiv 2412.13949 (ACL 2025), Eq. 4-7, Alg. 1.

Per layer, in one pass, earlier layers already reinforced: VHD_h is the distance between the head outputs at the last
prompt position with and without the image (Eq. 4). A head whose VHD and whose text-only output both exceed mean + std
of the layer surged because the image was missing and is set to zero (Eq. 6). Heads strictly above the layer's median
are multiplied by alpha before `o_proj`, in every row of the prompt and in every decode step (Eq. 7).

What paper and release say apart from that, and what is ours: docs/methods/vhr.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...common.errors import CalibrationError, ConfigError
from ..calibration.sections import VisualHeads
from ..core.edits import Edit, Gain, OutputProbe
from ..core.layout import Layout, Step
from ..core.method import FixedGains, Method, ModelFacts, Session, Settings
from ..core.registry import register


class VHRSettings(Settings):
    alpha: float = Field(2.0, ge=0, description="factor on the chosen heads' output")
    layers: list[int] | None = Field(
        None,
        min_length=1,
        description="reinforced layers; default: the calibration's, else 1 and the last 14 of 32 in proportion, of"
        " InstructBLIP the last 18",
    )
    outlier_filter: bool = Field(True, description="drop heads that surge when the image is missing (Eq. 6)")
    filter_min_std: float = Field(1.0, ge=0, description="filter only layers whose VHD std exceeds this; 0: the paper")
    distance: Literal["squared", "euclidean"] = Field("squared", description="squared: the ports; euclidean: the paper")
    static: bool = Field(
        False, description="the heads that the calibration's prompts chose most often, for every prompt"
    )


@register("vhr")
class VHR(Method):
    summary = "amplify the heads that look at the image"
    source = "arXiv 2412.13949"
    cost = "the prompt's text once more beside it; a multiplication per token"
    acts = "outputs"
    config = VHRSettings

    def __init__(self, settings: VHRSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        layers = settings.layers
        if layers is None and facts.calibration is not None and facts.calibration.visual_heads is not None:
            layers = facts.calibration.visual_heads.layers
        self.layers = facts.check_layers(default_layers(facts) if layers is None else layers, "vhr.layers")
        self.heads: Tensor | None = None  # the same for every prompt [layers, heads]
        if settings.static:
            self.heads = static_heads(facts.need("visual_heads", "vhr"), self.layers)

    @classmethod
    def check_fixed(cls, settings: VHRSettings) -> None:
        if not settings.static:
            raise ConfigError(
                "method 'vhr' chooses its heads anew for each prompt, so no fixed factors stand for it: set 'static: true',"
                " which takes the calibration's, or generate with transformers"
            )

    def fixed(self) -> FixedGains:
        assert self.heads is not None
        factors = torch.ones(self.heads.shape)
        for layer in self.layers:
            factors[layer] = 1 + (self.settings.alpha - 1) * self.heads[layer].float()
        return FixedGains(factors, seeing=True)

    def start(self, layout: Layout) -> VHRSession:
        return VHRSession(self, layout)


class VHRSession(Session):
    def __init__(self, method: VHR, layout: Layout):
        self.method, self.layout = method, layout
        self.whole_prompt = method.heads is None
        self.text: dict[int, Tensor] = {}  # head outputs [B, H, d] at the last position, without the image
        self.chosen: dict[int, Tensor] = {}  # masks [B, H]
        self.gains: dict[int, Tensor] = {}  # [B, H]
        if method.heads is not None:
            seeing = layout.image.any(-1, keepdim=True)
            for layer in method.layers:
                self.chosen[layer] = seeing & method.heads[layer].to(seeing.device)
                self.gains[layer] = 1 + (method.settings.alpha - 1) * self.chosen[layer].float()

    def read_text_edits(self) -> dict[int, list[Edit]]:
        if self.method.heads is not None:
            return {}

        def keep(layer: int) -> OutputProbe:
            return OutputProbe(lambda output: self.text.__setitem__(layer, output[:, -1].float()))

        return {layer: [keep(layer)] for layer in self.method.layers}

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return {layer: [self._gain(layer, step)] for layer in self.method.layers}

    def _gain(self, layer: int, step: Step) -> Gain:
        if layer in self.gains:
            return Gain(self.gains[layer])

        def choose(output: Tensor) -> Tensor:
            position = (self.layout.last - step.start).to(output.device)
            image = output[torch.arange(len(position), device=output.device), position].float()
            chosen = choose_heads(image, self.text[layer].to(output.device), self.method.settings)
            # Without an image the two passes differ by rounding alone, which must not choose.
            chosen &= self.layout.image.any(-1, keepdim=True).to(output.device)
            self.chosen[layer] = chosen
            self.gains[layer] = 1 + (self.method.settings.alpha - 1) * chosen.to(output.dtype)
            return self.gains[layer]

        return Gain(choose)

    def report(self) -> dict[str, Any]:
        """head_map [layers][heads]: share of the batch rows in which a head was chosen."""
        facts = self.method.facts
        shares = torch.zeros(facts.layers, facts.heads)
        for layer, chosen in self.chosen.items():
            shares[layer] = chosen.float().mean(0).cpu()
        return {"head_map": shares.tolist()}


def default_layers(facts: ModelFacts) -> list[int]:
    """The second layer and the last 14 of 32 in proportion: a port's rule for models that the paper did not measure.

    InstructBLIP: the last 18 of 32 in proportion.
    """
    layers = facts.layers
    if facts.architecture == "instructblip":
        return list(range(layers - round(layers * 18 / 32), layers))
    return facts.own(sorted({min(1, layers - 1), *range(layers - round(layers * 14 / 32), layers)}))


def static_heads(known: VisualHeads, layers: Sequence[int]) -> Tensor:
    """Mask [layers, heads]: by the rule of Eq. 7, on how often VHR chose a head, or else on mean divergences.

    Raises:
        CalibrationError: the calibration has neither for one of the layers.
    """
    table = known.chosen if known.chosen is not None else known.scores
    if table is None or not all(any(table[layer]) for layer in layers):
        raise CalibrationError(
            f"vhr.static needs 'visual_heads.chosen' of the calibration for the layers {list(layers)}: measure it with"
            " sightline calibrate MODEL --profile visual-heads, or leave 'layers' and 'static' out"
        )
    scores = torch.tensor(table)
    return scores > scores.median(-1, keepdim=True).values


def choose_heads(image: Tensor, text: Tensor, settings: VHRSettings) -> Tensor:
    """Mask [B, H] of the reinforced heads, from head outputs [B, H, d] with and without the image (Eq. 4, 6, 7)."""
    divergence = (image - text).square().sum(-1)
    if settings.distance == "euclidean":
        divergence = divergence.sqrt()
    if settings.outlier_filter:
        surge = text.square().sum(-1)
        (spread, mean), (surge_spread, surge_mean) = (
            torch.std_mean(one, -1, keepdim=True) for one in (divergence, surge)
        )
        outlier = (divergence > mean + spread) & (surge > surge_mean + surge_spread)
        outlier &= spread > settings.filter_min_std
        divergence = divergence.masked_fill(outlier, 0.0)
    return divergence > divergence.median(-1, keepdim=True).values  # the lower of the two middle values
