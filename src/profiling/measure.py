"""From observations to calibration sections: sinks (VAR), gaze layers (GIFT), visual heads (VHR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plugin.calibration import Gaze, Sink, VisualHeads
from .observe import Observation

ATTENDED = 0.1  # share of the tokens that counts as most attended
FIRST_LAYER = 2  # VAR looks for sinks from here on


def measure_sinks(seen: Sequence[Observation], most: int = 2) -> Sink:
    """Massive dimensions and the threshold that tells their tokens apart.

    A dimension is a candidate in a layer if it stands out of the magnitudes that the most attended tokens have there;
    the `most` dimensions that do so in most layers, by their total, are taken. tau lies in the widest relative gap of
    the upper half of phi, the tokens' largest magnitude over these dimensions.
    """
    layers = range(FIRST_LAYER, len(seen[0].hidden))
    profile = torch.stack([_attended_profile(seen, layer) for layer in layers])  # [layers, D]
    stands_out = profile > profile.mean(-1, keepdim=True) + 3 * profile.std(-1, keepdim=True)
    votes = stands_out.sum(0) + profile.sum(0) / profile.sum(0).max()  # ties are broken by size
    dims = votes.topk(most).indices.tolist()

    phi = torch.cat([o.hidden[layer][o.layout.valid][:, dims].amax(-1) for o in seen for layer in layers])
    upper = phi.sort().values[len(phi) // 2 :]
    gaps = upper[1:] / upper[:-1].clamp(min=1e-6)
    widest = int(gaps.argmax())
    return Sink(dims=sorted(dims), tau=round(float((upper[widest] * upper[widest + 1]).sqrt()), 3), source=None)


def measure_gaze(seen: Sequence[Observation], alpha: float) -> Gaze:
    """GIFT's layers: saliency from the layer with the largest total positive change, over the half of its heads that

    change most; enhancement in the layers behind it, up to the same depth as in LLaVA-1.5 7B (22 of 32). `alpha` is not
    measured here but chosen on the calibration split.
    """
    layers = len(seen[0].rise)
    totals = torch.zeros(layers)
    for observation in seen:
        for layer, rise in enumerate(observation.rise):
            totals[layer] += float(rise.topk(rise.shape[1] // 2, dim=-1).values.sum())
    saliency = int(totals[: layers - 1].argmax())  # the last layer has none behind it
    end = max(saliency + 1, round(layers * 23 / 32) - 1)
    return Gaze(
        saliency_layers=[saliency], enhanced_layers=list(range(saliency + 1, end + 1)), alpha=alpha, source=None
    )


def measure_visual_heads(seen: Sequence[Observation], layers: list[int]) -> VisualHeads:
    """Mean visual head divergence per head (squared distance, VHR Eq. 4)."""
    depth = len(seen[0].divergence)
    scores = [torch.cat([o.divergence[layer] for o in seen]).mean(0) for layer in range(depth)]
    return VisualHeads(layers=layers, scores=[[round(float(v), 5) for v in row] for row in scores], source=None)


def _attended_profile(seen: Sequence[Observation], layer: int) -> Tensor:
    """Mean magnitude per hidden dimension over the most attended tokens of each prompt [D]."""
    picked = []
    for observation in seen:
        for row, valid in enumerate(observation.layout.valid):
            received = observation.received[layer][row].masked_fill(~valid, -1.0)
            top = received.topk(max(1, int(ATTENDED * int(valid.sum())))).indices
            picked.append(observation.hidden[layer][row, top])
    return torch.cat(picked).mean(0)
