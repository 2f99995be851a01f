"""One model on one CPU behind Mainspring's server, vLLM's and llama.cpp's, each started in turn and loaded alike.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/cpu/serve.py MODEL --gguf FILE --python vllm=PATH --python llama.cpp=PATH

MODEL is a directory with safetensors (`unpack_demo.py` makes one), FILE is llama.cpp's. Each server gets the whole
machine but for the client, and `mainspring bench serve` measures it over `/v1/completions`: requests as a Poisson
process at each `--rate`, and all at once, the same prompts at the same moments for all. `--quantize SCHEME` starts
Mainspring once more with the scheme. A server that does not start is left out, and the page says why. Written are a
table (`serve.md`) and a picture (`serve.png`) beside this file, or in `--directory`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console

from mainspring.core.errors import StartupError
from mainspring.server.bench import report
from mainspring.server.bench.arrivals import Rate
from mainspring.server.bench.plot import require_plots, save_plot
from mainspring.server.bench.serve import Load, Place, measure
from mainspring.server.bench.summary import Objectives

HERE = Path(__file__).parent
CONTEXT = 2048
"""Tokens of the longest sequence that a server makes room for."""
START_SECONDS = 600.0
"""vLLM compiles its model when it starts for the first time."""
ENDS = (0, 2)
"""The model's end tokens, which llama.cpp's server has no `ignore_eos` against."""
OBJECTIVES = Objectives(ttft=1000, tpot=100)

NAMES = ("mainspring", "vllm", "llama.cpp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server: what starts it, and what its clients must say."""

    name: str
    about: str
    command: Sequence[str]
    """Without its port, which is the last argument."""
    environment: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


def contenders(options: argparse.Namespace) -> Iterator[Contender]:
    """In the order in which they are measured."""
    ignore_eos = {"ignore_eos": True}
    pythons = dict.fromkeys(NAMES, sys.executable) | dict(pair.split("=", 1) for pair in options.python)
    for scheme in (None, *options.quantize):
        command = [pythons["mainspring"], "-m", "mainspring.server.cli", "serve", options.model, "--backend", "cpu"]
        command += ["--dtype", "float32", "--threads", str(options.threads), "--max-total-tokens", str(CONTEXT)]
        command += ["--quantize", scheme] if scheme else []
        yield Contender(
            name=f"mainspring {scheme}" if scheme else "mainspring",
            about=f"weights {scheme}" if scheme else "float32",
            command=[*command, "--port"],
            fields=ignore_eos,
        )
    yield Contender(
        name="vllm",
        about="float32",
        command=[
            pythons["vllm"], "-m", "vllm.entrypoints.openai.api_server", "--model", options.model,
            "--dtype", "float32", "--max-model-len", str(CONTEXT), "--host", "127.0.0.1", "--port",
        ],
        environment={
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[: options.threads])),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
        },
        fields=ignore_eos,
    )  # fmt: skip
    if options.gguf is not None:
        threads = ["--n_threads", str(options.threads), "--n_threads_batch", str(options.threads)]
        yield Contender(
            name="llama.cpp",
            about=f"{options.gguf.name}, llama-cpp-python's server, one request at a time",
            # By default it drops the answer it is at when another request comes.
            command=[
                pythons["llama.cpp"], "-m", "llama_cpp.server", "--model", str(options.gguf), *threads,
                "--n_ctx", str(CONTEXT), "--interrupt_requests", "false", "--verbose", "false", "--port",
            ],
            fields={"logit_bias": {str(token): -100 for token in ENDS}},
        )  # fmt: skip


