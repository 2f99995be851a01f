"""Experts of one layer on one GPU: our kernels against the floor, at the shapes of Mixtral 8x7B and Qwen3-30B-A3B.

    python benchmarks/cuda/experts.py [--json FILE] [--sweep]

Routing is random and in the time: norms of scores, choice, sorting, both products, the sum. The floor is the weights of
the experts that were chosen read once, or the operations. Results are held against the reference in float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from shapes import OPERATIONS_PER_SECOND, READ_BYTES_PER_SECOND
from torch import Tensor

from mainspring.backends.cuda.device import CudaDevice
from mainspring.backends.triton import moe as kernels
from mainspring.core.ops.moe import moe as reference

LAYERS = {"8x7B": (8, 2, 4096, 14336), "30B-A3B": (128, 8, 2048, 768)}
"""Experts, chosen, hidden size, features."""
TOKENS = (1, 8, 32, 128, 256, 1024, 8192)
FEW, SOME, MANY = (
    [kernels.Tile(*sizes) for sizes in tiles]
    for tiles in (
        ((16, 64, 128, 4, 4), (16, 128, 64, 4, 4), (16, 32, 256, 4, 3), (16, 64, 256, 4, 3)),
        ((32, 64, 64, 4, 4), (32, 128, 64, 4, 4), (64, 64, 64, 4, 4), (64, 128, 64, 4, 4)),
        ((128, 64, 64, 4, 4), (128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (128, 64, 64, 8, 4)),
    )
)
"""Tiles of a sweep, by the rows that an expert has."""


def microseconds(work: object, repeats: int) -> float:
    """Of one call, many captured in a row."""
    graph = torch.cuda.CUDAGraph()
    work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            work()
    graph.replay()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(5):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1000 / repeats / 5


def error(found: Tensor, x: Tensor, weights: tuple[Tensor, Tensor], routed: tuple[Tensor, Tensor]) -> float:
    """Against float32, of some tokens."""
    few = slice(0, 64)
    wanted = reference(x[few].float(), weights[0].float(), weights[1].float(), routed[0][few], routed[1][few])
    return float((found[few].float() - wanted).norm() / wanted.norm())


def measure(
    device: CudaDevice, name: str, tokens: int, weights: tuple[Tensor, Tensor], *, sweep: bool
) -> dict[str, object]:
    """One layer's row of the table, printed."""
    experts, chosen, size, features = LAYERS[name]
    moe, route = device.ops()["moe"], device.ops()["route"]
    x = torch.randn(tokens, size, device="cuda", dtype=torch.bfloat16)
    scores = torch.randn(tokens, experts, device="cuda", dtype=torch.bfloat16)
    routed = route(scores, chosen, True)
    one = 3 * size * features
    read = 2 * one * len(routed[1].unique()) / READ_BYTES_PER_SECOND
    floor = max(read, 2 * one * tokens * chosen / OPERATIONS_PER_SECOND) * 1e6
    repeats = 20 if tokens <= 1024 else 4
    took = microseconds(lambda: moe(x, *weights, *route(scores, chosen, True)), repeats)
    alone = microseconds(lambda: moe(x, *weights, *routed), repeats)
    wrong = error(moe(x, *weights, *routed), x, weights, routed)
    print(
        f"{name:8} {tokens:5} {took:8.1f} {alone:8.1f} floor {floor:8.1f} {alone / floor:5.2f}x error {wrong:.1e}",
        flush=True,
    )
    if sweep:
        rows = tokens * chosen / experts
        times = {
            str((t.rows, t.columns, t.depth, t.warps, t.stages)): round(
                microseconds(lambda t=t: kernels.moe(x, *weights, *routed, tile=t), repeats), 1
            )
            for t in FEW * (rows <= 32) + SOME * (8 < rows <= 128) + MANY * (rows > 32)
        }
        print("   ", times, flush=True)
    return {"layer": name, "tokens": tokens, "us": took, "without routing": alone, "floor": floor, "error": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true", help="other tiles, too")
    given = parser.parse_args()
    device, found = CudaDevice(0), []
    for name, (experts, _, size, features) in LAYERS.items():
        weights = tuple(
            torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.03
            for shape in ((experts, 2 * features, size), (experts, size, features))
        )
        found += [measure(device, name, tokens, weights, sweep=given.sweep) for tokens in TOKENS]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
