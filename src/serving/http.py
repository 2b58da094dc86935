"""The server's side of a request's choice: `extra_body={"sightline": "off"}` of an OpenAI client."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .rows import CHOICE, OFF, ON

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ARGUMENTS = "vllm_xargs"  # where a request's own arguments belong in vLLM's protocol


class Choice:
    """ASGI middleware: moves a request's top-level "sightline" to where vLLM takes arguments of the request's own."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                await self.app(scope, _given(message, receive), send)
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            changed = moved(body)
        except ValueError as error:
            await _refuse(send, str(error))
            return
        if changed is not body:
            length = (b"content-length", str(len(changed)).encode())
            headers = [pair for pair in scope["headers"] if pair[0].lower() != b"content-length"]
            scope = {**scope, "headers": [*headers, length]}
        await self.app(scope, _given({"type": "http.request", "body": changed, "more_body": False}, receive), send)


def moved(body: bytes) -> bytes:
    """A request's JSON with its choice in place; the same object where there is none.

    Raises ValueError for a choice that is neither "on" nor "off".
    """
    if f'"{CHOICE}"'.encode() not in body:
        return body
    try:
        data = json.loads(body)
    except ValueError:  # vLLM has its own words for that
        return body
    if not isinstance(data, dict) or CHOICE not in data:
        return body
    choice = data.pop(CHOICE)
    if choice not in (ON, OFF):
        raise ValueError(f"'{CHOICE}' must be '{ON}' or '{OFF}', not {choice!r}")
    own = data.get(ARGUMENTS)
    data[ARGUMENTS] = {**(own if isinstance(own, dict) else {}), CHOICE: choice}
    return json.dumps(data).encode()


def _given(message: Message, receive: Receive) -> Receive:
    """`receive` that hands out this message first."""
    waiting = [message]

    async def first() -> Message:
        return waiting.pop() if waiting else await receive()

    return first


async def _refuse(send: Send, reason: str) -> None:
    error = {"error": {"message": reason, "type": "BadRequestError", "param": CHOICE, "code": 400}}
    body = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
