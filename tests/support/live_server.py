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
def live_server(
    model: str, log: Path, *flags: str, ready_seconds: float = 120, python: str = sys.executable
) -> Iterator[LiveServer]:
    """Starts a server and stops it by SIGTERM; what it prints goes to `log`."""
    port = free_port()
    command = [python, "-m", "mainspring.server.cli", "serve", model, "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = LiveServer(f"http://127.0.0.1:{port}", process, log)
        wait_until_ready(server.url, process, log, ready_seconds)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Returns once /readyz says so; raises with the log when the process ends first or takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"exit status {process.returncode}: {log.read_text()}")
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"not ready after {seconds} s: {log.read_text()}")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
