"""Whether a server under mixed load stays as it is: no request that fails, no memory that grows, no block that is kept.

    python benchmarks/soak.py [--minutes 30] [--at-once 32] [--model demo] [--json FILE] [SERVE FLAGS]

Clients take turns at everything that differs inside: streams and whole answers on both protocols, several answers at
once, log-probabilities, grammars, penalties, long prompts that share a prefix, requests that are refused, and streams
that are left half-way. A line a minute says what was answered and what memory the processes and the device hold. At the
end the server is idle for a moment and must hold no block. The exit status is 1 when a request failed, a block was
kept, or memory grew by more than `--growth` between the first third and the last.

A host's cache becomes resident as it is first used: give it a size that the first minutes fill
(`--max-batch-total-tokens`), or what is seen is that.

So do the heaps of its C library. glibc serves results of up to 32 MiB from heaps of 64 MiB a thread, and a heap stays
while a small block behind them lives: a prompt whose log-probabilities are wanted may leave 48 or 96 MiB there, in one
step, at any minute. MALLOC_MMAP_THRESHOLD_=16777216 in the environment gives such results back at once, for their page
faults: a resident engine of 970 MiB instead of 1160 here, and up to 8 % of a prefill of 2000 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil
from host_cost import free_port, serving

SENTENCE = "The quick brown fox jumps over the lazy dog while the old clock in the hall strikes twelve. "
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 40}}, "required": ["name"]}
REGEX = {"type": "regex", "value": "[a-z ]{10,60}"}
SETTLE_SECONDS = 3.0


@dataclass(slots=True)
class Sample:
    """What was seen at one moment; bytes."""

    minute: float
    outcomes: dict[str, int]
    server: int
    engine: int
    device: int


@dataclass(slots=True)
class Soak:
    """What the clients share."""

    client: httpx.AsyncClient
    dice: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    async def whole(self, route: str, body: dict[str, object], *, status: int = 200) -> None:
        """One answer in one piece, of this status and no other."""
        answer = await self.client.post(route, json=body)
        if answer.status_code != status:
            self.problems.append(f"{route}: {answer.status_code} where {status} was due: {answer.text[:200]}")

    async def streamed(self, route: str, body: dict[str, object], *, leave_after: int | None = None) -> None:
        """One stream, to its end or left after some events."""
        async with self.client.stream("POST", route, json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                self.problems.append(f"{route}: {answer.status_code}: {answer.text[:200]}")
                return
            events = 0
            async for line in answer.aiter_lines():
                events += line.startswith("data:")
                if '"error' in line:
                    self.problems.append(f"{route}: {line[:200]}")
                if events == leave_after:
                    return

    def prompt(self) -> str:
        """Of very different lengths; prompts of one length share most of their text."""
        return SENTENCE * self.dice.choice((1, 1, 2, 4, 12, 40)) + str(self.dice.randrange(8))

    def chat(self, **more: object) -> dict[str, object]:
        """A conversation of one message."""
        return {
            "messages": [{"role": "user", "content": self.prompt()}],
            "max_tokens": self.dice.randrange(1, 96),
            **more,
        }

    def generate(self, **more: object) -> dict[str, object]:
        """TGI's form of a request."""
        return {"inputs": self.prompt(), "parameters": {"max_new_tokens": self.dice.randrange(1, 96), **more}}


