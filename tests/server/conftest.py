"""A real HTTP server on the simulated backend, one a test module: sockets, both processes, no weights."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mainspring.core.config import EngineConfig
from mainspring.server.app import ServerOptions, create_app, create_lifecycle
from mainspring.server.http.listening import HTTPServer, listen
from mainspring.server.lifecycle import Lifecycle
from mainspring.server.source import ModelSource
from tests.support.model_directory import TINY, write_tiny_model
from tests.support.tiny_tokenizers import write_word_tokenizer

MODEL_ID = "tests/tiny"
SIM = {"speed": "0", "vocabulary": "300-1000"}
"""At once; tokens that are words of their own, never the end of the sequence."""


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    write_word_tokenizer(directory, TINY.vocab_size)
    return directory


class RunningServer:
    """A server in a thread of its own, so that blocking clients can be tested against it."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._started = threading.Event()
        self._listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.lifecycle: Lifecycle | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> RunningServer:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _serve(self) -> None:
        self.lifecycle = create_lifecycle(self._options)
        options = self._options
        app = create_app(self.lifecycle, options.limits.payload_limit, access=options.access)
        self._server = HTTPServer(app, options.connections, options.certificate)
        self._started.set()
        await self._server.serve(sockets=[self._listener])

    def wait_until_ready(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while client.get("/readyz").json()["phase"] != "ready":
                threading.Event().wait(0.02)


def options_for(directory: Path, **changes: str) -> ServerOptions:
    return ServerOptions(
        source=ModelSource(directory, MODEL_ID),
        engine=EngineConfig(model=str(directory), backend="sim", backend_options=SIM | changes),
    )


@pytest.fixture(scope="module")
def server(model_directory: Path) -> Iterator[RunningServer]:
    with RunningServer(options_for(model_directory)) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http
