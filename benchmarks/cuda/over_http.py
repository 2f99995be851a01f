"""Throughput through the whole server: `mainspring serve` with random weights, `mainspring bench serve` as its client.

    python benchmarks/cuda/over_http.py [--model 8b] [--load "256 x 128/512"]

Three processes on one machine: server, engine and clients, all requests at once and 256 of them in progress. To be read
beside `shapes.py`, whose loop has no HTTP, text or channel around it.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shapes import LOADS, MODELS
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordPiece

from mainspring.server.bench.prompts import random_words

PATIENCE = 120.0
"""Seconds for the server to be ready."""
MAINSPRING = (sys.executable, "-m", "mainspring.server.cli")


def write_model(folder: Path, name: str) -> None:
    """A config, and a tokenizer in which each word of the benchmark's prompts is one token."""
    shape = MODELS[name]
    (folder / "config.json").write_text(json.dumps(shape))
    words = sorted(set(random_words(1, 20_000, 1, 0)[0].text.split()))
    tokens = ["[UNK]", "<s>", "</s>", *words]
    tokens += [f"w{number}" for number in range(int(str(shape["vocab_size"])) - len(tokens))]
    encoder = Tokenizer(WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    encoder.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder.decoder = decoders.WordPiece()
    encoder.save(str(folder / "tokenizer.json"))


def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(folder: Path, flags: list[str]) -> Iterator[str]:
    """A running server's address; it has ended afterwards."""
    port = free_port()
    options = [
        "--port", str(port), "--load-format", "dummy", "--max-total-tokens", "8192", "--max-batch-size", "256",
        "--max-batch-prefill-tokens", "8192", "--max-input-tokens", "8000", "--no-prefix-caching",
        "--max-concurrent-requests", "1024", *flags,
    ]  # fmt: skip
    process = subprocess.Popen([*MAINSPRING, "serve", str(folder), *options])
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Raises when the server ends first or takes too long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server was not ready within {PATIENCE:.0f} s; it says why above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="8b", choices=list(MODELS))
    parser.add_argument("--load", action="append", choices=list(LOADS))
    parser.add_argument("--flag", action="append", default=["--backend=cuda"], help="given to the server")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, given.model)
        began = time.perf_counter()
        with server(folder, given.flag) as url:
            print(f"{given.model}: ready after {time.perf_counter() - began:.1f} s", flush=True)
            for load in given.load or list(LOADS):
                requests, num_prompt, num_tokens = LOADS[load]
                options = [
                    "--url", url, "--api", "completions", "--requests", str(requests), "--max-concurrency", "256",
                    "--input-tokens", str(num_prompt), "--output-tokens", str(num_tokens), "--warmup", "4",
                ]  # fmt: skip
                print(f"{given.model}, {load}, over HTTP", flush=True)
                subprocess.run([*MAINSPRING, "bench", "serve", *options], check=True)


if __name__ == "__main__":
    main()
