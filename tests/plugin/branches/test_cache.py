"""What a branch remembers behind its prompt: it grows without being copied at each token, and can be taken back."""

from __future__ import annotations

from typing import Any

import torch
from sightline.plugin.branches.cache import BranchCache, Pair, TappedCache
from sightline.plugin.core import compat

from tests.helpers import tiny
from tests.helpers.engine import prompts, shared


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


def test_a_tapped_cache_hands_on_the_rest() -> None:
    """Keys of two rows reach it; the tap takes the second, and the model goes on with the first."""
    case = shared("llama")
    ids = prompts(case, "one")["input_ids"]
    taken: dict[int, torch.Tensor] = {}

    def tap(layer: int, key: torch.Tensor, value: torch.Tensor) -> Any:
        taken[layer] = key[:, :, 1:]
        return key, value

    plain = case.model(input_ids=ids).logits
    base = compat.new_cache(case.model.config)
    tapped = TappedCache(base, tap)
    assert torch.equal(case.model(input_ids=ids, **{compat.CACHE: tapped}, use_cache=True).logits, plain)
    assert sorted(taken) == list(range(tiny.LAYERS))
    assert base.get_seq_length() == ids.shape[1]
    assert tapped.get_seq_length() == ids.shape[1]
