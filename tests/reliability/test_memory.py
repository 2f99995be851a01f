"""Thousands of requests leave no memory, descriptor or thread behind (F16, P13). `--soak-requests N` makes it long."""

from __future__ import annotations

import asyncio
import random
import re
from itertools import combinations
from pathlib import Path
from statistics import median

import psutil
import pytest

from tests.reliability.conftest import SIM
from tests.support.live_server import LiveServer, live_server
from tests.support.promises import Measured
from tests.support.raw_http import exchange, post

WARM_UP = 3000
AT_ONCE = 16
ROUNDS = 20


async def soak(port: int, count: int, dice: random.Random) -> None:
    """Every kind of request: streams and not, refused, left early."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            try:
                async with asyncio.timeout(dice.choice([30, 30, 30, 0.01])):
                    await exchange(port, request(dice))
            except TimeoutError:
                pass

    await asyncio.gather(*(one() for _ in range(count)))


def request(dice: random.Random) -> bytes:
    text = " ".join(f"w{dice.randrange(300, 999)}" for _ in range(dice.randrange(1, 30)))
    parameters = {"max_new_tokens": dice.choice([1, 5, 20, -1]), "details": True, "top_n_tokens": dice.choice([0, 3])}
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 5, "stream": dice.random() < 0.5}
    return dice.choice(
        [
            post("/generate", {"inputs": text, "parameters": parameters}),
            post("/generate_stream", {"inputs": text, "parameters": parameters}),
            post("/v1/chat/completions", {**chat, "logprobs": True}),
            post("/v1/completions", {"prompt": [text, text], "max_tokens": 3, "n": 2}),
            post("/v1/completions", {"prompt": text, "temperature": "hot"}),
        ]
    )


def private_bytes(process: psutil.Process) -> int:
    """RssAnon and VmSwap: what a leak grows, wherever the kernel puts it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return sum(1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("RssAnon", "VmSwap"))  # type: ignore[index]


def slope(values: list[int]) -> float:
    """Growth a step: the median of the slopes between any two values (Theil and Sen), for the allocator grows in steps
    of a megabyte now and then, which no leak does. Below two megabytes in a run a leak can hide behind those steps.
    """
    return median((after - before) / (j - i) for (i, before), (j, after) in combinations(enumerate(values), 2))


@pytest.mark.promise("F16", "P13", "P7")
@pytest.mark.timeout(24 * 3600)
def test_f16_p13_memory_descriptors_and_threads_are_flat(
    model: Path, tmp_path: Path, pytestconfig: pytest.Config, measured: Measured
) -> None:
    total: int = pytestconfig.getoption("--soak-requests")
    dice = random.Random(16)
    # A cache of 128 blocks is full of prefixes after the warm-up.
    flags = ("--backend-option", "speed=0", "--num-blocks", "128")
    with live_server(str(model), tmp_path / "log", *SIM, *flags) as server:
        processes = {"server": psutil.Process(server.process.pid), "engine": server.engine}
        asyncio.run(soak(server.port, WARM_UP, dice))
        counts = handles(server, processes)
        sizes: dict[str, list[int]] = {name: [] for name in processes}
        for _ in range(ROUNDS):
            asyncio.run(soak(server.port, total // ROUNDS, dice))
            for name, process in processes.items():
                sizes[name].append(private_bytes(process))
        assert handles(server, processes) == counts
        assert server.metric("mainspring_kv_cache_usage_perc") == 0
    for name, values in sizes.items():
        # The last half of a long run, as in its first caches may still fill.
        grown = slope(values[ROUNDS // 2 :] if total >= 50_000 else values) / (total / ROUNDS) * 10_000 / 2**20
        measured(f"{name}: {grown:+.2f} MiB in 10,000 requests (of {total})")
        # A leak of one request's objects is 20 MiB.
        assert grown < 1.0


def handles(server: LiveServer, processes: dict[str, psutil.Process]) -> dict[str, tuple[int, int]]:
    """Descriptors and threads of each process, once nothing is open."""
    server.wait_until_idle(10)
    server.wait_until(lambda: not is_connected(processes["server"]), 10)
    return {name: (process.num_fds(), process.num_threads()) for name, process in processes.items()}


def is_connected(process: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))
