"""Start-up times: import, --help, and start to ready for the demo model. Each the minimum and median of several runs.

python benchmarks/startup.py [--backend cpu] [--runs 5]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable


def seconds(action: Callable[[], None]) -> float:
    """Wall-clock duration of one call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def run(*command: str) -> None:
    """Runs a Python command to its end."""
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_to_ready(backend: str) -> float:
    """Seconds from the command to the first 200 of /readyz; the server is stopped afterwards."""
    port = free_port()
    command = ["-m", "mainspring.server.cli", "serve", "demo", "--backend", backend, "--port", str(port)]
    begun = time.perf_counter()
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if server.poll() is not None:
                raise RuntimeError(f"the server exited with status {server.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                    return time.perf_counter() - begun
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.02)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    measured = {
        "python -c pass": [seconds(lambda: run("-c", "pass")) for _ in range(options.runs)],
        "import mainspring": [seconds(lambda: run("-c", "import mainspring")) for _ in range(options.runs)],
        "mainspring --help": [
            seconds(lambda: run("-m", "mainspring.server.cli", "--help")) for _ in range(options.runs)
        ],
        f"serve demo on {options.backend}, start to ready": [
            start_to_ready(options.backend) for _ in range(options.runs)
        ],
    }
    for what, times in measured.items():
        print(f"{what:44s} min {min(times):6.3f} s   median {statistics.median(times):6.3f} s")


if __name__ == "__main__":
    main()
