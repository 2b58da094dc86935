"""A gate: at which tokens a method, or a decoder, acts, by a signal of how sure the model is.

Source: CG-VLM (arXiv 2512.05546), CAI (arXiv 2606.29847) and AdaVBoost (arXiv 2602.13600) each have one of their own; here
it is a setting of everything that has a strength. `reading/gates.py` carries it out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Signal = Literal["entropy", "probability", "image_attention", "grounding", "divergence", "interaction"]
AHEAD = ("divergence", "interaction")  # measured by runs ahead of the token, over other prompts
LOOKING = ("image_attention", "grounding")  # measured from attention weights


class When(BaseModel):
    """Open where `signal` is above, or below, a threshold; there the method has its strength, elsewhere none.

    Without one it opens where the calibration says that hallucinated words part from true ones.

    entropy, probability: of the next token's distribution, in nats, and of its likeliest token. image_attention: mean
    attention of all heads on the image. grounding: the calibrated score of that section.
    divergence: Jensen-Shannon, between the plain model's distributions with the image and without. interaction: variance
    over the `candidates` likeliest tokens of l(all) - l(no question) - l(no image) + l(neither) (CG-VLM).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    signal: Signal
    above: float | None = Field(default=None, description="threshold; null, and no `below`: the calibrated one")
    below: float | None = None
    scale: float | None = Field(
        default=None,
        gt=0,
        description="distance beyond the threshold at which the full strength is reached; null: at once",
    )
    by: Literal["previous", "now", "layer"] | None = Field(
        default=None,
        description="decided by the last step, for nothing, or by a plain pass of this one, which is run again where it opens,"
        " or in each edited layer, by what the state that enters it would say; default: previous; divergence and interaction"
        " are always of now",
    )
    picture: Literal["none", "random"] = Field(
        default="none", description="'no image' of divergence and interaction: left out, or random pixels"
    )
    seed: int = Field(default=0, description="of the random pixels")
    candidates: int = Field(default=50, ge=2, description="tokens over which the interaction's variance is taken")

    @model_validator(mode="after")
    def _meaningful(self) -> When:
        if self.above is not None and self.below is not None:
            raise ValueError("a gate opens 'above' a threshold or 'below' it: give one of the two")
        if self.calibrated and (self.signal in AHEAD or self.by == "layer"):
            what = self.signal if self.signal in AHEAD else "by: layer"
            raise ValueError(f"no calibration has a threshold for {what}: give 'above' or 'below'")
        if self.signal in AHEAD and self.by not in (None, "now"):
            raise ValueError(
                f"{self.signal} is measured ahead of each token, so 'by: {self.by}' means nothing: leave it out"
            )
        if self.signal in LOOKING and self.by == "layer":
            raise ValueError(f"{self.signal} is not read from one layer's state: use entropy or probability")
        return self

    @property
    def calibrated(self) -> bool:
        """Whether the calibration says where it opens."""
        return self.above is None and self.below is None

    @property
    def now(self) -> bool:
        """Whether the token under way decides."""
        return self.by == "now" or self.signal in AHEAD

    def strength(self, values: Tensor) -> Tensor:
        """Share of the full strength, 0 to 1, at these values of the signal."""
        if self.above is not None:
            beyond = values - self.above
        else:
            assert self.below is not None
            beyond = self.below - values
        return (beyond > 0).float() if self.scale is None else (beyond / self.scale).clamp(0, 1).nan_to_num().float()
