"""The heads of one process of vLLM's tensor parallel group."""

from __future__ import annotations

from torch import Tensor


def of_rank(values: Tensor, rank: int, ranks: int) -> Tensor:
    """The part of values of all query heads [.., H] that process `rank` of `ranks` computes.

    Heads are consecutive, as many for each. vLLM refuses head counts that cannot be dealt evenly, and copies key heads where there are fewer than processes.
    """
    count = values.shape[-1] // ranks
    return values[..., rank * count : (rank + 1) * count].contiguous()
