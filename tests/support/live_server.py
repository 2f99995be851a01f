"""A real `mainspring serve` process on a free port of the loopback interface, and a look at it from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A server that listens."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def engines(self) -> list[psutil.Process]:
        """The same, or nothing while it is not there yet: a child is what its parent is until it has become another."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "mainspring.core.engine" in child.cmdline()]

    @property
    def engine(self) -> psutil.Process:
        """Its engine process. What reads grammars is the other child that there may be."""
        (engine,) = self.engines
        return engine

    def get(self, path: str) -> str:
        """The body of an answer, whatever its status."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    @property
    def phase(self) -> str:
        """What it says about itself."""
        return str(json.loads(self.get("/readyz"))["phase"])

    def metric(self, name: str) -> float:
        """The value of a metric without regard to labels."""
        found = re.search(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", self.get("/metrics"), flags=re.MULTILINE)
        if found is None:
            raise KeyError(name)
        return float(found[1])

    def wait_until_ready(self, seconds: float) -> None:
        """Returns once requests are answered."""
        self.wait_until(lambda: self.phase == "ready", seconds)

    def wait_until_idle(self, seconds: float) -> None:
        """Returns once nothing runs, waits or holds a block; raises when that takes longer."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        self.wait_until(lambda: not any(self.metric(f"mainspring_{name}") for name in names), seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Raises with the server's log when the condition does not come true in time, or the server ends first."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"exit status {self.process.returncode}: {self.log.read_text()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s: {self.log.read_text()}")
            time.sleep(0.02)


@contextmanager
def live_server(
    model: str, log: Path, *flags: str, ready_seconds: float = 120, python: str = sys.executable
) -> Iterator[LiveServer]:
    """Starts a server and stops it by SIGTERM; what it prints goes to `log`."""
    with listening_server(model, log, *flags, python=python) as server:
        server.wait_until_ready(ready_seconds)
        yield server


@contextmanager
def listening_server(
    model: str,
    log: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[LiveServer]:
    """The same from the moment it listens, in whatever phase. It may be ended or stopped inside the block."""
    process = spawn(model, log, *flags, environment=environment, python=python)
    try:
        yield LiveServer(wait_until_listening(process, log), process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def spawn(
    model: str,
    log: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> subprocess.Popen[bytes]:
    """The process alone, on a port that the kernel chooses."""
    command = [python, "-m", "mainspring.server.cli", "serve", model, "--port", "0", *flags]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )


def wait_until_listening(process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> str:
    """The URL of the socket that the process listens at."""
    server = psutil.Process(process.pid)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"exit status {process.returncode}: {log.read_text()}")
        for connection in server.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return f"http://127.0.0.1:{connection.laddr.port}"
        time.sleep(0.02)
    raise TimeoutError(f"does not listen after {seconds} s: {log.read_text()}")