def turns(soak: Soak) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """What a client may do, by name."""
    chat, generate, completions = "/v1/chat/completions", "/generate", "/v1/completions"
    stream, schema = "/generate_stream", {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    return [
        ("chat", lambda: soak.whole(chat, soak.chat(temperature=0.7, seed=1))),
        ("chat streamed", lambda: soak.streamed(chat, soak.chat(stream=True))),
        ("several", lambda: soak.whole(chat, soak.chat(n=3, temperature=1.0))),
        ("logprobs", lambda: soak.whole(chat, soak.chat(logprobs=True, top_logprobs=5))),
        ("schema", lambda: soak.whole(chat, soak.chat(response_format=schema, temperature=1.0))),
        ("completion", lambda: soak.whole(completions, {"prompt": soak.prompt(), "max_tokens": 24, "echo": True})),
        ("generate", lambda: soak.whole(generate, soak.generate(details=True, decoder_input_details=True))),
        ("penalties", lambda: soak.whole(generate, soak.generate(repetition_penalty=1.2, top_k=20, do_sample=True))),
        ("generate streamed", lambda: soak.streamed(stream, soak.generate(top_n_tokens=3, details=True))),
        ("regex", lambda: soak.streamed(stream, soak.generate(grammar=REGEX))),
        ("refused", lambda: soak.whole(generate, soak.generate(temperature=-1.0), status=422)),
        ("left", lambda: soak.streamed(stream, soak.generate(), leave_after=soak.dice.randrange(1, 6))),
    ]


async def client(soak: Soak, until: float) -> None:
    """One client: a turn after another."""
    choices = turns(soak)
    while time.monotonic() < until:
        name, turn = soak.dice.choice(choices)
        try:
            await turn()
        except httpx.HTTPError as error:
            soak.problems.append(f"{name}: {error!r}")
        soak.outcomes[name] += 1


def device_bytes() -> int:
    """Memory in use on the first NVIDIA device, 0 where there is none."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return 0
    query = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) << 20


def resident(process: psutil.Process) -> int:
    """Of a process and, for the engine, the ranks below it."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


async def watch(soak: Soak, server: psutil.Process, until: float, every: float) -> list[Sample]:
    """A line, and a sample, each so many seconds."""
    began, samples = time.monotonic(), list[Sample]()
    (engine,) = server.children()
    print("minute  answered  problems   server MiB   engine MiB   device MiB", flush=True)
    for tick in itertools.count(1):
        await asyncio.sleep(max(min(began + tick * every, until) - time.monotonic(), 0))
        minute = (time.monotonic() - began) / 60
        alone = server.memory_info().rss
        sample = Sample(minute, dict(soak.outcomes), alone, resident(engine), device_bytes())
        samples.append(sample)
        memory = (f"{number / 2**20:12.1f}" for number in (sample.server, sample.engine, sample.device))
        print(f"{minute:6.1f} {soak.outcomes.total():9} {len(soak.problems):9} {' '.join(memory)}", flush=True)
        if time.monotonic() >= until:
            return samples
    raise AssertionError


def growth(values: list[int]) -> float:
    """How much more the last third holds than the first, as a share of it."""
    third = max(len(values) // 3, 1)
    first = statistics.median(values[:third])
    return statistics.median(values[-third:]) / first - 1 if first else 0.0


async def blocks_kept(http: httpx.AsyncClient) -> float:
    """The share of the cache that is in use while nobody asks for anything."""
    await asyncio.sleep(SETTLE_SECONDS)
    for line in (await http.get("/metrics")).text.splitlines():
        if line.startswith("mainspring_kv_cache_usage_perc{"):
            return float(line.rsplit(" ", 1)[1])
    raise SystemExit("/metrics tells nothing of the cache")


async def run(arguments: argparse.Namespace, port: int, server: psutil.Process) -> int:
    limits = httpx.Limits(max_connections=arguments.at_once + 4)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits) as http:
        soak = Soak(http, random.Random(arguments.seed))
        until = time.monotonic() + 60 * arguments.minutes
        clients = [asyncio.create_task(client(soak, until)) for _ in range(arguments.at_once)]
        samples = await watch(soak, server, until, arguments.every)
        await asyncio.gather(*clients)
        kept = await blocks_kept(http)
    # What the processes hold when first warm is not growth.
    grown = {name: growth([getattr(each, name) for each in samples]) for name in ("server", "engine", "device")}
    print(", ".join(f"{name} {share:+.1%}" for name, share in grown.items()), f"; blocks kept: {kept:.4f}")
    print("\n".join(soak.problems[:20]))
    if arguments.json is not None:
        facts = {
            "samples": [asdict(sample) for sample in samples],
            "problems": soak.problems,
            "growth": grown,
            "kept": kept,
        }
        arguments.json.write_text(json.dumps(facts, indent=1))
    return int(bool(soak.problems) or kept > 0 or max(grown.values()) > arguments.growth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between lines")
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--growth", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments, flags = parser.parse_known_args()
    port = free_port()
    with serving(arguments.model, port, [], flags) as server:
        status = asyncio.run(run(arguments, port, server))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
