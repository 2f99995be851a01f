"""Speed of products of few rows on one GPU, each beside the library's and its floor.

    python benchmarks/cuda/kernels.py [--json FILE]

Shapes are those of Llama-3.1-8B and Qwen3-0.6B in bfloat16, on random data. Every figure is the median of replays of a
graph that runs the kernel several times over different memory, more than the second-level cache holds; so a kernel's
start overlaps with the end of the one before it, as in serving. `tests/gpu` checks the same kernels against float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mainspring.backends.cuda.linear import MOST_ROWS, Shape, Tile, candidates
from mainspring.backends.cuda.overlap import overlap_of
from mainspring.backends.triton.launch import Overlap
from mainspring.backends.triton.linear import VectorTile, split, vector

READ_BYTES_PER_SECOND = 3.05e12
OPERATIONS_PER_SECOND = 771e12
"""An H100 80GB HBM3, measured: a pure read, and a bf16 product of 8192 cubed."""
LAYERS = {
    "8b qkv": (6144, 4096), "8b o": (4096, 4096), "8b gate_up": (28672, 4096), "8b down": (4096, 14336),
    "8b head": (128256, 4096), "0.6b qkv": (4096, 1024), "0.6b o": (1024, 2048), "0.6b gate_up": (6144, 1024),
    "0.6b down": (1024, 3072),
}  # fmt: skip
ROWS = (1, 8, 32)
COLD_BYTES = 200 << 20
"""What is read before memory comes round again: several times the second-level cache."""
REPLAYS = 7


def seconds(call: Callable[[int], object], turns: int) -> float:
    """Of one call among `turns` in a graph; calls get their number."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(0)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for turn in range(turns):
                call(turn)
    times = []
    for _ in range(REPLAYS):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / turns / 1e3)
    return statistics.median(times)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def products(overlap: Overlap, processors: int) -> Iterator[tuple[str, dict[str, float | str]]]:
    """(layer and rows, microseconds of the library, of the fastest of ours, and of the floor)."""
    arrived = torch.zeros(1 << 16, dtype=torch.int32, device="cuda")
    for name, (size, depth) in LAYERS.items():
        weights = [normal(size, depth) for _ in range(1 + min(24, COLD_BYTES // (2 * size * depth)))]
        for rows in ROWS:
            x = normal(rows, depth)

            def run(tile: Tile, turn: int, x: Tensor = x, weights: list[Tensor] = weights) -> Tensor:
                weight = weights[turn % len(weights)]
                if tile is None:
                    return torch.nn.functional.linear(x, weight)
                if isinstance(tile, VectorTile):
                    return vector(x, weight, None, tile, overlap=overlap)
                return split(x, weight, None, tile, arrived=arrived, overlap=overlap)

            shape = Shape(1 if rows == 1 else 16 if rows <= 16 else MOST_ROWS, size, depth, "torch.bfloat16", False)
            took = {
                tile: seconds(lambda turn, tile=tile, run=run: run(tile, turn), max(8, len(weights)))  # type: ignore[misc]
                for tile in candidates(shape, processors)
            }
            library = took.pop(None)
            best = min(took, key=lambda tile: took[tile])
            floor = 2 * size * depth / READ_BYTES_PER_SECOND
            yield f"{name}, {rows} rows, us", {
                "measured": 1e6 * min(took[best], library), "library": 1e6 * library, "floor": 1e6 * floor,
                "kernel": str(best) if took[best] < library else "library",
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    card = torch.cuda.get_device_properties(0)
    overlap = overlap_of((card.major, card.minor))
    print(f"{card.name}, torch {torch.__version__}")
    results = {}
    for what, found in products(overlap, card.multi_processor_count):
        results[what] = found
        print(what.ljust(32), *(f"{k} {v:.1f}" if isinstance(v, float) else v for k, v in found.items()), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
