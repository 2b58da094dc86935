"""What a branch remembers behind its prompt: it grows without being copied at each token, and can be taken back."""

from __future__ import annotations

import torch
from sightline.plugin.branches.cache import BranchCache, Pair


def _token(number: int, rows: int = 2) -> Pair:
    key = torch.full((rows, 3, 1, 4), float(number))
    return key, -key


def test_a_long_answer_is_not_copied_at_each_token() -> None:
    cache, places = BranchCache(torch.ones(2, 5).bool(), 5), set()
    for number in range(300):
        keys, values = cache.grow(0, _token(number))
        places.add(keys.data_ptr())
        assert keys.shape[2] == number + 1
    wanted = torch.arange(300.0).expand(2, 3, -1)
    assert torch.equal(keys[..., 0], wanted)
    assert torch.equal(values[..., 0], -wanted)
    assert len(places) <= 10


def test_what_is_taken_back_is_written_anew() -> None:
    cache = BranchCache(torch.ones(2, 5).bool(), 5)
    for number in range(5):
        cache.grow(0, _token(number))
    before = cache.grown.copy()
    cache.grow(0, _token(50))
    cache.grown = before
    keys, _ = cache.grow(0, _token(5))
    assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_selected_rows_grow_by_themselves() -> None:
    cache = BranchCache(torch.ones(2, 5).bool(), 5)
    for number in range(3):
        keys, _ = cache.grow(0, _token(number))
    keys[1] += 100
    cache.select(torch.tensor([1, 1]))
    keys, _ = cache.grow(0, _token(3))
    assert keys[0, 0, :, 0].tolist() == [100, 101, 102, 3]
    assert torch.equal(keys[0], keys[1])


def test_a_graph_keeps_what_it_saw() -> None:
    cache = BranchCache(torch.ones(2, 5).bool(), 5)
    first = torch.ones(2, 3, 1, 4, requires_grad=True)
    cache.grow(0, (first, first))
    keys, _ = cache.grow(0, _token(1))
    cache.grow(0, _token(2))
    keys.sum().backward()
    assert first.grad is not None
    assert torch.equal(first.grad, torch.ones_like(first))
