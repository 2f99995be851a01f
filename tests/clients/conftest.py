"""The servers that `python -m tests.clients` started, as its environment names them.

Without them there is nothing to collect here: the clients live in environments of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

BUSY_KEY = "open-sesame"
"""Without it `busy_server` answers nobody."""

QUOTE_ID = 0
"""Between two of these tokens (`<unk>`) a prompt says what the simulated model answers."""


def saying(text: str) -> str:
    """A prompt that is answered with this text."""
    return f"Say <unk>{text}<unk>"


collect_ignore_glob = [] if "CLIENTS_SERVER" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def server() -> str:
    """URL of a server on the sim backend: at once, and the same answer to the same greedy request."""
    return os.environ["CLIENTS_SERVER"]


@pytest.fixture
def busy_server() -> Iterator[str]:
    """URL of a server that takes one request at a time, and has it. It wants `BUSY_KEY`."""
    url = os.environ["CLIENTS_BUSY_SERVER"]
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 2000}}
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {BUSY_KEY}"}) as client:
        while True:  # until the server has seen that the last test's stream is closed
            with client.stream("POST", "/generate_stream", json=body) as held:
                if held.is_success:
                    lines = held.iter_lines()
                    next(lines)
                    yield url
                    return


@pytest.fixture(scope="session")
def text_server() -> str:
    """URL of a server with SmolLM2 on the CPU."""
    return os.environ["CLIENTS_TEXT_SERVER"]


@pytest.fixture(scope="session")
def tokenizer_directory() -> Path:
    """The tokenizer of `text_server`, as transformers reads it."""
    return Path(os.environ["CLIENTS_TOKENIZER"])


@pytest.fixture(scope="session")
def model_id(server: str) -> str:
    """The name by which `server` knows its model."""
    return served_model(server)


def served_model(url: str) -> str:
    """The name by which a server knows its model."""
    name: str = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    return name
