"""Host cost of a step of the core's executor, with a device that computes nothing.

    python benchmarks/executor_cost.py [--context 1024] [--drawn]

Scheduler and executor are joined as the engine joins them, one step planned ahead; programs are "captured", which here
means that they return the same tensors at once. What is printed is what must fit beside a device's step for the device
never to wait: microseconds of the host a step, the median of all steps and of each part.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor

from mainspring.core.backend import AttentionPlan, Capabilities, Device, KVSpec, Program
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.execution.inputs import StepTensors
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models.causal import CausalLM
from mainspring.core.ops import Ops
from mainspring.core.request import RequestId, SamplingParams, StepOutput, Submit
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler

SEQUENCES, LENGTH, BLOCK_SIZE, STEPS = 256, 8192, 32, 300
ROWS = (1, 32, 256)


class Nothing(Device):
    """Programs of buckets that are done before they begin."""

    torch_device = "cpu"

    def memory(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> object:
        return object()

    def synchronize(self) -> None:
        pass

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        if bucket is None:
            return program
        result = torch.zeros(1, 1), None, torch.full((2, bucket.sequences), 7, dtype=torch.int32)
        result[2][1] = 0

        def replay(inputs: StepTensors, plan: AttentionPlan) -> tuple[Tensor | None, ...]:
            return result

        return replay


class Blank(CausalLM):
    """Computes nothing."""

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        return torch.zeros(len(tokens_T), 1)

    def logits(self, hidden_NE: Tensor) -> Tensor:
        return torch.zeros(len(hidden_NE), 8)


def serving() -> tuple[Scheduler, GraphExecutor]:
    """A ladder as fine as a GPU's, and a pool that never runs out."""
    blocks = LENGTH // BLOCK_SIZE
    decode = tuple(Bucket(count, count, blocks) for count in (1, 2, 4, *range(8, SEQUENCES + 1, 8)))
    buckets = Buckets(decode, prefill=(), any_shape=True)
    spec = KVSpec(layers=1, heads=1, head_dim=8, dtype="float32", block_size=BLOCK_SIZE)
    sampling = SamplingTable(SEQUENCES + 1, 8, (2,))
    device = Nothing()
    executor = GraphExecutor(
        Blank(),
        device,
        StateTable(SEQUENCES, LENGTH, BLOCK_SIZE, sampling=sampling, torch_device="cpu"),
        capabilities=Capabilities(
            compute_dtypes=("float32",), kv_dtypes=("float32",), asynchronous=True, samples_in_program=True
        ),
        ops=Ops(),
        spec=spec,
        num_blocks=SEQUENCES * blocks,
        kv=device.allocate_kv(spec, 0),
        buckets=buckets,
        name="nothing",
    )
    scheduler = Scheduler(
        pool=BlockPool(SEQUENCES * blocks, BLOCK_SIZE, prefix_caching=False),
        max_sequences=SEQUENCES,
        max_length=LENGTH,
        max_batch_tokens=8192,
        max_prefill_chunk=None,
        max_waiting_requests=SEQUENCES,
        max_waiting_tokens=1 << 40,
        eos_token_ids=(2,),
        buckets=buckets,
        mixes_prefill_and_decode=True,
        clock=time.monotonic,
        seed=0,
    )
    return scheduler, executor


class Stopwatch:
    """Microseconds of named parts."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def __call__(self, name: str, part: Callable[..., Any], *arguments: object) -> Any:
        began = time.perf_counter()
        result = part(*arguments)
        self.times.setdefault(name, []).append(1e6 * (time.perf_counter() - began))
        return result


def decode(rows: int, context: int, params: SamplingParams) -> dict[str, list[float]]:
    """Times of steady decoding."""
    scheduler, executor = serving()
    encoder = msgspec.msgpack.Encoder()
    for index in range(rows):
        scheduler.submit(Submit(RequestId(index), [3] * context, params))
    watch = Stopwatch()
    landing = None
    for _ in range(STEPS + rows * context // 8192 + 2):
        batch = watch("schedule", scheduler.schedule)
        flying = batch, watch("execute", executor.execute, batch)
        if landing is not None:
            result = watch("result", landing[1].result)
            deltas = watch("commit", scheduler.commit, landing[0], result)
            output = StepOutput(0, deltas, scheduler.stats(), executor.step_seconds(batch))
            watch("encode", encoder.encode, output)
        landing = flying
    return {name: times[-STEPS:] for name, times in watch.times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--drawn", action="store_true", help="temperature, top_k and top_p instead of greedy")
    given = parser.parse_args()
    wish = {"temperature": 0.8, "top_k": 50, "top_p": 0.9} if given.drawn else {}
    params = SamplingParams(max_tokens=STEPS * 2, ignore_eos=True, **wish)
    for rows in ROWS:
        times = decode(rows, given.context, params)
        parts = ", ".join(f"{name} {statistics.median(times[name]):.0f}" for name in times)
        total = statistics.median(map(sum, zip(*times.values(), strict=True)))
        print(f"{rows:4} rows: {total:5.0f} us a step: {parts}")


if __name__ == "__main__":
    main()
