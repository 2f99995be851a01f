"""What the engine process and its client cost: tokens a second with a device that takes no time.

    python benchmarks/engine_throughput.py

A real engine process on the sim backend's ideal machine; the client counts tokens and does nothing else with them. So
this is the most that any device could be kept busy with, before text and HTTP. It also says how soon a request's first
token comes back through both queues, and how soon streams hear of an engine that was killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

from mainspring.core.config import EngineConfig
from mainspring.core.request import SamplingParams
from mainspring.server.engine.client import EngineClient

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 2,
}


async def count(client: EngineClient, number: int, max_tokens: int) -> int:
    """Tokens of one request, read to its end."""
    tokens = 0
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    async with client.submit([number + 3] * 64, params) as stream:
        async for delta in stream:
            tokens += len(delta.tokens)
    return tokens


async def rate(client: EngineClient, streams: int, max_tokens: int) -> float:
    """Tokens a second of so many streams at once."""
    began = perf_counter()
    counts = await asyncio.gather(*(count(client, number, max_tokens) for number in range(streams)))
    return sum(counts) / (perf_counter() - began)


async def round_trips(client: EngineClient, requests: int) -> list[float]:
    """Seconds from submission to the only token of a request, one after another."""
    seconds = []
    for number in range(requests):
        began = perf_counter()
        await count(client, number, 1)
        seconds.append(perf_counter() - began)
    return seconds


async def death(client: EngineClient, streams: int) -> float:
    """Seconds from a SIGKILL of the engine to the end of the last of so many streams."""
    running = [asyncio.create_task(count(client, number, 4000)) for number in range(streams)]
    await asyncio.sleep(0.05)
    began = perf_counter()
    os.kill(client.engine_pid or 0, signal.SIGKILL)
    await asyncio.gather(*running)
    return perf_counter() - began


async def measure(model: Path, streams: tuple[int, ...], max_tokens: int) -> None:
    client = EngineClient(EngineConfig(model=str(model), backend="sim", max_sequences=max(streams), num_blocks=65536))
    began = perf_counter()
    await client.start()
    print(f"start-up              {perf_counter() - began:8.2f} s")
    try:
        trips = await round_trips(client, 200)
        print(f"first token, median   {statistics.median(trips) * 1e3:8.2f} ms")
        for number in streams:
            print(f"{number:5} streams         {await rate(client, number, max_tokens):8.0f} tokens/s")
        print(f"death to last error   {await death(client, max(streams)) * 1e3:8.0f} ms")
    finally:
        await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--max-tokens", type=int, default=500)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory)
        (model / "config.json").write_text(json.dumps(MODEL))
        asyncio.run(measure(model, tuple(arguments.streams), arguments.max_tokens))


if __name__ == "__main__":
    main()
