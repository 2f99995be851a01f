"""Backends on the host that are wrong in one thing, where one op cannot show it: programs, buckets, memory, ranks.

Each is a class without arguments, so that ranks in other processes can make it too.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mainspring.backends.sim import SimBackend
from mainspring.core.backend import (
    AttentionMetadata,
    Backend,
    Capabilities,
    Communicator,
    Device,
    DeviceInfo,
    Executor,
    ExecutorRequest,
    KVSpec,
    Pending,
    Program,
    ShapeLimits,
)
from mainspring.core.batch import Batch, Bucket, Buckets, StepResult
from mainspring.core.config import EngineConfig
from mainspring.core.execution.inputs import StepTensors
from mainspring.core.ops.attention import PagedKV, attention, kv_write
from mainspring.core.parallel.communicator import TorchCommunicator
from tests.support.reference_device import ReferenceDevice

PLAIN = Capabilities(
    compute_dtypes=("float32",), kv_dtypes=("float32",), block_sizes=(16,), collectives="gloo", verified="L5"
)


class Sound(Backend):
    """The reference as a backend, with nothing wrong. The others change its device or its word."""

    name = "sound"
    contract_version = 1
    device: ClassVar[type[Device]] = ReferenceDevice
    word: ClassVar[Capabilities] = PLAIN

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(0, "host", "any", 1 << 34)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        return self.word

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        return self.device()


# --- programs ---


def ladder(limits: ShapeLimits) -> Buckets:
    """Two decode buckets of the same tokens and another width; everything else in its own shape."""
    narrow = max(1, limits.blocks // 2)
    rows = limits.sequences
    return Buckets((Bucket(1, 1, limits.blocks), Bucket(rows, rows, narrow), Bucket(rows, rows, limits.blocks)), ())


class CapturingDevice(ReferenceDevice):
    """Records a program's first run as a graph would: from then on, what it computes depends on its buffers alone.

    A replay is the program on what it was captured with. It is no run in Python for the kit, which counts those of the
    program that it hands in, so that program is unwrapped here from what counts it.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, Callable[[], Any]] = {}

    def buckets(self, limits: ShapeLimits) -> Buckets:
        return ladder(limits)

    def key(self, bucket: Bucket) -> Any:
        return bucket

    def keep(self, inputs: StepTensors, plan: AttentionMetadata) -> tuple[StepTensors, AttentionMetadata]:
        return inputs, plan

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        if bucket is None:
            return program
        key = self.key(bucket)
        self._graphs.pop(key, None)

        def run(inputs: StepTensors, plan: AttentionMetadata) -> Any:
            if key not in self._graphs:
                kept = self.keep(inputs, plan)
                program(inputs, plan)
                self._graphs[key] = lambda: unwatched(program)(*kept)
            return self._graphs[key]()

        return run


def unwatched(program: Program) -> Program:
    """The executor's program inside whatever the kit put around it."""
    for cell in getattr(program, "__closure__", None) or ():
        if callable(cell.cell_contents):
            inner: Program = unwatched(cell.cell_contents) if cell.cell_contents is not program else program
            return inner
    return program


class Capturing(Sound):
    device = CapturingDevice
    word = replace(PLAIN, graphs="capture")


class StaleKeyDevice(CapturingDevice):
    """Graphs are kept by tokens, and two buckets have as many."""

    def key(self, bucket: Bucket) -> Any:
        return bucket.tokens


class StaleKey(Capturing):
    device = StaleKeyDevice


class BakedIntegersDevice(CapturingDevice):
    """Whatever the first step's integers were stays in the graph."""

    def keep(self, inputs: StepTensors, plan: AttentionMetadata) -> tuple[StepTensors, AttentionMetadata]:
        return inputs, replace(plan, kv_length=plan.kv_length.clone(), block_table=plan.block_table.clone())


class BakedIntegers(Capturing):
    device = BakedIntegersDevice


