"""Hostile bodies and bytes: 4xx each, nothing about the inside, and nobody else notices (P10, P19, P23)."""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
from pathlib import Path

import psutil
import pytest

from tests.reliability.conftest import SIM
from tests.reliability.hostile import GOOD, REQUESTS, corpus, mutations
from tests.support.live_server import LiveServer, listening_server
from tests.support.promises import Measured
from tests.support.raw_http import Reply, exchange, post

MUTATIONS = 1000
AT_ONCE = 16
INSIDE = re.compile(rb"Traceback|site-packages|\.py\b|0x[0-9a-f]{6,}|<[a-z_]+\.[\w.]+ object|/root/|/home/|/usr/", re.I)
"""What would tell a stranger about the machine or the code."""


async def replies_to(port: int, requests: list[bytes]) -> list[Reply | None]:
    """The answers in order; None where the server hung up without one."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(request: bytes) -> Reply | None:
        async with gate:
            try:
                return await exchange(port, request)
            except ConnectionError:
                return None

    return list(await asyncio.gather(*map(one, requests)))


def well_formed(route: str, reply: Reply) -> bool:
    """Whether a refusal has the body that its protocol documents."""
    body = json.loads(reply.body)
    if route.startswith("/v1/"):
        return set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return set(body) == {"error", "error_type"}


@pytest.mark.promise("P10", "P23")
def test_p10_p23_no_body_ends_more_than_itself(fast_server: LiveServer, measured: Measured) -> None:
    engine = fast_server.engine
    before = [reply.body for reply in good_answers(fast_server)]
    asked = [*corpus(), *mutations(MUTATIONS, random.Random(10))]
    replies = asyncio.run(replies_to(fast_server.port, [post(route, body) for route, body in asked]))
    bad = []
    for (route, body), reply in zip(asked, replies, strict=True):
        if reply is None or reply.status >= 500 or (reply.status >= 400 and not well_formed(route, reply)):
            bad.append((route, body[:120], reply and reply.status, reply and reply.body[:200]))
        elif INSIDE.search(reply.body):
            bad.append((route, body[:120], reply.status, reply.body[:200]))
    assert not bad, f"{len(bad)} of {len(asked)}: {bad[:5]}"
    assert fast_server.engine == engine
    assert [reply.body for reply in good_answers(fast_server)] == before
    fast_server.wait_until_idle(10)
    refused = sum(reply.status >= 400 for reply in replies if reply)
    measured(f"{len(asked)} bodies: {refused} refused by 4xx, 0 of 5xx, 0 engine restarts")


def good_answers(server: LiveServer) -> list[Reply]:
    """Of the routes whose answers hold nothing that changes."""
    requests = [post(route, GOOD[route]) for route in ("/generate", "/generate_stream", "/")]
    seeded = {**GOOD["/generate"], "parameters": {"max_new_tokens": 20, "do_sample": True, "seed": 1}}
    return [reply for reply in asyncio.run(replies_to(server.port, [*requests, post("/generate", seeded)])) if reply]


@pytest.mark.promise("P10", "P19")
def test_p10_p19_no_bytes_end_more_than_their_connection(fast_server: LiveServer, measured: Measured) -> None:
    async def one(request: bytes) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", fast_server.port)
        try:
            writer.write(request)
            writer.write_eof()
            async with asyncio.timeout(20):
                answer = await reader.read(-1)
        except ConnectionError:
            return 0
        finally:
            writer.transport.abort()
        return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0

    async def all_of_them() -> list[int]:
        return list(await asyncio.gather(*map(one, REQUESTS)))

    process = psutil.Process(fast_server.process.pid)
    before = process.memory_info().rss
    statuses = asyncio.run(all_of_them())
    assert all(status < 500 for status in statuses), statuses
    assert statuses[-1] in (0, 400, 431), "headers of a megabyte"
    assert process.memory_info().rss - before < 32 << 20
    assert good_answers(fast_server)
    measured(f"{len(REQUESTS)} requests that are no HTTP: statuses {sorted(set(statuses))}, 0 being a hang-up")


@pytest.mark.promise("P23")
def test_p23_what_a_client_says_is_in_no_log_and_what_the_server_is_in_no_answer(
    model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, measured: Measured
) -> None:
    canaries = [f"canary{secrets.token_hex(8)}" for _ in range(4)]
    secret, key, name, prompt = canaries
    # The model's own name is public, and whoever names it by its path says so; the server's other paths are not.
    sockets = tmp_path_factory.mktemp(secret)
    carried = {"authorization": f"Bearer {key}", "x-api-key": key, "cookie": key}
    requests = []
    for route in GOOD:
        bodies: tuple[object, ...] = (
            {**GOOD[route], "inputs": prompt, "prompt": prompt, "messages": [{"role": "user", "content": prompt}]},
            {"inputs": prompt, "parameters": {"temperature": prompt}, "prompt": [prompt, 1], "messages": prompt},
            {prompt: prompt},
            prompt,
        )
        requests += [post(route, body, carried) for body in bodies]
        requests.append(post(route, f'{{"inputs": "{prompt}'.encode(), {"x-request-id": "fine"}))
        requests.append(post(f"/{name}", {}, carried))
        requests.append(post(route, {"model": name, "prompt": prompt, "messages": [], "inputs": ""}))
    flags = ("--backend-option", "fault=oom@40,crash@60", "--backend-option", "speed=0")
    with listening_server(str(model), tmp_path / "log", *SIM, *flags, environment={"TMPDIR": str(sockets)}) as server:
        server.wait_until_ready(30)
        port = server.port
        replies = [reply for reply in asyncio.run(replies_to(port, requests)) if reply]
        long = post("/generate", {"inputs": prompt, "parameters": {"max_new_tokens": 100}})
        for _ in range(2):  # the first fault ends these requests, the second the engine
            replies += [reply for reply in asyncio.run(replies_to(port, [long, long, long])) if reply]
        server.process.wait(20)
    assert any(reply.status >= 500 for reply in replies), "the ordered faults were met"
    log = (tmp_path / "log").read_text()
    assert not [canary for canary in (key, prompt, name) if canary in log]
    told = [reply for reply in replies if reply.status >= 400 and INSIDE.search(reply.body)]
    assert not told
    whole = b"".join(reply.body + repr(reply.headers).encode() for reply in replies)
    assert key.encode() not in whole
    assert secret.encode() not in whole
    measured(f"{len(replies)} answers, {len(log.splitlines())} lines of log: 0 of 4 canaries told")
