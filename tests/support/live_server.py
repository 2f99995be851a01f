"""A real `mainspring serve` process on a free port of the loopback interface, and a look at its metrics."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A server that is ready."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def metric(self, name: str) -> float:
        """The value of a metric without regard to labels."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, flags=re.MULTILINE)
        if found is None:
            raise KeyError(name)
        return float(found[1])

    def wait_until_idle(self, seconds: float) -> None:
        """Returns once nothing runs, waits or holds a block; raises when that takes longer."""
        deadline = time.monotonic() + seconds
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        while any(self.metric(f"mainspring_{name}") for name in names):
            if time.monotonic() > deadline:
                raise TimeoutError({name: self.metric(f"mainspring_{name}") for name in names})
            time.sleep(0.05)


@contextmanager
def live_server(model: str, log: Path, *flags: str, ready_seconds: float = 120) -> Iterator[LiveServer]:
    """Starts a server and stops it by SIGTERM; what it prints goes to `log`."""
    port = _free_port()
    command = [sys.executable, "-m", "mainspring.server.cli", "serve", model, "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = LiveServer(f"http://127.0.0.1:{port}", process, log)
        _wait_until_ready(server, ready_seconds)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(server: LiveServer, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"exit status {server.process.returncode}: {server.log.read_text()}")
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"not ready after {seconds} s: {server.log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
