"""vLLM's attention of one layer with a plan inside: factors on heads, and the copy's attention beside it.

Queries and keys may have one dimension more than the model's. There the product of a query's and a key's number is added
to the logit, in whatever kernel: the log of a factor on the first token's attention, or what hides the keys of pictures
from a copy that reads none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention import Attention

from ..common.errors import UnsupportedModelError
from .plan import Copy
from .rows import PassRows

BESIDE = "_copy"  # behind the name of a layer that holds the copy's keys and values
HIDING = 256.0  # of a query and, negative, of a hidden key: a logit so low that its weight is zero in any number type


class EditedAttention(nn.Module):
    """vLLM's attention of a layer, edited, and the copy's attention beside it if the layer has one.

    gains: factors on head outputs [3, H] by the kind of row; None for none. first: what is added to the logits of the
    first token's key, likewise; None where queries and keys have no dimension for it. marks: the copy's heads [H]
    (`Copy.heads`). H heads are of this process.
    """

    gains: Tensor | None
    first: Tensor | None
    marks: Tensor | None

    def __init__(
        self,
        base: Attention,
        rows: PassRows,
        gains: Tensor | None,
        first: Tensor | None,
        marks: Tensor | None,
        copied: Copy | None,
    ):
        super().__init__()
        self.rows, self.copied = rows, copied
        self.num_heads, self.num_kv_heads, self.head_size = base.num_heads, base.num_kv_heads, base.head_size
        self.size = self.head_size if first is None else wider(base)
        self.base = base if first is None else _like(base, self.size, base.layer_name)
        self.beside = None if copied is None else _like(base, self.size, base.layer_name + BESIDE)
        self.layer_name, self.impl = self.base.layer_name, self.base.impl  # what vLLM reads off an attention layer
        self.register_buffer("gains", gains, persistent=False)
        self.register_buffer("first", None if first is None else first / self.impl.scale, persistent=False)
        self.register_buffer("marks", None if marks is None or not marks.any() else marks, persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.beside is None or self.copied is None:
            return self._edited(self.base, query, key, value)
        count = query.shape[0] // 2
        mine = self._edited(self.base, query[:count], key[:count], value[:count])
        theirs = [one[count:].contiguous() for one in (query, key, value)]
        if self.copied.bare:
            return torch.cat([mine, self._bare(self.beside, *theirs)])
        changed, change = self._changed(count), self.copied.change
        if changed is not None and change == "disperse":
            theirs[0] = torch.where(changed, 0, theirs[0])
        other = self._edited(self.beside, *theirs)
        if changed is not None and change == "silence":
            other = torch.where(changed, 0, other)
        elif changed is not None and change == "add":
            assert self.marks is not None
            factors = self.marks.repeat_interleave(self.head_size).to(mine)
            other = torch.where(changed, other + mine * factors, other)
        return torch.cat([mine, other])

    def _edited(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kind = self.rows.kind[: query.shape[0]]
        if self.first is not None:
            query, key, value = self._raised(query, key, value, self.first[kind], self.rows.first[: query.shape[0]])
        output = self._narrow(attention(query, key, value))
        if self.gains is None:
            return output
        factors = self.gains[kind].to(output)
        return (output.view(-1, self.num_heads, self.head_size) * factors[..., None]).view(output.shape)

    def _bare(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Without the methods' factors, and without the keys of pictures if the copy reads none."""
        if self.first is not None:
            hidden = self.rows.image[: query.shape[0]] * -HIDING
            asked = torch.full_like(query[:, : self.num_heads], HIDING)
            query, key, value = self._raised(query, key, value, asked, hidden)
        return self._narrow(attention(query, key, value))

    def _raised(
        self, query: Tensor, key: Tensor, value: Tensor, asked: Tensor, told: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values in the wider heads: asked [T, H] of each query, told [T] of each key."""
        ends = (asked, told[:, None].expand(-1, self.num_kv_heads), torch.zeros_like(value[:, : self.num_kv_heads]))
        wide = []
        for tensor, end in zip((query, key, value), ends, strict=True):
            heads = tensor.view(tensor.shape[0], -1, self.head_size)
            rest = heads.new_zeros(*heads.shape[:2], self.size - self.head_size - 1)
            wide.append(torch.cat([heads, end[..., None].to(heads), rest], -1).flatten(1))
        return wide[0], wide[1], wide[2]

    def _narrow(self, output: Tensor) -> Tensor:
        if self.first is None:
            return output
        return output.view(-1, self.num_heads, self.size)[..., : self.head_size].flatten(1)

    def _changed(self, count: int) -> Tensor | None:
        """Which numbers of the copy's rows belong to heads that differ [count, H * d]; None for none."""
        if self.marks is None:
            return None
        heads = (self.marks != 0).repeat_interleave(self.head_size)
        return self.rows.changed[:count, None] & heads


def wider(base: Attention) -> int:
    """The next head size that the layer's kernel takes. Raises UnsupportedModelError where there is none."""
    for size in range(base.head_size + 8 - base.head_size % 8, 513, 8):
        if base.attn_backend.supports_head_size(size):
            return size
    raise UnsupportedModelError(
        f"heads of {base.head_size} numbers leave {base.attn_backend.get_name()} no room for one more, which zerotuning,"
        " m3id and pai_guidance need: leave them out, or generate with transformers"
    )


def _like(base: Attention, size: int, name: str) -> Attention:
    """A layer like it, of heads of another size and with keys and values of its own; it takes the place of one so named."""
    for what, present in (
        ("attention sinks", base.has_sink),
        ("capped attention logits", bool(getattr(base.impl, "logits_soft_cap", None))),
        ("linear attention biases", getattr(base.impl, "alibi_slopes", None) is not None),
        ("shared keys", base.kv_sharing_target_layer_name is not None),
    ):
        if present:
            raise UnsupportedModelError(
                f"layer {base.layer_name} has {what}, which a copy or a wider key is not proven with: serve it with factors on"
                " head outputs alone, or generate with transformers"
            )
    config = get_current_vllm_config()
    config.compilation_config.static_forward_context.pop(name, None)
    return Attention(
        base.num_heads,
        size,
        base.impl.scale,
        num_kv_heads=base.num_kv_heads,
        cache_config=config.cache_config,
        per_layer_sliding_window=base.sliding_window,
        prefix=name,
    )
