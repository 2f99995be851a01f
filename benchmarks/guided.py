"""What grammars cost those who ask for none: the time between tokens of free streams, beside as many other free ones
and beside as many guided ones, while grammars that nobody can use are being read.

    python benchmarks/guided.py [--streams 64] [--tokens 128] [--rounds 4] [--model demo] [--backend cpu]
        [FLAGS OF serve]

One server, rounds in turn, so that what else the machine does meets both alike. The guided streams write JSON objects
with a text in them, as long as the free ones write. Every PACE seconds another request comes: in the one kind of round
with a hostile grammar, in the other without a grammar where that grammar would be read in the end, so that both have
the same steps. Told are the median and the 99th percentile of the free streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

import httpx
from host_cost import free_port, serving

PACE = 0.25
HOSTILE = (
    {"type": "json", "value": {"enum": list(range(10_000))}},  # read, and followed
    {"type": "json", "value": {"enum": [f"value {number}" for number in range(10_000)]}},  # too many bytes
    {"type": "regex", "value": "(a{1,1000}){1,1000}"},
    {"type": "regex", "value": "(x+x+)+y" * 200},
)


def schema(tokens: int) -> dict[str, object]:
    """Of an object whose text is longer than so many tokens, so that the guided streams write as much as the free."""
    story = {"type": "string", "minLength": 16 * tokens}
    return {
        "type": "object",
        "properties": {"story": story, "pages": {"type": "integer"}},
        "required": ["story", "pages"],
    }


async def gaps(port: int, number: int, tokens: int, grammar: object | None) -> list[float]:
    """Seconds between the tokens of one stream, which is only looked through for them: a client that did more would
    take from the server's processors what is to be measured."""
    parameters = {"max_new_tokens": tokens, "grammar": grammar, "temperature": 1.0, "seed": number}
    body = json.dumps({"inputs": f"Story {number}:", "parameters": parameters}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /generate_stream HTTP/1.1\r\nHost: server\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    seen: list[float] = []
    told, mark = b"", b"data:"
    while read := await reader.read(1 << 16):
        # With what may be the beginning of a mark.
        seen += [time.perf_counter()] * (told[1 - len(mark) :] + read).count(mark)
        if (not told and not read.startswith(b"HTTP/1.1 200")) or b'"error":' in read:
            raise SystemExit(read.decode(errors="replace"))
        told = read
    writer.close()
    return [after - before for before, after in pairwise(seen)]


async def pester(client: httpx.AsyncClient, hostile: bool) -> None:
    """Asks for one hostile grammar after another, or in place of the first for none, until it is cancelled."""
    while True:
        for number, grammar in enumerate(HOSTILE):
            parameters: dict[str, object] = {"max_new_tokens": 1, "seed": number}
            if hostile:
                # A new text each time, so that nothing is answered from memory.
                value, now = grammar["value"], time.time_ns()
                fresh = f"{value}{now}" if isinstance(value, str) else {**value, "$comment": str(now)}
                parameters["grammar"] = {**grammar, "value": fresh}
            if hostile or number == 0:
                await client.post("/generate", json={"inputs": "x", "parameters": parameters})
            await asyncio.sleep(PACE)


async def volley(port: int, streams: int, tokens: int, grammar: object | None) -> list[float]:
    """The gaps of the free half, all of them."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        pesterer = asyncio.create_task(pester(client, grammar is not None))
        others = [asyncio.create_task(gaps(port, streams + n, tokens, grammar)) for n in range(streams)]
        free = await asyncio.gather(*(gaps(port, number, tokens, None) for number in range(streams)))
        await asyncio.gather(*others)
        pesterer.cancel()
        await asyncio.gather(pesterer, return_exceptions=True)
    return [gap for stream in free for gap in stream]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share is not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--backend", default="cpu")
    options, flags = parser.parse_known_args()
    port, grammar = free_port(), {"type": "json", "value": schema(options.tokens)}
    found: dict[str, list[float]] = {"free": [], "guided": []}
    with serving(options.model, port, [], ["--backend", options.backend, *flags]):
        for _ in range(1 + options.rounds):  # the first is for warmth
            for beside, theirs in (("free", None), ("guided", grammar)):
                found[beside] += asyncio.run(volley(port, options.streams, options.tokens, theirs))
            if _ == 0:
                found = {beside: [] for beside in found}
    for beside, values in found.items():
        middle, late = statistics.median(values), percentile(values, 0.99)
        print(f"beside {options.streams} {beside:6} streams: median {1000 * middle:.0f} ms, p99 {1000 * late:.0f} ms")
    print(json.dumps({"p99 ratio": percentile(found["guided"], 0.99) / percentile(found["free"], 0.99)}))


if __name__ == "__main__":
    main()
