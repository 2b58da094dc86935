"""Rules about groups of keys in many rows: what the fused kernel's sums give equals explicit weights, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sightline.plugin.core.explicit as explicit
import torch
from sightline.plugin.core.edits import Bias, Edit, Keys, Mass, Reweight, Rows, WeightProbe, move
from sightline.plugin.core.explicit import Call, explicit_rows
from sightline.plugin.core.extras import Extras
from sightline.plugin.core.groups import scale_groups
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH, HEADS, KEY_HEADS, COUNT, SIZE = 2, 8, 4, 40, 16


@pytest.fixture(autouse=True)
def _values() -> Any:
    with torch.no_grad():
        yield


def _call(mask: str, count: int = COUNT, heads: int = HEADS) -> Call:
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, heads, count, SIZE, generator=rng)
    key, value = (torch.randn(BATCH, heads // 2, count, SIZE, generator=rng) for _ in range(2))
    seen = torch.ones(count, count, dtype=torch.bool).tril().expand(BATCH, 1, -1, -1).clone()
    seen[1, :, :, :5] = False  # padding on the left
    given = {"none": None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)}[mask]
    return Call(query, ((key, value),), given, SIZE**-0.5, True, Keys(slice(0, count), count))


def _table(*spans: tuple[int, int], count: int = COUNT) -> Tensor:
    table = torch.zeros(BATCH, count, len(spans))
    for number, (first, last) in enumerate(spans):
        table[:, first:last, number] = 1
    table[1, 7] = 0  # the rows' groups differ
    return table


def _biased(usual: float) -> Bias:
    bias = torch.full((BATCH, HEADS, COUNT), usual)
    bias[:, 1:, 6:9] = torch.randn(HEADS - 1, 3)
    return Bias(bias)


def _cases() -> dict[str, list[Edit]]:
    late = torch.arange(10, COUNT - 2).expand(BATCH, -1) % 3 > 0
    rows = Rows(10, COUNT - 2, late)
    var = Mass(
        lambda: _table((6, 9), (0, 2), (9, 20), (20, 22)),
        lambda m: torch.stack([-0.5 * m[..., 3], m[..., 0] - 0.3, m[..., 1]], dim=-1),
        lambda: _table((6, 9), (0, 2), (9, 20)),
        rows=rows,
    )
    return {
        "one group": [Mass(lambda: _table((6, 12)), move(0.4), renormalise=True)],
        "one group in some rows": [Mass(lambda: _table((6, 12)), lambda m: m, rows=rows)],
        "weighted group": [Mass(lambda: 0.7 * _table((6, 12)), move(0.4), renormalise=True)],
        "several groups": [var],
        "two rules": [Mass(lambda: _table((8, 30)), move(0.6), renormalise=True), replace(var, renormalise=True)],
        "a bias on few keys": [_biased(0.0)],
        "a bias on most keys": [_biased(-4.6)],
        "a bias, then a rule": [_biased(-1.0), Mass(lambda: _table((6, 12)), move(0.4), renormalise=True)],
    }


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("case", _cases())
def test_groups_equal_explicit_weights(case: str, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, edits = _call(mask), _cases()[case]
    rows = [edit.rows for edit in edits if isinstance(edit, Mass)]
    start, stop = (0, COUNT) if None in rows or len(rows) < len(edits) else (10, COUNT - 2)
    wanted = explicit_rows(call, edits)  # type: ignore[arg-type]
    monkeypatch.setattr(explicit, "CHUNK_ELEMENTS", 500)
    got = scale_groups(call, edits, start, stop)  # type: ignore[arg-type]
    assert got is not None
    seen = slice(5, None) if mask != "none" else slice(None)  # a row of padding sees nothing, and nobody reads it
    torch.testing.assert_close(got[0], wanted[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1, seen], wanted[1, seen], atol=1e-5, rtol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masses_are_as_good_as_explicit_ones_in_half_precision(dtype: torch.dtype) -> None:
    exact, rule = _call("none"), Mass(lambda: _table((6, 12)), move(0.2), renormalise=True)
    half = replace(
        exact, query=exact.query.to(dtype), pieces=tuple((k.to(dtype), v.to(dtype)) for k, v in exact.pieces)
    )
    wanted = explicit_rows(exact, [rule])
    got = scale_groups(half, [rule], 0, COUNT)
    assert got is not None
    assert got.dtype == dtype
    assert (got.float() - wanted).abs().max() <= (explicit_rows(half, [rule]).float() - wanted).abs().max() * 1.5


@pytest.mark.parametrize(
    ("edit", "extras"),
    [
        (Reweight(lambda weights, logits, keys: weights), Extras()),
        (WeightProbe(lambda *seen: None, Rows(0, 1, torch.ones(BATCH, 1).bool())), Extras()),
        (Mass(lambda: _table((6, 12)), move(0.4)), Extras(cap=30.0)),
        (Mass(lambda: _table((6, 12)), move(0.4)), Extras(sinks=torch.zeros(HEADS))),
    ],
)
def test_what_needs_all_weights_gets_them(edit: Any, extras: Extras) -> None:
    assert scale_groups(replace(_call("none"), extras=extras), [edit], 0, COUNT) is None


class _Live(TorchDispatchMode):
    """The most bytes of tensors, made inside, that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._live = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self._live = {at: one for at, one in self._live.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._live.values()))
        return out


@pytest.mark.parametrize(
    "run",
    [
        lambda call, edits: scale_groups(call, edits, 0, call.query.shape[2]),
        lambda call, edits: explicit_rows(call, edits),
    ],
    ids=["groups", "explicit"],
)
def test_memory_does_not_grow_with_the_prompt(run: Callable[[Call, list[Any]], Tensor]) -> None:
    """Where all weights at once would take 64 MiB a copy, those of a chunk take 4."""
    count = 1448
    call, rule = _call("none", count, heads=4), Mass(lambda: _table((6, 800), count=count), move(0.4), renormalise=True)
    with _Live() as live:
        run(call, [rule])
    assert 4 << 20 < live.most < 48 << 20
