"""Time of one decode step of a SmolLM2-135M shape on the CPU backend's ops, where it goes, and its floors here: memory
read once, float32 multiplied at the rate of a large product. 30 layers, tied head, random weights; no scheduler and no
sampler. Minima, because machines are never quiet.

python benchmarks/cpu_step.py [--threads 1 2] [--batch 1 8 32] [--context 160] [--scheme float32]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mainspring.backends.cpu import CpuBackend
from mainspring.core.backend import AttentionMetadata, Device, KVCache, KVSpec, PackedLinear, WeightScheme, unquantized
from mainspring.core.config import Dtype, EngineConfig
from mainspring.core.ops import Ops, resolve
from mainspring.core.quantization import SCHEMES as QUANTIZED
from mainspring.core.quantization import head_scheme

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152
BLOCK_SIZE = 32

SCHEMES: Mapping[str, WeightScheme] = {
    "float32": unquantized("float32"),
    "bfloat16": unquantized("bfloat16"),
    **QUANTIZED,
}


class Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def timed(self, kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, its time booked."""

        def booked(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            result = work(*arguments, **named)
            self.spent[kind] = self.spent.get(kind, 0.0) + time.perf_counter() - begun
            return result

        return booked


@dataclass(frozen=True, slots=True)
class Model:
    """Packed weights of every layer (qkv, out, gate and up, down) and what all share."""

    layers: tuple[list[PackedLinear], ...]
    head: PackedLinear
    table: Tensor
    norm: Tensor
    rope: Tensor

    @classmethod
    def random(cls, device: Device, scheme: WeightScheme) -> Model:
        """Weights that keep activations near 1."""
        dtype = torch.bfloat16 if scheme.weight == "bfloat16" else torch.float32

        def linear(out_features: int, in_features: int) -> PackedLinear:
            weight = torch.randn(out_features, in_features, dtype=dtype) * in_features**-0.5
            return device.pack(scheme, {"weight": weight})

        qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        shapes = ((qkv, HIDDEN), (HIDDEN, HEADS * HEAD_DIM), (2 * INNER, HIDDEN), (HIDDEN, INNER))
        layers = tuple([linear(*shape) for shape in shapes] for _ in range(LAYERS))
        table = torch.randn(VOCABULARY, HIDDEN, dtype=dtype)
        plain = unquantized("bfloat16" if dtype == torch.bfloat16 else "float32")
        head = device.pack(head_scheme(scheme, plain), {"weight": table})
        return cls(layers, head, table, torch.ones(HIDDEN, dtype=dtype), torch.randn(8192, HEAD_DIM))

    def packed(self) -> list[PackedLinear]:
        """All weights that are multiplied by."""
        return [self.head, *(packed for layer in self.layers for packed in layer)]

    def step(self, device: Device, ops: Ops, kv: KVCache, metadata: AttentionMetadata) -> Tensor:
        """Logits of one decoding step."""
        plan = device.prepare_attention(metadata, kv)
        positions = metadata.kv_length - 1
        x = ops.embedding(positions, self.table)
        residual = torch.zeros_like(x)
        for layer, (qkv, out, gate_up, down) in enumerate(self.layers):
            x, residual = ops.add_rms_norm(x, residual, self.norm, 1e-5)
            heads = device.quantized_linear(x, qkv).view(len(x), -1, HEAD_DIM)
            q, k = ops.rope(heads[:, :HEADS], heads[:, HEADS:-KV_HEADS], positions, self.rope)
            mixed = ops.attention(q, k, heads[:, -KV_HEADS:], kv, layer, plan, scale=HEAD_DIM**-0.5)
            x = device.quantized_linear(mixed.flatten(1), out)
            x, residual = ops.add_rms_norm(x, residual, self.norm, 1e-5)
            x = device.quantized_linear(ops.silu_mul(device.quantized_linear(x, gate_up)), down)
        x, _ = ops.add_rms_norm(x, residual, self.norm, 1e-5)
        return device.quantized_linear(x, self.head)


def decode_metadata(batch: int, context: int, block_size: int) -> AttentionMetadata:
    """Rows that each hold `context` tokens, in shuffled blocks."""
    width = -(-context // block_size)
    table = (torch.randperm(batch * width) + 1).view(batch, width).int()
    slot = table[:, (context - 1) // block_size].long() * block_size + (context - 1) % block_size
    lengths = torch.full((batch,), context, dtype=torch.int32)
    return AttentionMetadata(torch.arange(batch + 1, dtype=torch.int32), lengths, table, slot, 1, context, batch)


def best(work: Callable[[], object], seconds: float) -> float:
    """The shortest of the runs that fit in the time."""
    work()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - begun)
    return shortest


def shares(model: Model, device: Device, kv: KVCache, metadata: AttentionMetadata) -> str:
    """What each op takes of one step, in ms; the least of several looks at each."""
    least: dict[str, float] = {}
    for _ in range(8):
        clock = Clock()
        plain = resolve(device.ops())
        ops = Ops(**{op.name: clock.timed(op.name, getattr(plain, op.name)) for op in fields(Ops)})
        model.step(device, ops, kv, metadata)
        for kind, seconds in clock.spent.items():
            least[kind] = min(least.get(kind, seconds), seconds)
    return ", ".join(f"{kind} {seconds * 1e3:.1f}" for kind, seconds in least.items())


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine does at best, all threads together."""

    bandwidth: float
    """Bytes read a second."""
    rate: float
    """float32 operations a second in a large product."""

    @classmethod
    def measured(cls, seconds: float) -> Limits:
        memory, matrix = torch.zeros(1 << 26), torch.ones(1024, 1024)
        return cls(memory.numel() * 4 / best(memory.sum, seconds), 2 * 1024**3 / best(lambda: matrix @ matrix, seconds))


def measure(model: Model, device: Device, metadata: AttentionMetadata, limits: Limits, seconds: float) -> str:
    """Time of the step and of its parts, in words."""
    dtype: Dtype = "bfloat16" if model.table.dtype == torch.bfloat16 else "float32"
    kv = device.allocate_kv(KVSpec(LAYERS, KV_HEADS, HEAD_DIM, dtype, BLOCK_SIZE), metadata.block_table.numel() + 1)
    ops = resolve(device.ops())
    step = best(lambda: model.step(device, ops, kv, metadata), seconds)
    tokens = len(metadata.slot) / step
    floors = f"reading {reads(model, metadata) / limits.bandwidth * 1e3:.1f}"
    floors += f", float32 {products(metadata) / limits.rate * 1e3:.1f}"
    return f"{step * 1e3:.1f} ms, {tokens:.1f} tokens/s ({shares(model, device, kv, metadata)} ms; floors: {floors} ms)"


def reads(model: Model, metadata: AttentionMetadata) -> float:
    """Bytes that a step must read once: weights, and keys and values of every token."""
    scales = 32  # bits of a group's scale and zero
    bits = [(p.scheme.bits + (scales / p.scheme.group_size if p.scheme.group_size else 0), p) for p in model.packed()]
    weights = sum(width * p.in_features * p.out_features / 8 for width, p in bits)
    return weights + 2 * LAYERS * KV_HEADS * HEAD_DIM * float(metadata.kv_length.sum()) * model.table.element_size()


def products(metadata: AttentionMetadata) -> float:
    """Floating-point operations of a step, with each multiply and add counted."""
    layer = HIDDEN * (HEADS + 2 * KV_HEADS) * HEAD_DIM + HEADS * HEAD_DIM * HIDDEN + 3 * HIDDEN * INNER
    linear = 2 * (LAYERS * layer + HIDDEN * VOCABULARY) * len(metadata.slot)
    return linear + 4 * LAYERS * HEADS * HEAD_DIM * float(metadata.kv_length.sum())


def main() -> None:
    """Prints one line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=160)
    parser.add_argument("--scheme", choices=SCHEMES, default="float32")
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    torch.manual_seed(0)
    for threads in given.threads:
        device = CpuBackend().open(0, 0, 1, EngineConfig(model="random", threads=threads))
        with torch.inference_mode():
            model, limits = Model.random(device, SCHEMES[given.scheme]), Limits.measured(given.seconds / 3)
            for batch in given.batch:
                line = measure(model, device, decode_metadata(batch, given.context, BLOCK_SIZE), limits, given.seconds)
                print(f"{given.scheme}, {threads} threads, batch {batch}, context {given.context}: {line}", flush=True)


if __name__ == "__main__":
    main()
