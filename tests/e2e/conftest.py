"""The real model and a server that serves it, started once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.server.source import resolve
from tests.support.live_server import LiveServer, live_server


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF."""
    return resolve("demo").path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """SmolLM2 on the CPU."""
    with live_server("demo", tmp_path_factory.mktemp("server") / "log", "--backend", "cpu") as running:
        yield running