@contextmanager
def running(contender: Contender) -> Iterator[str]:
    """The URL of the server, which answers. Raises StartupError when it ends before, or never does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **contender.environment}
    with tempfile.TemporaryFile("w+") as log:
        command = [*contender.command, str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, contender.name)
            yield url
        except StartupError as error:
            log.seek(0)
            lines = [line.strip() for line in log if line.strip()]
            raise StartupError(f"{error}: {lines[-1] if lines else 'it said nothing'}") from error
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends it, and whatever is left of its session: an engine that outlived it would slow the next server down."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartupError(f"{name} ended with {process.returncode} before it served")
        try:
            with urlopen(f"{url}/v1/models", timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise StartupError(f"{name} did not serve within {START_SECONDS:g} s")


def run(contender: Contender, load: Load) -> list[report.ServeRun]:
    """Starts, loads and stops one server. Raises StartupError."""
    fields = {"temperature": 0, **contender.fields}
    with running(contender) as url:
        place = Place(name=contender.name, url=url, api="completions", model=None, headers={}, extra=fields)
        return asyncio.run(measure(place, load, OBJECTIVES))


def page(options: argparse.Namespace, runs: Sequence[report.ServeRun], about: Mapping[str, str]) -> str:
    """The table with what it takes to read it."""
    lines = [
        "# Servers on one CPU",
        "",
        f"Written by `benchmarks/cpu/serve.py` on {time.strftime('%Y-%m-%d', time.gmtime())}: {_processor()}, "
        f"{options.threads} threads for the server, whose cores the client shares. "
        f"{options.requests} requests a run of {options.input_tokens} + {options.output_tokens} tokens, greedy, over "
        "`/v1/completions`; times count from the moment at which a request was due "
        "([definitions](../../docs/benchmarking.md)). Goodput: time to first token within "
        f"{OBJECTIVES.ttft:g} ms and time per output token within {OBJECTIVES.tpot:g} ms.",
        "",
        *(f"- {name}: {text}" for name, text in about.items()),
        "",
        report.markdown(runs),
        "![Shares of requests by latency](serve.png)",
        "",
    ]
    return "\n".join(lines)


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    names = [line for line in file.read_text().splitlines() if line.startswith("model name")] if file.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gguf", type=Path, help="the model for llama.cpp, which is left out without it")
    parser.add_argument("--python", action="append", default=[], metavar="SERVER=PATH", help="a server's interpreter")
    parser.add_argument("--quantize", action="append", default=[], metavar="SCHEME", help="Mainspring once more, so")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rate", type=float, action="append", help="requests a second  [1 and 4]")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--servers", nargs="+", metavar="SERVER", help="only these, by the names in the table")
    parser.add_argument("--directory", type=Path, default=HERE)
    parser.add_argument("--json", type=Path, help="all results, every latency among them")
    return parser.parse_args()


def main() -> None:
    """Measures, and writes what was found."""
    options = parse()
    require_plots()
    load = Load(
        requests=options.requests,
        rates=tuple(Rate(rate, rate) for rate in (*(options.rate or (1.0, 4.0)), math.inf)),
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens,
        dataset=None,
        max_concurrency=None,
        warmup=2,
        timeout=600.0,
        seed=0,
    )
    runs: list[report.ServeRun] = []
    about: dict[str, str] = {}
    for contender in contenders(options):
        if options.servers and contender.name not in options.servers:
            continue
        began = time.monotonic()
        try:
            found = run(contender, load)
        except StartupError as error:
            about[contender.name] = f"left out, {error}"
        else:
            runs += found
            version = found[0].peer.about.get("version", "")
            about[contender.name] = f"{version} {contender.about}".strip()
        print(f"{contender.name}: {about[contender.name]}; {time.monotonic() - began:.0f} s", flush=True)
    if not runs:
        sys.exit("no server could be measured")
    report.print_runs(Console(width=200), runs)
    (options.directory / "serve.md").write_text(page(options, runs, about))
    save_plot(runs, options.directory / "serve.png")
    if options.json:
        options.json.write_text(json.dumps([_plain(run) for run in runs], indent=1) + "\n")


def _plain(run: report.ServeRun) -> Any:
    import msgspec

    return msgspec.to_builtins(run)


if __name__ == "__main__":
    main()
