"""Sums over two GPUs with the norm behind them: the library and a norm's kernel against one kernel of our own.

    python benchmarks/cuda/sums.py [--json FILE]

Both are captured, many in a row, as a model's step has them. The floor is a row's bytes to the other GPU and back, each
way at what the link carries, and nothing for the way itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing

from mainspring.backends.cuda.device import CudaDevice
from mainspring.core.parallel.communicator import TorchCommunicator

ROWS = (1, 8, 32, 128, 256, 512, 1024, 8192)
SIZE = 4096
SUMS = 64
"""In one captured graph: what a model of 32 layers has."""
REPLAYS = 20
LINK = 0.45e12
"""Bytes a second and way, by the data sheet."""

Norm = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def microseconds(norm: Norm, rows: int, device: str) -> float:
    """Of one sum and norm."""
    x, residual = (torch.randn(rows, SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.randn(SIZE, device=device, dtype=torch.bfloat16)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            norm(x, residual, weight, 1e-5)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(SUMS):
                norm(x, residual, weight, 1e-5)
    graph.replay()
    torch.cuda.synchronize()
    distributed.barrier()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1000 / SUMS / REPLAYS


def rank_main(rank: int, store: str, out: str) -> None:
    """One GPU."""
    torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    device = CudaDevice(rank)
    add_rms_norm = device.ops()["add_rms_norm"]
    library, own = TorchCommunicator(range(2)), device.communicator(range(2))
    norms = {
        "library": lambda x, *rest: add_rms_norm(library.all_reduce(x), *rest),
        "own": device.summed_norm(own, add_rms_norm),
    }
    found = [
        {"rows": rows, "floor": rows * SIZE * 2 / LINK * 1e6}
        | {name: microseconds(norm, rows, device.torch_device) for name, norm in norms.items()}
        for rows in ROWS
    ]
    if rank == 0:
        print(f"{'rows':>6} {'floor':>8} {'library':>8} {'own':>8}  microseconds")
        for row in found:
            print(f"{row['rows']:6} {row['floor']:8.1f} {row['library']:8.1f} {row['own']:8.1f}", flush=True)
        Path(out).write_text(json.dumps(found, indent=1))
    distributed.barrier()
    own.close()
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="/dev/null")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(rank_main, args=(str(Path(folder, "store")), given.json), nprocs=2)


if __name__ == "__main__":
    main()
