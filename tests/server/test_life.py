"""The life of a server: probes in every phase, clients that leave, overload, failures in mid-stream, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from mainspring.server.http import sse
from mainspring.server.lifecycle import RequestLimits
from tests.server.conftest import RunningServer, options_for
from tests.server.sse_client import events
from tests.support.live_server import listening_server, live_server
from tests.support.tgi_rows import tgi

LONG: dict[str, Any] = {"inputs": "hello", "parameters": {"max_new_tokens": 2000}}


@pytest.fixture(scope="module")
def slow_server(model_directory: Path) -> Iterator[RunningServer]:
    """Takes 20 ms a token."""
    with RunningServer(options_for(model_directory, speed="1", overhead="0.02")) as running:
        running.wait_until_ready()
        yield running


def metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return float(line.rpartition(" ")[2])


def wait_until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


@tgi("1.1 GET /", "1.1 GET /metrics", "1.1 GET /health", "1.1 GET /ping", "1.8 health", "1.9 healthcheck")
def test_probes_while_loading_and_after(model_directory: Path) -> None:
    with RunningServer(options_for(model_directory)) as running, httpx.Client(base_url=running.url) as client:
        assert client.get("/livez").status_code == 200
        first = client.get("/readyz")
        if first.json()["phase"] != "ready":
            assert first.status_code == 503
            body = {"inputs": "x"}
            assert client.post("/generate", json=body).json()["error"].startswith("the model is not ready: ")
            assert client.get("/health").json() == {"error": "unhealthy", "error_type": "healthcheck"}
        running.wait_until_ready()
        assert client.get("/readyz").status_code == client.get("/health").status_code == 200
        assert client.get("/").status_code == client.get("/ping").status_code == 200
        assert client.get("/health").content == b""
        assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/v1/completions"])
def test_a_client_that_leaves_ends_its_request(slow_server: RunningServer, route: str) -> None:
    body = json.dumps(LONG if route != "/v1/completions" else {"prompt": "x", "max_tokens": 2000}).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    port = int(slow_server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: metric(slow_server.url, "mainspring_num_requests_running") == 1)
    wait_until(lambda: metric(slow_server.url, "mainspring_num_requests_running") == 0, seconds=3)
    assert metric(slow_server.url, "mainspring_kv_cache_usage_perc") == 0


@tgi("1.9 overloaded", "1.4 refusals", "3 --max-concurrent-requests")
@pytest.mark.promise("F23")
def test_overload_is_429_with_retry_after(model_directory: Path) -> None:
    options = replace(
        options_for(model_directory, speed="1", overhead="0.02"), limits=RequestLimits(max_concurrent_requests=1)
    )
    with RunningServer(options) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        running.wait_until_ready()
        with client.stream("POST", "/generate_stream", json=LONG) as held:
            assert held.status_code == 200
            for route in ("/generate", "/generate_stream"):
                refused = client.post(route, json=LONG)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert refused.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
            chat = client.post("/v1/completions", json={"prompt": "x", "stream": True})
            assert (chat.status_code, chat.json()["error"]["code"]) == (429, "overloaded")
        wait_until(
            lambda: client.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 1}}).is_success
        )
        assert metric(running.url, 'tgi_request_failure{err="overloaded"}') >= 3


@tgi("1.4 errors in the stream")
def test_engine_death_ends_streams_with_an_event_and_the_server_with_70(model_directory: Path) -> None:
    with process(model_directory, "--backend-option", "overhead=0.02") as (url, server):
        with httpx.stream("POST", f"{url}/generate_stream", json=LONG, timeout=30) as response:
            lines = response.iter_lines()
            assert "token" in json.loads(next(lines).removeprefix("data: "))
            os.kill(engine_of(server.pid), signal.SIGKILL)
            rest = [line for line in lines if line]
        last = json.loads(rest[-1].removeprefix("data: "))
        assert last == {"error": last["error"], "error_type": "healthcheck"}
        assert server.wait(15) == 70


@tgi("3 --graceful-termination-timeout")
def test_sigterm_drains_and_exits_0(model_directory: Path) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 100}}
    with (
        process(model_directory, "--backend-option", "overhead=0.01") as (url, server),
        httpx.Client(base_url=url, timeout=30) as client,
        client.stream("POST", "/generate_stream", json=body) as response,
    ):
        # However slow the client is, the drain goes on until this second stream is left.
        with client.stream("POST", "/generate_stream", json=LONG) as held:
            lines, held_lines = response.iter_lines(), held.iter_lines()
            next(lines)
            next(held_lines)
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").json() == {"phase": "draining"})
            refused = client.post("/generate", json=body)
            assert (refused.status_code, refused.json()["error"]) == (503, "the server is shutting down")
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["generated_text"] is not None
        assert server.wait(15) == 0


@tgi("3 --graceful-termination-timeout")
def test_drain_is_bounded(model_directory: Path) -> None:
    flags = ("--backend-option", "overhead=0.02", "--graceful-termination-timeout", "0.3")
    with process(model_directory, *flags) as (url, server):
        with httpx.stream("POST", f"{url}/generate_stream", json=LONG, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"] == "the server is shutting down"
        assert server.wait(15) == 72


@pytest.mark.promise("P4")
def test_sigint_while_loading_exits_0(model_directory: Path, tmp_path: Path) -> None:
    flags = ("--backend", "sim", "--backend-option", "loading=60", "--pre-stop-seconds", "60")
    with listening_server(str(model_directory), tmp_path / "log", *flags) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(15) == 0


@pytest.mark.promise("P4")
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--backend", "sim", "--backend-option", "sped=1"], "did you mean 'speed'"),
        (["--backend", "simm"], "did you mean 'sim'"),
    ],
)
def test_what_cannot_start_says_why_and_exits_71(model_directory: Path, flags: list[str], reason: str) -> None:
    command = [sys.executable, "-m", "mainspring.server.cli", "serve", str(model_directory), "--port", "0", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 71
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.promise("F18")
def test_port_that_is_taken(model_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "mainspring.server.cli", "serve", str(model_directory), "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "choose another --port" in ended.stderr) == (71, True)


def test_model_without_a_tokenizer(tmp_path: Path, model_directory: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_directory / "config.json").read_bytes())
    command = [sys.executable, "-m", "mainspring.server.cli", "serve", str(tmp_path), "--backend", "sim", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "holds no tokenizer.json" in ended.stderr) == (71, True)


@tgi("1.9 generation")
def test_a_failed_step_is_an_error_of_its_request(model_directory: Path) -> None:
    with RunningServer(options_for(model_directory, budget="64")) as running:
        running.wait_until_ready()
        with httpx.Client(base_url=running.url, timeout=30) as client:
            big = {"inputs": "x" * 500, "parameters": {"max_new_tokens": 2}}
            refused = client.post("/generate_stream", json=big)
            assert (refused.status_code, refused.json()["error_type"]) == (424, "generation")
            small = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
            assert len(events(client.post("/generate_stream", json=small))) == 2


def test_the_event_loop_answers_while_large_prompts_arrive(slow_server: RunningServer) -> None:
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=slow_server.url, timeout=30) as client:
            while not stop.is_set():
                client.post("/generate", json={"inputs": "word " * 100_000})

    loader = threading.Thread(target=load)
    loader.start()
    try:
        with httpx.Client(base_url=slow_server.url) as client:
            waits = [seconds_of(client) for _ in range(100)]
    finally:
        stop.set()
        loader.join()
    assert sorted(waits)[90] < 0.2


def seconds_of(client: httpx.Client) -> float:
    start = time.perf_counter()
    assert client.get("/livez").status_code == 200
    return time.perf_counter() - start


@contextmanager
def process(directory: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`mainspring serve` on a free port, ready."""
    options = ("--backend", "sim", "--backend-option", "vocabulary=300-1000")
    with TemporaryDirectory() as logs, live_server(str(directory), Path(logs, "log"), *options, *flags) as server:
        yield server.url, server.process


def engine_of(server: int) -> int:
    """The server's only child."""
    return int(Path(f"/proc/{server}/task/{server}/children").read_text().split()[0])


@tgi("1.4 keep-alive")
def test_a_slow_stream_is_kept_alive(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)
    body = {"inputs": "x", "parameters": {"max_new_tokens": 3}}
    with RunningServer(options_for(model_directory, speed="1", overhead="0.2")) as running:
        running.wait_until_ready()
        answer = httpx.post(f"{running.url}/generate_stream", json=body, timeout=30)
    assert answer.text.count(": keep-alive\n\n") >= 3
    assert len(events(answer)) == 3
