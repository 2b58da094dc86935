"""What vLLM's packed rows are, what its shared blocks depend on, and a request's choice."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sightline.serving.http import Choice, moved
from sightline.serving.plan import Copy, ServedPlan
from sightline.serving.rows import PLAIN, SEEING, TEXT, PassRows, cache_keys, off, read_beside, state
from sightline.serving.slices import of_rank


def made(rows: Any = "last", *, looks: bool = False) -> ServedPlan:
    copied = Copy(decoder="decore", settings={}, change="disperse", heads=((1, 0, 1.0),), rows=rows)
    gains = ((0, 0, 2.0),)
    return ServedPlan(model="m", layers=2, heads=4, gains=gains, seen=() if looks else gains, copied=copied, config={})


def parameters(choice: str | None = None) -> Any:
    return SimpleNamespace(extra_args=None if choice is None else {"sightline": choice})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [("last", [0, 0, 0, 1, 1, 0, 0, 0]), ("prompt", [1, 1, 1, 1, 0, 0, 0, 0]), ("all", [1, 1, 1, 1, 1, 0, 0, 0])],
)
def test_rows_are_told_by_position(rows: str, expected: list[int]) -> None:
    """A chunk of a prompt (positions 2-5 of 6, then its first answer token in another request), and a plain request."""
    told = PassRows(made(rows), 16)
    told.tell(np.array([TEXT, TEXT, PLAIN]), np.array([2, 6, 0]), np.array([4, 1, 3]), np.array([6, 6, 2]))
    assert told.kind[:8].tolist() == [TEXT] * 5 + [PLAIN] * 3
    assert told.changed[:8].int().tolist() == expected


def test_rows_of_pictures_are_told_and_skipped() -> None:
    """A chunk of a prompt with pictures at 2-4 and 7; its first answer token; a request whose picture goes on in it."""
    copied = Copy(decoder="m3id", settings={}, change=None, heads=(), rows="all", pictures="none")
    told = PassRows(ServedPlan(model="m", layers=2, heads=4, copied=copied, config={}), 16)
    places = [np.array([2, 3, 4, 7]), np.array([2, 3, 4, 7]), np.array([0, 1]), np.array([0, 1])]
    kinds = np.array([SEEING, SEEING, SEEING, PLAIN])
    told.tell(kinds, np.array([3, 9, 1, 600]), np.array([4, 1, 2, 1]), np.array([9, 9, 3, 8]), places)
    assert told.image[:8].int().tolist() == [1, 1, 0, 0, 0, 1, 0, 0]
    assert told.skipped[:8].tolist() == [1, 2, 3, 3, 4, 1, 2, 2]
    contrasted, written = read_beside(told.beside[:8].bfloat16().float())
    assert contrasted.flatten().int().tolist() == [1, 1, 1, 1, 1, 1, 1, 0]
    assert written.flatten().tolist() == [0, 0, 0, 0, 1, 0, 0, 593]
    assert not told.first.any()
    told.tell(kinds[:1], np.array([0]), np.array([2]), np.array([9]), places[:1])
    assert told.first[:2].tolist() == [True, False]


def test_kinds_of_requests() -> None:
    assert state(made(), parameters("off"), ["picture"]) == PLAIN
    assert state(made(looks=True), parameters("on"), ["picture"]) == SEEING
    assert state(made(), parameters(), ["picture"]) == TEXT  # the same factors either way
    assert state(made(looks=True), parameters(), []) == TEXT
    assert not off(SimpleNamespace())


def request(length: int, choice: str | None = None, pictures: Any = ()) -> Any:
    return SimpleNamespace(num_prompt_tokens=length, sampling_params=parameters(choice), mm_features=list(pictures))


def test_blocks_are_shared_only_where_they_are_the_same() -> None:
    """Of blocks of 4 and a prompt of 10, whose last token, at position 9, is the first that differs in the copy."""
    plan = made("last")
    keys = [cache_keys(plan, request(10), start, start + 4) for start in (0, 4, 8, 12)]
    assert keys[:2] == [(), ()]
    assert keys[2] == keys[3] != ()
    longer = [cache_keys(plan, request(14), start, start + 4) for start in (0, 4, 8, 12)]
    assert longer[2] == ()  # the same tokens as a prompt are not what they were as an answer
    assert longer[3] != keys[3]
    assert cache_keys(plan, request(8), 4, 8) != ()  # it holds the last token of its prompt
    assert cache_keys(made("all"), request(10), 8, 12) == ()
    assert cache_keys(plan, request(10, "off"), 0, 4) != ()
    assert cache_keys(plan, request(10, "off"), 8, 12) == ()  # a plain request's rows are alike everywhere
    assert cache_keys(made(looks=True), request(10, pictures=["one"]), 0, 4) != ()
    assert cache_keys(plan, request(10, pictures=["one"]), 0, 4) == ()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_processes_share_the_heads(ranks: int) -> None:
    values = torch.arange(24).view(3, 8)
    parts = [of_rank(values, rank, ranks) for rank in range(ranks)]
    assert all(part.shape == (3, 8 // ranks) for part in parts)
    assert torch.equal(torch.cat(parts, -1), values)


def test_a_choice_moves_to_where_vllm_takes_it() -> None:
    body = json.dumps({"prompt": "x", "sightline": "off", "vllm_xargs": {"mine": 1}}).encode()
    assert json.loads(moved(body)) == {"prompt": "x", "vllm_xargs": {"mine": 1, "sightline": "off"}}
    for same in (b'{"prompt": "x"}', b'{"prompt": "say \\"sightline\\""}', b'not json "sightline"', b'["sightline"]'):
        assert moved(same) is same
    with pytest.raises(ValueError, match="must be 'on' or 'off', not 'maybe'"):
        moved(b'{"sightline": "maybe"}')


def call(body: bytes) -> tuple[list[Any], list[Any]]:
    """What the server behind the middleware got, and what was sent back."""
    got: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend([dict(scope["headers"]), await receive()])

    async def run() -> None:
        pieces = [
            {"type": "http.request", "body": part, "more_body": more}
            for part, more in ((body[:7], True), (body[7:], False))
        ]

        async def receive() -> Any:
            return pieces.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", str(len(body)).encode())]
        await Choice(app)({"type": "http", "method": "POST", "headers": headers}, receive, send)

    asyncio.run(run())
    return got, sent


def test_the_server_gets_the_changed_request() -> None:
    got, sent = call(b'{"prompt": "x", "sightline": "off"}')
    headers, message = got
    assert json.loads(message["body"]) == {"prompt": "x", "vllm_xargs": {"sightline": "off"}}
    assert headers[b"content-length"] == str(len(message["body"])).encode()
    assert sent == []


def test_the_server_refuses_another_choice() -> None:
    got, sent = call(b'{"prompt": "x", "sightline": 3}')
    assert got == []
    assert sent[0]["status"] == 400
    assert "must be 'on' or 'off'" in json.loads(sent[1]["body"])["error"]["message"]
