"""Rules about the masses of key groups in many rows of a prompt, without the weights of every key.

The fused kernel gives each row's head output O and the log-sum-exp l of its logits. Where a rule speaks of one group of
keys, a second run over that group alone gives the same of it, O' and l', so its mass is m = exp(l' - l), and growing it by
a share c makes the output (O + c m O') / (1 + c m). For several groups, which may overlap, the weights p of their keys are
made explicit from l and their logits; the new output is z O + sum_j (p'_j - z p_j) v_j, with z what the other keys keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPAParams, can_use_efficient_attention

from .edits import HIDDEN, Bias, Mass
from .explicit import Call, WeightEdit, active_rows, runs

LARGEST_SHIFT = 40.0  # of a bias, whose exponential must stay a number


def scale_groups(call: Call, edits: Sequence[WeightEdit], start: int, stop: int) -> Tensor | None:
    """Head outputs [B, q, H, d] of a pass in whose rows `start:stop` the edits act; None where they need all weights."""
    rules = [edit for edit in edits if isinstance(edit, Mass | Bias)]
    if torch.is_grad_enabled() or not call.extras.plain or len(call.pieces) > 1 or len(rules) < len(edits):
        return None
    if any(isinstance(rule, Bias) and bool((rule.bias <= HIDDEN).any()) for rule in rules):
        return None  # what is left of a row would be the small difference of two outputs
    key, value = call.pieces[0]
    causal = call.causal and call.mask is None
    if causal and call.query.shape[2] != key.shape[2]:
        return None
    fused = _fused(call.query, key, value, call.mask, causal, call.scale)
    if fused is None:
        return None
    output, total = fused
    device, prompt = key.device, call.keys.prompt
    rules = [_shifted(rule, prompt) if isinstance(rule, Bias) else rule for rule in rules]
    named = [columns.to(device)[prompt] for rule in rules for columns in _named(rule)]
    columns = torch.stack(named).any(0).nonzero().flatten()
    chosen = replace(call, pieces=((key[:, :, columns], value[:, :, columns]),), columns=columns, total=key.shape[2])
    first = rules[0]
    if not len(columns):
        return output
    if len(rules) == 1 and isinstance(first, Mass) and first.basis is None:
        group = first.tables()[0][:, prompt].to(device)[:, columns]
        if group.shape[-1] == 1 and bool(((group == 0) | (group == 1)).all()):
            _scale_one(chosen, first, group[..., 0] > 0, output, total, start, stop)
            return output
    _scale_several(chosen, rules, output, total, start, stop)
    return output


def _shifted(rule: Bias, prompt: slice) -> Bias:
    """The same bias on fewer keys: what most of a row's keys get changes nothing of its softmax."""
    most = rule.bias[..., prompt].float().median(-1, keepdim=True).values
    return Bias(torch.where(most.abs() < LARGEST_SHIFT, rule.bias - most, rule.bias))


def _named(rule: Mass | Bias) -> list[Tensor]:
    """The prompt keys [n] of which a rule speaks, in any batch row."""
    if isinstance(rule, Bias):
        return [(rule.bias != 0).flatten(0, 1).any(0)]
    return [(table != 0).any(-1).any(0) for table in rule.tables()]


def _scale_one(call: Call, rule: Mass, inside: Tensor, output: Tensor, total: Tensor, start: int, stop: int) -> None:
    """Change `output` in place by the rule of one group; `call` has the keys `inside` [B, S] names, and others at most."""
    key, value = call.pieces[0]
    inside = inside[:, None, None]
    for first, last in runs(start, stop, call.query.shape[0] * key.shape[2]):
        seen = call.seen(first, last)
        visible = inside if seen is None else inside & (seen if seen.dtype == torch.bool else seen == 0)
        visible = visible.expand(-1, 1, last - first, -1)
        fused = _fused(call.query[:, :, first:last], key, value, visible, False, call.scale)
        assert fused is not None
        there = visible.any(-1)  # a kernel's answer for a row that sees nothing is none
        mass = torch.where(there, (fused[1] - total[:, :, first:last]).exp(), 0)[..., None]
        share = rule.rule(mass)
        if rule.rows is not None:
            share = share * active_rows(rule.rows, first, last).to(share)[:, None, :, None]
        grown = torch.where(there[..., None], share * mass, 0).transpose(1, 2)
        new = output[:, first:last] + grown * fused[0].nan_to_num()
        output[:, first:last] = new / (1 + grown) if rule.renormalise else new


def _scale_several(
    call: Call, rules: Sequence[Mass | Bias], output: Tensor, total: Tensor, start: int, stop: int
) -> None:
    """Change `output` in place by rules of groups, all of whose keys `call` has."""
    assert call.columns is not None
    positions = call.columns + call.keys.prompt.start
    wide = torch.promote_types(output.dtype, torch.float32)  # the kernel adds up no narrower
    call = replace(call, pieces=tuple((key.to(wide), value.to(wide)) for key, value in call.pieces))
    for first, last in call.chunks(start, stop):
        weights = call.logits(first, last).sub_(total[:, :, first:last, None]).exp_()
        new, rest = weights, weights.new_ones(()).expand(*weights.shape[:3], 1)
        for rule in rules:
            if isinstance(rule, Bias):
                grown = new * rule.bias[..., positions].to(new).expm1()[:, :, None]
            else:
                grown = rule.change(new, positions).mul_(new)
                if rule.rows is not None:
                    grown *= active_rows(rule.rows, first, last).to(grown)[:, None, :, None]
            new = new + grown
            if isinstance(rule, Bias) or rule.renormalise:
                sums = 1 + grown.sum(-1, keepdim=True)
                new, rest = new / sums, rest / sums
        kept = output[:, first:last] * rest.transpose(1, 2)
        output[:, first:last] = kept + call.outputs(new - rest * weights)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor] | None:
    """Head outputs [B, q, H, d] and log-sum-exp [B, H, q] by a fused kernel of the device; None where it has none."""
    if query.shape[-1] != value.shape[-1]:
        return None
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, -torch.inf)
    if query.device.type == "cpu":
        output, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return output.transpose(1, 2).contiguous(), total
    shared = query.shape[1] // key.shape[1]
    key, value = (one if shared == 1 else one.repeat_interleave(shared, dim=1) for one in (key, value))
    if mask is not None:  # the kernel reads whole blocks of it
        mask = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 16))[..., : mask.shape[-1]]
        mask = mask.expand(*query.shape[:2], -1, -1)
    if query.device.type != "cuda" or not can_use_efficient_attention(
        SDPAParams(query, key, value, mask, 0.0, causal, False)
    ):
        return None
    output, total = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, 0.0, causal, scale=scale
    )[:2]
    return output.transpose(1, 2).contiguous(), total[:, :, : query.shape[2]]
