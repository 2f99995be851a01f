"""Host time of scheduling: what `Scheduler.schedule` and `commit` take a step, with every sequence decoding.

    python benchmarks/scheduler_cost.py

The executor is a list of constants whose time is not counted. One step runs ahead, as in the engine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from time import perf_counter

from mainspring.core.batch import StepResult
from mainspring.core.request import RequestId, SamplingParams, Submit
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_TOKENS = 64


def decoding(sequences: int, steps: int) -> Scheduler:
    """A scheduler with so many requests waiting, each long enough to decode in every measured step."""
    length = PROMPT_TOKENS + 2 * steps
    pool = BlockPool(1 + sequences * (length // BLOCK_SIZE + 1), BLOCK_SIZE)
    scheduler = Scheduler(
        pool=pool, max_sequences=sequences, max_length=length, max_batch_tokens=8192, clock=perf_counter
    )
    for number in range(sequences):
        # Different lengths, so that block boundaries fall into different steps as they do in service.
        prompt = [number + 1] * (PROMPT_TOKENS - number % BLOCK_SIZE)
        scheduler.submit(Submit(RequestId(number), prompt, SamplingParams()))
    return scheduler


def measure(sequences: int, steps: int) -> list[float]:
    """Seconds of schedule() + commit(), one entry a step."""
    scheduler = decoding(sequences, steps)
    ahead = scheduler.schedule()
    seconds: list[float] = []
    while len(seconds) < steps:
        began = perf_counter()
        batch = scheduler.schedule()
        planned = perf_counter() - began
        result = StepResult([7] * sum(ahead.samples))
        began = perf_counter()
        scheduler.commit(ahead, result)
        taken = planned + perf_counter() - began
        if ahead.num_decodes == sequences:
            seconds.append(taken)
        ahead = batch
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    print(f"Python {platform.python_version()}, {platform.machine()}, {steps} steps, microseconds a step")
    for sequences in (1, 32, 256):
        seconds = sorted(measure(sequences, steps))
        p99 = seconds[int(len(seconds) * 0.99)]
        print(f"{sequences:4d} decoding: median {statistics.median(seconds) * 1e6:7.1f}  p99 {p99 * 1e6:7.1f}")


if __name__ == "__main__":
    main()
