"""Time of one linear layer on the CPU, by shape, rows and how its weight is stored; minima in ms.

Weights are cycled through more memory than the processor's cache holds, as in a model.

python benchmarks/cpu_linear.py [--threads 1] [--rows 1 8 32 128] [--seconds 0.3]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping

import torch

from mainspring.backends.cpu import CpuBackend
from mainspring.core.backend import Device, WeightScheme, unquantized
from mainspring.core.config import EngineConfig

SHAPES = ((576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152))
"""(K, N) of SmolLM2-135M: qkv, attention output, gate and up, down, head."""

SCHEMES: Mapping[str, WeightScheme] = {
    "float32": unquantized("float32"),
    "int8": WeightScheme(weight="int8", bits=8),
    "int8-dynamic": WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token"),
    "int4": WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False),
}

CACHE_BYTES = 64 << 20


def shortest(work: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls that fit in the time."""
    work()
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - begun)
    return least


def times(device: Device, shape: tuple[int, int], rows: int, seconds: float) -> dict[str, float]:
    """ms of one product: torch's own linear, then each scheme in the backend's form."""
    in_features, out_features = shape
    x = torch.randn(rows, in_features)
    copies = max(1, min(24, CACHE_BYTES // (4 * in_features * out_features)))
    weights = [torch.randn(out_features, in_features) for _ in range(copies)]
    turn = itertools.cycle(range(copies))
    found = {"torch": shortest(lambda: torch.nn.functional.linear(x, weights[next(turn)]), seconds)}
    for name, scheme in SCHEMES.items():
        packed = [device.pack(scheme, {"weight": weight}) for weight in weights]
        found[name] = shortest(lambda packed=packed: device.quantized_linear(x, packed[next(turn)]), seconds)  # type: ignore[misc]
    return {name: 1e3 * taken for name, taken in found.items()}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=0.3)
    given = parser.parse_args()
    device = CpuBackend().open(0, 0, 1, EngineConfig(model="random", threads=given.threads))
    print(f"| K x N | rows | torch | {' | '.join(SCHEMES)} |\n|---|--:|{'--:|' * (len(SCHEMES) + 1)}")
    with torch.inference_mode():
        for shape, rows in itertools.product(SHAPES, given.rows):
            found = times(device, shape, rows, given.seconds)
            print(
                f"| {shape[0]} x {shape[1]} | {rows} | {' | '.join(f'{ms:.3f}' for ms in found.values())} |", flush=True
            )


if __name__ == "__main__":
    main()
