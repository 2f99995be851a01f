"""Clients that never read: what they cost is bounded, and nobody else notices (F17, P14)."""

from __future__ import annotations

import asyncio
import multiprocessing
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import cast

import psutil
import pytest

from tests.reliability.conftest import SIM
from tests.support.live_server import LiveServer, live_server
from tests.support.model_directory import write_tiny_model
from tests.support.promises import Measured
from tests.support.raw_http import post
from tests.support.tiny_tokenizers import write_word_tokenizer

READERS = 1000
BYTES_EACH = 256 << 10
UNNOTICED = 1.05
"""Times the gap between another client's tokens. A thousand streams in a batch have a price of their own, so the
measure is as many that are read."""


@pytest.mark.promise("F17", "P14")
def test_f17_p14_memory_of_clients_that_never_read(tmp_path: Path, measured: Measured) -> None:
    # 20 alternatives a token soon fill what may be filled.
    with server_for_a_thousand(tmp_path, step="0.05") as server:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        sockets = [client_of_a_long_stream(server.port, alternatives=20) for _ in range(READERS)]
        try:
            server.wait_until(lambda: server.metric("tgi_request_count") >= READERS, 60)
            # Each is given up once it is far enough behind, though its connection is still open.
            server.wait_until_idle(90)
            grown = process.memory_info().rss - before
        finally:
            for each in sockets:
                each.close()
        server.wait_until_idle(10)
    measured(f"{READERS} that never read: {grown / READERS / 1024:.0f} KiB each")
    assert grown < READERS * BYTES_EACH


@pytest.mark.promise("F17", "P14")
def test_f17_p14_another_stream_beside_clients_that_never_read(tmp_path: Path, measured: Measured) -> None:
    with server_for_a_thousand(tmp_path, step="0.1") as server:
        alone = asyncio.run(gaps(server))
        with reading_clients(server):
            beside_readers = asyncio.run(gaps(server))
        server.wait_until_idle(10)
        sockets = [client_of_a_long_stream(server.port) for _ in range(READERS)]
        try:
            server.wait_until(lambda: server.metric("tgi_batch_current_size") == READERS, 60)
            beside = asyncio.run(gaps(server))
            assert server.metric("tgi_batch_current_size") == READERS
        finally:
            for each in sockets:
                each.close()
        server.wait_until_idle(10)
        after = asyncio.run(gaps(server))
    measured(
        f"ITL p99 of another beside {READERS} streams: {1000 * beside:.0f} ms when none is read, "
        f"{1000 * beside_readers:.0f} ms when all are; {1000 * alone:.0f} ms alone, {1000 * after:.0f} ms behind them"
    )
    assert beside <= beside_readers * UNNOTICED
    assert after <= alone * UNNOTICED


@contextmanager
def reading_clients(server: LiveServer) -> Iterator[None]:
    """As many long streams, read as fast as they come by a process of their own."""
    process = multiprocessing.get_context("spawn").Process(target=read_all, args=(server.port,), daemon=True)
    process.start()
    try:
        server.wait_until(lambda: server.metric("tgi_batch_current_size") == READERS, 60)
        yield
    finally:
        process.kill()
        process.join()


def read_all(port: int) -> None:
    """Reads `READERS` streams and keeps nothing of them, until it is killed."""
    selector = selectors.DefaultSelector()
    for _ in range(READERS):
        selector.register(client_of_a_long_stream(port), selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if not cast(socket.socket, key.fileobj).recv(1 << 16):
                selector.unregister(key.fileobj)


@contextmanager
def server_for_a_thousand(tmp_path: Path, step: str) -> Iterator[LiveServer]:
    """Serves a simulated device whose steps take `step` seconds, whatever they hold."""
    directory = write_tiny_model(tmp_path / "tiny", max_position=200_000)
    write_word_tokenizer(directory, 1000)
    bounds = ("--max-top-n-tokens", "20", "--max-batch-size", "1100", "--num-blocks", "400000")
    with live_server(str(directory), tmp_path / "log", *SIM, *bounds, "--backend-option", f"overhead={step}") as server:
        yield server


def client_of_a_long_stream(port: int, alternatives: int = 0) -> socket.socket:
    """Asks for a stream that nobody reads yet, with as little room in the kernel as it allows."""
    parameters = {"max_new_tokens": 100_000, "top_n_tokens": alternatives}
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(post("/generate_stream", {"inputs": "hello", "parameters": parameters}))
    return client


async def gaps(server: LiveServer) -> float:
    """p99 of the time between the tokens of one stream: the least of three, for other work only adds."""
    return min([await late_gap(server, 30) for _ in range(3)])


async def late_gap(server: LiveServer, tokens: int) -> float:
    """The second longest of one stream."""
    body = {"inputs": "other", "parameters": {"max_new_tokens": tokens}}
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post("/generate_stream", body))
    seen = [time.monotonic() async for line in reader if line.startswith(b"data:")]
    writer.close()
    return sorted(after - before for before, after in pairwise(seen))[-2]
