"""One opened device of a compiler that takes static shapes, whoever made it: what follows from its `Runtime` alone.

Torch is imported in methods: shells are imported where devices are only listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from mainspring.backends.bucketed.ladders import Rungs, ladders
from mainspring.core.backend import AttentionMetadata, AttentionPlan, Device, KVSpec, Program, ShapeLimits
from mainspring.core.batch import Bucket, Buckets

if TYPE_CHECKING:
    from mainspring.backends.bucketed.cache import BlockMajorKV


class Runtime(Protocol):
    """What a vendor's software does for every step."""

    @property
    def lazy(self) -> bool:
        """Whether ops gather until `flush`."""
        ...

    def synchronize(self) -> None: ...
    def flush(self) -> None: ...
    def compilations(self) -> int | None: ...
    def compile(self, program: Program) -> Program: ...


class BucketedDevice(Device):
    """Shells add memory, ops and names."""

    def __init__(self, runtime: Runtime, by_hand: Mapping[str, tuple[int, ...]], climb: Rungs) -> None:
        import torch

        # A lazy tensor made outside of inference mode has no views inside: this thread stays inside until `close`.
        self._mode = ExitStack()
        if runtime.lazy:
            self._mode.enter_context(torch.inference_mode())
        self._runtime = runtime
        self._by_hand = by_hand
        self._climb = climb

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> BlockMajorKV:
        """Heads outside tokens, and one block more that padding is written to."""
        from mainspring.backends.bucketed.cache import BlockMajorKV

        return BlockMajorKV.allocate(spec, num_blocks, self.torch_device, self.flush)

    def synchronize(self) -> None:
        """Enqueues what is pending and waits for it."""
        self._runtime.synchronize()

    def flush(self) -> None:
        """Ends a lazy graph; each distinct one is compiled once."""
        self._runtime.flush()

    def compilations(self) -> int:
        """As the runtime counts them; 0 where it does not."""
        return self._runtime.compilations() or 0

    def close(self) -> None:
        """Leaves inference mode; the runtime lets go of the device when the process ends."""
        self._mode.close()

    def prepare_attention(self, metadata: AttentionMetadata, kv: BlockMajorKV) -> AttentionPlan:
        """Where tokens stand, in the shapes of the bucket."""
        from mainspring.backends.bucketed.steps import plan_step

        return plan_step(metadata, kv)

    def buckets(self, limits: ShapeLimits) -> Buckets | None:
        """Ladders up to the limits; everything has a bucket."""
        return ladders(limits, self._by_hand, self._climb)

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        """torch.compile, or a lazy graph that needs no more than its flush."""
        return self._runtime.compile(program)
