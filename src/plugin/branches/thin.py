"""Linear maps over a handful of rows on a CPU.

`x @ W.T` with two rows is slow in the CPU libraries that torch ships with: on an AMD EPYC with one thread it takes a
third longer than one row, with several threads many times as long, although both only stream W once. The same product as
`(W @ x.T).T` has the long side where the libraries expect it and costs no more than one row does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.compiled import StandIn, stand_ins
from ..core.host import Host

MOST_ROWS = 16  # beyond, the usual product is as good


def install(host: Host) -> None:
    """Let the text decoder's linear layers and its readout take few rows this way while a branch rides along."""
    head = host.model.get_output_embeddings()  # type: ignore[operator]
    known = stand_ins(host.model)
    for module in (*host.decoder.modules(), head):
        # Weights of another class are quantised; another forward brings them from elsewhere.
        if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or "forward" in module.__dict__:
            continue
        if module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            thin = known.get(module) or ThinLinear(module)
            thin.stage = host.stage
            host.override(module, "forward", thin)


class ThinLinear(StandIn):
    """Stands in for `forward` of a linear layer; everything else goes to the layer's own."""

    def __init__(self, module: nn.Linear):
        self.module, self.usual = module, module.forward

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = hidden.numel() // hidden.shape[-1]
        alone = self.stage.rider is None and not self.stage.joint
        if alone or not 1 < rows <= MOST_ROWS or torch.is_grad_enabled():
            return self.usual(hidden, *args, **kwargs)
        flat = hidden.reshape(rows, -1)
        product = torch.mm(self.module.weight, flat.T).T.contiguous()
        if self.module.bias is not None:
            product += self.module.bias
        return product.view(*hidden.shape[:-1], -1)
