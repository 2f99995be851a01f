"""Clients that never read: what they cost is bounded, and nobody else notices (F17, P14)."""

from __future__ import annotations

import asyncio
import socket
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.reliability.conftest import SIM
from tests.support.live_server import LiveServer, live_server
from tests.support.model_directory import write_tiny_model
from tests.support.promises import Measured
from tests.support.raw_http import post
from tests.support.tiny_tokenizers import write_word_tokenizer

READERS = 1000
"""With 20 alternatives a token, which fill what may be filled soon."""
BYTES_EACH = 256 << 10
REQUEST = post("/generate_stream", {"inputs": "hello", "parameters": {"max_new_tokens": 100_000, "top_n_tokens": 20}})


@pytest.mark.promise("F17", "P14")
def test_f17_p14_clients_that_never_read(tmp_path: Path, measured: Measured) -> None:
    directory = write_tiny_model(tmp_path / "tiny", max_position=200_000)
    write_word_tokenizer(directory, 1000)
    flags = (
        "--max-top-n-tokens",
        "20",
        "--max-batch-size",
        "1100",
        "--num-blocks",
        "400000",
        "--backend-option",
        "overhead=0.01",
    )
    with live_server(str(directory), tmp_path / "log", *SIM, *flags) as server:
        process = psutil.Process(server.process.pid)
        quiet = asyncio.run(gaps(server, 100))
        before = process.memory_info().rss
        sockets = [deaf_client(server.port) for _ in range(READERS)]
        try:
            beside = asyncio.run(gaps(server, 100))
            server.wait_until(lambda: server.metric("tgi_request_count") > READERS, 60)
            # Each is given up once it is far enough behind, though its connection is still open.
            server.wait_until_idle(90)
            grown = process.memory_info().rss - before
            after = asyncio.run(gaps(server, 100))
        finally:
            for each in sockets:
                each.close()
        server.wait_until_idle(10)
    measured(
        f"{READERS} that never read: {grown / READERS / 1024:.0f} KiB each; "
        f"ITL p99 of another: {1000 * quiet:.0f} ms alone, {1000 * beside:.0f} ms while they generate too, "
        f"{1000 * after:.0f} ms beside their open connections"
    )
    assert grown < READERS * BYTES_EACH


def deaf_client(port: int) -> socket.socket:
    """Asks for a long stream and takes nothing of it, with as little room in the kernel as it allows."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(REQUEST)
    return client


async def gaps(server: LiveServer, tokens: int) -> float:
    """p99 of the time between the tokens of one stream."""
    body = {"inputs": "other", "parameters": {"max_new_tokens": tokens}}
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post("/generate_stream", body))
    seen = [time.monotonic() async for line in reader if line.startswith(b"data:")]
    writer.close()
    return sorted(after - before for before, after in pairwise(seen))[-2]
