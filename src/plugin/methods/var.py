"""VAR, visual attention redistribution: attention that lies idle on sink tokens goes to the rest of the image.

Source: arXiv 2503.03321 (ICLR 2025) and its release, which disagree; both forms are here.

A token is a sink of a layer where max over the sink dimensions of |x_d| / RMS(x) > tau, x the hidden state that enters
the layer, found once while the prompt is read. With a the softmax weights of one head and row, V the image tokens and
S the sinks: vis = sum of a over V, share = sum of a over S and V, divided by (vis + 1e-6 |V|). Heads and rows with
vis >= min_visual and share <= rho are image-centric; there the weights of S (visual and text sinks) shrink and what they
lose goes to V without S, in proportion to its weights, so rows still sum to 1. The release leaves a layer without any
visual sink alone; here that holds for each row and the sinks it can see, so that no row depends on later tokens. The two
agree behind the image, the only prompt rows that the release edits.

released (default, what the published configuration runs): sinks keep the fraction p; heads with share <= rho.
paper: sinks lose the fraction p; heads with non-sink ratio 1 - share >= rho. The forms agree on rho only at 0.5.

What paper and release say apart from that, and what is ours: docs/methods/var.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...common.errors import CalibrationError
from ..calibration.files import Sink
from ..core.edits import Edit, InputProbe, Mass, Rows
from ..core.layout import Layout, Step
from ..core.method import Method, ModelFacts, Session, Settings, lacking
from ..core.registry import register
from .secondary import Boostable, SkipSecondary

FIRST_LAYER = 2  # the release finds no sinks before it


class VARSettings(Settings):
    p: float = Field(0.6, ge=0, le=1, description="fraction of their weight that sinks keep (released) or lose (paper)")
    rho: float = Field(0.5, ge=0, le=1, description="largest sink share (released) or smallest non-sink ratio (paper)")
    min_visual: float = Field(0.2, ge=0, le=1, description="least attention mass on the image (`summ` in the release)")
    form: Literal["released", "paper"] = Field("released", description="which reading of p and rho")
    last_layer: bool = Field(True, description="edit the last layer too (release); false: the paper")
    rows: Literal["after_image", "text"] = Field("after_image", description="prompt rows that are edited")
    sink_dims: list[int] | None = Field(None, min_length=1, description="sink dimensions; default: the calibration's")
    tau: float | None = Field(None, gt=0, description="sink threshold; default: the calibration's")
    skip_secondary: SkipSecondary = True


@register("var")
class VAR(Method):
    summary = "move attention from sink tokens to the rest of the image"
    source = "arXiv 2503.03321"
    cost = "no extra pass; explicit weights for the edited rows"
    acts = "weights"
    needs = ("sink",)
    weighs_image = True
    config = VARSettings

    def __init__(self, settings: VARSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        dims, tau = settings.sink_dims, settings.tau
        if dims is None or tau is None:
            sink: Sink = facts.need("sink", "var")
            dims, tau = dims or sink.dims, tau or sink.tau
        outside = [dim for dim in dims if not 0 <= dim < facts.hidden]
        if outside:
            raise CalibrationError(
                f"var.sink_dims names hidden dimension {outside[0]}, but '{facts.name}' has {facts.hidden}"
            )
        self.dims, self.tau = dims, tau
        self.layers = range(FIRST_LAYER, facts.layers if settings.last_layer else facts.layers - 1)
        paper = settings.form == "paper"
        self.keep = 1 - settings.p if paper else settings.p
        self.max_share = 1 - settings.rho if paper else settings.rho

    def start(self, layout: Layout) -> VARSession:
        return VARSession(self, layout)


class VARSession(Session):
    def __init__(self, method: VAR, layout: Layout):
        self.method, self.layout = method, layout
        self.sinks: dict[int, Tensor] = {}  # [B, n] by layer
        # Visual sinks, text sinks, visual non-sinks [B, n, 3], and secondary sinks among the last where there may be any.
        self.groups: dict[int, Tensor] = {}
        self.acting: set[int] = (
            set()
        )  # layers with a visual sink; the others change nothing and stay on the fused kernel
        self.boostable = Boostable(layout, method.facts, method.layers, method.settings.skip_secondary)
        self.images = layout.image.sum(-1).float()
        self.rows = layout.after_image if method.settings.rows == "after_image" else layout.valid & ~layout.image

    def resume(self, earlier: VARSession) -> None:
        self.boostable.resume(earlier.boostable)
        for layer, sinks in earlier.sinks.items():
            behind = sinks.new_zeros(len(sinks), self.layout.length - sinks.shape[1])
            self.sinks[layer] = torch.cat([sinks, behind], dim=1)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        if not step.reading:
            return {layer: [self._mass(layer, None)] for layer in self.groups}
        rows = step.rows(self.rows)
        edits = self.boostable.probes(step)
        for layer in self.method.layers:
            edits.setdefault(layer, []).append(InputProbe(partial(self._find_sinks, layer, step.start)))
            if rows is not None:
                edits[layer].append(self._mass(layer, rows))
        return edits

    def _mass(self, layer: int, rows: Rows | None) -> Mass:
        images = self.images

        def rule(masses: Tensor) -> Tensor:
            return redistribute(masses, images.to(masses.device)[:, None, None], self.method)

        return Mass(
            lambda: self.groups[layer],
            rule,
            lambda: self.groups[layer][..., :3],
            rows=rows,
            idle=lambda: layer not in self.acting,
        )

    def _find_sinks(self, layer: int, start: int, hidden: Tensor) -> None:
        """Note the sinks among the prompt tokens of this pass; hidden [B, q, hidden]."""
        state = hidden[:, : self.layout.length - start].float()
        scale = torch.rsqrt(state.square().mean(-1) + 1e-6)
        found = state[..., self.method.dims].abs().amax(-1) * scale > self.method.tau
        sinks = self.sinks.setdefault(layer, torch.zeros_like(self.layout.valid, device=hidden.device))
        sinks[:, start : start + found.shape[1]] = found
        sinks &= self.layout.valid.to(hidden.device)
        image = self.layout.image.to(hidden.device)
        groups = [sinks & image, sinks & ~image, image & ~sinks]
        if layer in self.boostable.layers:
            raised = self.boostable[layer]
            groups[2:] = [groups[2] & raised, groups[2] & ~raised]
        self.groups[layer] = torch.stack(groups, dim=-1).float()
        if bool(groups[0].any()):
            self.acting.add(layer)

    def idle(self) -> dict[int, str]:
        if not self.groups:
            return {}
        sinks = torch.stack([groups[..., 0].any(-1).cpu() for groups in self.groups.values()])
        return lacking(sinks.any(0), "none of its image tokens is a sink in any layer")

    def report(self) -> dict[str, Any]:
        """visual_sinks, text_sinks: mean number per batch row, by layer."""
        kinds = {layer: groups.sum(1).mean(0).tolist() for layer, groups in self.groups.items()}
        return {
            "visual_sinks": {layer: kind[0] for layer, kind in kinds.items()},
            "text_sinks": {layer: kind[1] for layer, kind in kinds.items()},
        }


def redistribute(masses: Tensor, images: Tensor, method: VAR) -> Tensor:
    """Coefficients [B, H, R, 3] of visual sinks, text sinks and visual non-sinks, from their masses [B, H, R, 3 or 4].

    A fourth mass is that of visual non-sinks which get nothing. images: number of image tokens, broadcastable to
    [B, H, R].
    """
    visual_sinks, text_sinks, rest = masses[..., :3].unbind(-1)
    visual = visual_sinks + masses[..., 2:].sum(-1)
    share = visual_sinks / (visual + 1e-6 * images)
    centric = (share <= method.max_share) & (visual >= method.settings.min_visual) & (visual_sinks > 0) & (rest > 0)
    loss = (1 - method.keep) * centric
    gain = loss * (visual_sinks + text_sinks) / rest.clamp(min=torch.finfo(rest.dtype).tiny)
    return torch.stack([-loss, -loss, gain], dim=-1)
