"""`sightline serve` as a user runs it: the OpenAI client, a choice by request, a server that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving.served.models import answers, apart

QUESTION = [{"role": "user", "content": "Name three colours."}]
CONFIG = "methods: [{head_gain: {head_list: [[3, 1], [10, 4], [20, 2], [29, 8]], gain: -1.0}}]\n"
COUNT, PATIENCE = 16, 1800
README = Path(__file__).parents[3] / "README.md"


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(model: Path, config: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4"]
    options += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "smollm2"]
    command = [sys.executable, "-m", "sightline", "serve", str(model), "--config", str(config), *options]
    server = subprocess.Popen(command, start_new_session=True, env={**os.environ})
    try:
        for _ in range(PATIENCE):
            assert server.poll() is None, "the server ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        else:
            raise TimeoutError("the server did not come up")
        yield server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def ask(port: int, **more: Any) -> str:
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=900, max_retries=0)
    reply = client.chat.completions.create(model="smollm2", messages=QUESTION, temperature=0, max_tokens=COUNT, **more)
    return str(reply.choices[0].message.content)


def test_a_server_by_the_openai_client(smollm2: Path, tmp_path: Path, port: int) -> None:
    from openai import BadRequestError, OpenAI
    from transformers import AutoTokenizer

    config = tmp_path / "gains.yaml"
    config.write_text(CONFIG)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    expected = {}
    for choice, attached in (("on", str(config)), ("off", None)):
        (said,) = apart(answers, smollm2, [ids], attached, COUNT)
        expected[choice] = tokenizer.decode(said, skip_special_tokens=True)
    assert expected["on"] != expected["off"]
    kept = {"min_tokens": COUNT}

    with serving(smollm2, config, port) as server:
        assert ask(port, extra_body=kept) == expected["on"]
        assert ask(port, extra_body={**kept, "sightline": "off"}) == expected["off"]
        assert ask(port, extra_body={**kept, "vllm_xargs": {"sightline": "off"}}) == expected["off"]
        with pytest.raises(BadRequestError, match="must be 'on' or 'off'"):
            ask(port, extra_body={"sightline": "maybe"})
        with pytest.raises(BadRequestError, match="must be 'on' or 'off'"):
            ask(port, extra_body={"vllm_xargs": {"sightline": "maybe"}})
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=900, max_retries=0)
        pieces = client.chat.completions.create(
            model="smollm2", messages=QUESTION, temperature=0, max_tokens=COUNT, stream=True, extra_body=kept
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected["on"]

        said: dict[str, Any] = {}
        block = README.read_text().split("\n## Serve\n")[1].split("```python\n")[1].split("```")[0]
        exec(block.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace('"MODEL"', '"smollm2"'), said)
        for choice, name in (("on", "mitigated"), ("off", "plain")):
            again = client.chat.completions.create(**said["ask"], extra_body={"sightline": choice})
            assert said[name].choices[0].message.content == again.choices[0].message.content
        assert said["mitigated"].choices[0].message.content != said["plain"].choices[0].message.content

        broken: list[BaseException] = []

        def long() -> None:
            try:
                client.chat.completions.create(
                    model="smollm2", messages=QUESTION, max_tokens=200, extra_body={"min_tokens": 200}
                )
            except Exception as error:  # the connection breaks, in one of many ways
                broken.append(error)

        waiting = threading.Thread(target=long)
        waiting.start()
        time.sleep(2)
        os.killpg(server.pid, signal.SIGKILL)
        waiting.join(60)
        server.wait(60)
        assert broken

    with serving(smollm2, config, port):
        assert ask(port, extra_body=kept) == expected["on"]
