"""Gaps between device steps, and what a step costs the host, while one GPU decodes.

    python benchmarks/cuda/gaps.py [--model 0.6b] [--rows 1 32 256]

A trace of the device says when kernels ran. A step begins with the copy of its integers; its gap is from the last
kernel before that copy to the first one behind it. `busy` is the share of the time in which a kernel ran.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from shapes import CONTEXT, MODELS, Serving, serving
from torch.profiler import ProfilerActivity, profile

STEPS = 40


@dataclass(frozen=True, slots=True)
class Span:
    """Something that the device did, in microseconds."""

    name: str
    begin: float
    end: float


def decoding(served: Serving, rows: int) -> None:
    """Brings so many rows to the point where all of them decode."""
    for _ in range(rows):
        served.submit(CONTEXT, 3 * STEPS + 24 + rows * CONTEXT // 8192)
    while served.turn() != rows:
        pass
    for _ in range(4):
        served.turn()


def host_microseconds(served: Serving) -> tuple[float, float]:
    """(of the host's own work a step, of a whole step), medians."""
    own, whole = [], []
    for _ in range(STEPS):
        began, waited = time.perf_counter(), served.waited
        served.turn()
        seconds = time.perf_counter() - began
        own.append(1e6 * (seconds - served.waited + waited))
        whole.append(1e6 * seconds)
    return statistics.median(own), statistics.median(whole)


def spans(served: Serving) -> list[Span]:
    """What the device did in some steps."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            served.turn()
        torch.cuda.synchronize()
    events = recorded.profiler.kineto_results.events() if recorded.profiler is not None else []
    found = [
        Span(event.name(), event.start_ns() / 1e3, (event.start_ns() + event.duration_ns()) / 1e3)
        for event in events
        if event.device_type() == torch.autograd.DeviceType.CUDA
    ]
    return sorted(found, key=lambda span: span.begin)


def gaps(found: list[Span]) -> list[float]:
    """Between the kernels around each copy of a step's integers."""
    kernels = [span for span in found if "Memcpy" not in span.name and "Memset" not in span.name]
    between = []
    for copy in (span for span in found if "HtoD" in span.name):
        before = [kernel.end for kernel in kernels if kernel.end <= copy.begin]
        behind = [kernel.begin for kernel in kernels if kernel.begin >= copy.end]
        if before and behind:
            between.append(behind[0] - before[-1])
    return between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="0.6b", choices=list(MODELS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    given = parser.parse_args()
    served, _ = serving(MODELS[given.model])
    for rows in given.rows:
        decoding(served, rows)
        own, whole = host_microseconds(served)
        found = spans(served)
        between = gaps(found)
        busy = sum(span.end - span.begin for span in found) / (found[-1].end - found[0].begin)
        kernels = len(found) / STEPS
        print(
            f"{given.model} {rows:4} rows: host {own:5.0f} us of {whole:6.0f} a step, "
            f"gap {statistics.median(between):5.1f}"
            f" us (max {max(between):.0f}), busy {100 * busy:.1f} %, {kernels:.0f} launches",
            flush=True,
        )
        served.drain()
    served.executor.close()


if __name__ == "__main__":
    main()