class NeverCapturesDevice(ReferenceDevice):
    def buckets(self, limits: ShapeLimits) -> Buckets:
        return ladder(limits)


class NeverCaptures(Capturing):
    """Declares graphs and runs every step in Python."""

    device = NeverCapturesDevice


class CompilesAgainDevice(ReferenceDevice):
    """A lazy compiler for which a sequence that grew is another program."""

    def __init__(self) -> None:
        self._longest = 0
        self._built = 0

    def prepare_attention(self, metadata: AttentionMetadata, kv: PagedKV) -> AttentionMetadata:
        longest = max(metadata.kv_length.tolist(), default=0)
        self._built += longest != self._longest
        self._longest = longest
        return metadata

    def compilations(self) -> int:
        return self._built


class CompilesAgain(Sound):
    device = CompilesAgainDevice


class NoBucketHoldsAllDevice(ReferenceDevice):
    """The last bucket is narrower than the one before."""

    def buckets(self, limits: ShapeLimits) -> Buckets:
        return Buckets((Bucket(8, 8, 64), Bucket(16, 16, 8)), ())


class NoBucketHoldsAll(Sound):
    device = NoBucketHoldsAllDevice


class BucketedWithoutBuckets(Sound):
    word = replace(PLAIN, shapes="bucketed")


class OtherShapeDevice(ReferenceDevice):
    """Has buckets, and a program for one of them only."""

    def buckets(self, limits: ShapeLimits) -> Buckets:
        return Buckets((Bucket(8, 8, 8), Bucket(16, 16, 8)), (Bucket(max(limits.tokens, 16), 16, 8),))

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        def run(inputs: StepTensors, plan: AttentionMetadata) -> Any:
            if bucket is not None and bucket.tokens == 16:
                raise ValueError(f"no program for {bucket}")
            return program(inputs, plan)

        return run


class OtherShape(Sound):
    device = OtherShapeDevice
    word = replace(PLAIN, shapes="bucketed", mixes_prefill_and_decode=False)


# --- the cache, between steps ---


class ReadsFreedBlocksDevice(ReferenceDevice):
    """Masks what lies past a sequence's end by multiplying with zero, which NaN survives."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        def wrong(q: Tensor, k: Any, v: Any, kv: PagedKV, layer: int, plan: Any, **named: Any) -> Tensor:
            out = attention(q, k, v, kv, layer, plan, **named)
            last = plan.block_table.gather(1, ((plan.kv_length - 1).clamp(min=0) // 16)[:, None].long())
            tail = kv.values[layer][last[:, 0].long()].sum((1, 2, 3)) * 0
            rows = torch.repeat_interleave(plan.query_start.diff().long())
            out[: len(rows)] += tail[rows, None, None]
            return out

        return {"attention": wrong}


class ReadsFreedBlocks(Sound):
    device = ReadsFreedBlocksDevice


class ForgetsPrefixesDevice(ReferenceDevice):
    """Attends to the step's own tokens: right for whole prompts, wrong for chunks, decodes and cached prefixes."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        def wrong(q: Tensor, k: Any, v: Any, kv: PagedKV, layer: int, plan: Any, **named: Any) -> Tensor:
            window = int(plan.query_start.diff().max()) if len(q) else None
            return attention(q, k, v, kv, layer, plan, **{**named, "window": window or None})

        return {"attention": wrong}


class ForgetsPrefixes(Sound):
    device = ForgetsPrefixesDevice


# --- offsets ---


NO_RESERVE = 0x4000
"""Linux's MAP_NORESERVE, which the module mmap names from Python 3.13 on."""


def reserved_cache(spec: KVSpec, num_blocks: int) -> PagedKV:
    """A cache of any size whose memory is there when it is touched."""
    shape = (num_blocks, spec.block_size, spec.heads, spec.head_dim)
    dtype = getattr(torch, spec.dtype)
    size = torch.Size(shape).numel() * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE

    def layer() -> Tensor:
        return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype).view(shape)

    return PagedKV(tuple(layer() for _ in range(spec.layers)), tuple(layer() for _ in range(spec.layers)))


