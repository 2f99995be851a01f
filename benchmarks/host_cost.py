"""What a streamed token costs the host: the whole server over HTTP, with a device that takes no time.

    python benchmarks/host_cost.py [--route generate_stream] [--streams 256] [--max-tokens 400] [--runs 5]

`mainspring serve` on the sim backend's ideal machine, its engine process, and this process as its clients. The clients
only take bytes from their sockets while the clock runs; what they got is parsed and checked afterwards, so that they
are not the limit. Seconds of processor time are told beside the rate: on a machine that does other work too they are
the steadier number, and the largest of them names the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter, process_time, sleep

import psutil

PROMPT = "The quick brown fox jumps over the lazy dog."
END_OF_STREAM = b"0\r\n\r\n"
"""The last chunk of a chunked answer (RFC 9112, section 7.1)."""
ENGINE_FLAGS = ("--backend", "sim", "--device-index", "0", "--backend-option", "speed=0")


@dataclass(frozen=True, slots=True)
class Run:
    """One volley of streams. Processor times in seconds."""

    tokens: int
    events: int
    reads: int
    wall: float
    server: float
    engine: float
    clients: float


def body_of(route: str, max_tokens: int) -> dict[str, object]:
    """A request that generates exactly so many tokens."""
    if route == "generate_stream":
        return {"inputs": PROMPT, "parameters": {"max_new_tokens": max_tokens}}
    options = {"max_tokens": max_tokens, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    if route == "v1/completions":
        return {"prompt": PROMPT, **options}
    return {"messages": [{"role": "user", "content": PROMPT}], **options}


def request_of(route: str, max_tokens: int) -> bytes:
    """The request's bytes."""
    body = json.dumps(body_of(route, max_tokens)).encode()
    head = f"POST /{route} HTTP/1.1\r\nhost: benchmark\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def volley(port: int, request: bytes, streams: int) -> tuple[list[list[bytes]], float]:
    """Sends so many requests at once and reads all answers: what each socket gave, and the seconds it took."""
    selector = selectors.DefaultSelector()
    answers: list[list[bytes]] = [[] for _ in range(streams)]
    for received in answers:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, received)
    began = perf_counter()
    connections = [key.fileobj for key in selector.get_map().values()]
    for connection in connections:
        connection.send(request)  # type: ignore[union-attr]  # only sockets were registered
    remaining = streams
    while remaining:
        for key, _ in selector.select():
            part = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
            key.data.append(part)
            if not part or part.endswith(END_OF_STREAM):
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                remaining -= 1
    seconds = perf_counter() - began
    selector.close()
    return answers, seconds


def events_of(answer: bytes) -> list[bytes]:
    """The events of one answer; raises ValueError when it is no complete one."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or not answer.endswith(END_OF_STREAM):
        raise ValueError(f"not a complete stream: {answer[:200]!r} ... {answer[-100:]!r}")
    data = bytearray()
    while rest:
        size_line, _, rest = rest.partition(b"\r\n")
        size = int(size_line, 16)
        data += rest[:size]
        rest = rest[size + 2 :]
    return bytes(data).split(b"\n\n")[:-1]


def tokens_of(events: list[bytes]) -> int:
    """Tokens of one answer, by its own account."""
    last = json.loads(events[-2 if events[-1] == b"data: [DONE]" else -1].removeprefix(b"data:"))
    return int(last["index"] if "index" in last else last["usage"]["completion_tokens"])


def measure(server: psutil.Process, port: int, request: bytes, streams: int) -> Run:
    """One volley with what it cost whom."""
    (engine,) = server.children()
    before = [cpu_seconds(server), cpu_seconds(engine), process_time()]
    answers, wall = volley(port, request, streams)
    after = [cpu_seconds(server), cpu_seconds(engine), process_time()]
    spent = [end - begin for begin, end in zip(before, after, strict=True)]
    parsed = [events_of(b"".join(answer)) for answer in answers]
    tokens = sum(tokens_of(events) for events in parsed)
    return Run(tokens, sum(map(len, parsed)), sum(map(len, answers)), wall, spent[0], spent[1], spent[2])


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process so far."""
    times = process.cpu_times()
    return times.user + times.system


@contextlib.contextmanager
def serving(model: str, port: int, prefix: list[str], flags: list[str]) -> Iterator[psutil.Process]:
    """A ready server, ended afterwards. `prefix` is what its command is run under."""
    command = [sys.executable, "-m", "mainspring.server.cli", "serve", model, "--port", str(port)]
    process = subprocess.Popen([*prefix, *command, *flags])
    try:
        wait_until_ready(process, port)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Returns once requests are answered."""
    while process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
            return
        sleep(0.05)
    raise SystemExit(f"the server ended with status {process.returncode}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def report(runs: list[Run]) -> None:
    """One line a run, then the best and the median."""
    print("tokens/s   tokens/event   tokens/read   microseconds of processor a token: server   engine  clients")
    for run in runs:
        costs = [spent / run.tokens * 1e6 for spent in (run.server, run.engine, run.clients)]
        shares = f"{run.tokens / run.events:14.2f} {run.tokens / run.reads:13.2f}"
        print(f"{run.tokens / run.wall:8.0f} {shares} {costs[0]:48.1f} {costs[1]:8.1f} {costs[2]:8.1f}")
    rates = [run.tokens / run.wall for run in runs]
    costs = [run.server / run.tokens * 1e6 for run in runs]
    print(f"best {max(rates):.0f} tokens/s, median {statistics.median(rates):.0f}", end="; ")
    print(f"server {min(costs):.1f} us a token at best, median {statistics.median(costs):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    routes = ["generate_stream", "v1/chat/completions", "v1/completions"]
    parser.add_argument("--route", choices=routes, nargs="+", default=routes[:2])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--under", default="", help="run the server under this command, e.g. `py-spy record -o p.svg --`"
    )
    arguments, flags = parser.parse_known_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    port = free_port()
    with serving(arguments.model, port, arguments.under.split(), [*ENGINE_FLAGS, *flags]) as server:
        for route in arguments.route:
            request = request_of(route, arguments.max_tokens)
            measure(server, port, request_of(route, 8), arguments.streams)
            print(f"/{route}, {arguments.streams} streams of {arguments.max_tokens} tokens")
            report([measure(server, port, request, arguments.streams) for _ in range(arguments.runs)])


if __name__ == "__main__":
    main()