class VastDevice(ReferenceDevice):
    def memory(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        return reserved_cache(spec, num_blocks)


class Vast(Sound):
    device = VastDevice


def wrapped(blocks: Tensor, kv: PagedKV) -> Tensor:
    """The block that an element offset of 32 bits leads to, counted from the cache's end where it is negative."""
    stride = kv.keys[0][0].numel()
    offsets = (blocks.long() * stride + 2**31) % 2**32 - 2**31
    return (offsets // stride) % len(kv.keys[0])


class ShortReadsDevice(VastDevice):
    def ops(self) -> Mapping[str, Callable[..., Any]]:
        def wrong(q: Tensor, k: Any, v: Any, kv: PagedKV, layer: int, plan: Any, **named: Any) -> Tensor:
            if k is not None:
                kv_write(k, v, kv, layer, plan.slot)
            return attention(
                q, None, None, kv, layer, replace(plan, block_table=wrapped(plan.block_table, kv)), **named
            )

        return {"attention": wrong}


class ShortReads(Sound):
    """Attention computes where to read in 32 bits."""

    device = ShortReadsDevice


class ShortWritesDevice(VastDevice):
    def ops(self) -> Mapping[str, Callable[..., Any]]:
        def wrong(k: Tensor, v: Tensor, kv: PagedKV, layer: int, slot: Tensor) -> None:
            size = kv.keys[0].shape[1]
            kv_write(k, v, kv, layer, torch.where(slot < 0, slot, wrapped(slot // size, kv) * size + slot % size))

        return {"kv_write": wrong}


class ShortWrites(Sound):
    """kv_write computes where to write in 32 bits."""

    device = ShortWritesDevice


class ShortCopiesDevice(VastDevice):
    def copy_blocks(self, kv: PagedKV, pairs: Sequence[tuple[int, int]]) -> None:
        source, destination = wrapped(torch.tensor(pairs), kv).T.tolist()
        kv.copy_blocks(list(zip(source, destination, strict=True)))


class ShortCopies(Sound):
    device = ShortCopiesDevice


# --- small calls ---


class NegativeMemoryDevice(ReferenceDevice):
    def memory(self) -> tuple[int, int]:
        return 1 << 31, 1 << 30


class NegativeMemory(Sound):
    """Says (total, free)."""

    device = NegativeMemoryDevice


class UnknownOpDevice(ReferenceDevice):
    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"rmsnorm": torch.nn.functional.rms_norm}


class UnknownOp(Sound):
    device = UnknownOpDevice


# --- an executor of its own ---


class Crosstalk(SimBackend):
    """Tokens depend on how many rows a step has."""

    def executor(self, request: ExecutorRequest) -> Executor:  # type: ignore[override]
        return _Crosstalk(super().executor(request))


class _Crosstalk:
    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, batch: Batch) -> Pending:
        return _Shifted(self._inner.execute(batch), len(batch.rows) - 1)


class _Shifted:
    def __init__(self, inner: Pending, by: int) -> None:
        self._inner, self._by = inner, by

    def done(self) -> bool:
        return self._inner.done()

    def result(self) -> StepResult:
        result = self._inner.result()
        result.tokens[:] = [(token + self._by) % 128 for token in result.tokens]
        return result


# --- ranks ---


class Confused(TorchCommunicator):
    """Averages instead of adding, gathers along another dimension, and gives each rank the next one's share."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return super().all_reduce(x) / self.size

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        return super().all_gather(x, 0)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        return super().reduce_scatter(x.roll(x.shape[dim] // self.size, dims=dim), dim)


class ConfusedRanksDevice(ReferenceDevice):
    def communicator(self, ranks: Sequence[int]) -> Communicator:
        return Confused(ranks)


class ConfusedRanks(Sound):
    """Three wrong collectives, because starting ranks takes seconds."""

    device = ConfusedRanksDevice
