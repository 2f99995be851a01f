"""The executor's own programs as StableHLO: taken while it warms up on XLA's host device, and not run there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch_xla.core import xla_model

from mainspring.backends.bucketed.cache import BlockMajorKV
from mainspring.backends.tpu.device import TpuDevice
from mainspring.backends.tpu.vendor import TorchXla
from mainspring.core.backend import AttentionPlan, KVSpec, Program, ShapeLimits
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.config import EngineConfig
from mainspring.core.execution.inputs import StepTensors
from tests.support.in_process import open_in_process


@dataclass(frozen=True, slots=True)
class Recorded:
    """One program of a bucket."""

    bucket: Bucket
    decode: bool
    stablehlo: str


class Enough(Exception):
    """Every bucket has been recorded."""


class Recorder(TpuDevice):
    """Records each bucket's program and answers with zeros in its stead. With `kernel` decodes hold the Pallas kernel,
    which only a TPU runs.
    """

    def __init__(self, by_hand: dict[str, tuple[int, ...]], *, kernel: bool) -> None:
        super().__init__(TorchXla(), 0, by_hand, kernel=kernel)
        self.recorded: dict[tuple[Bucket, bool], Recorded] = {}
        self._caches: tuple[torch.Tensor, ...] = ()
        self._wanted = 0

    def buckets(self, limits: ShapeLimits) -> Buckets | None:
        buckets = super().buckets(limits)
        assert buckets is not None
        self._wanted = len(buckets.decode) + len(buckets.prefill)
        return buckets

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> BlockMajorKV:
        kv = super().allocate_kv(spec, num_blocks)
        self._caches = (*kv.keys, *kv.values)
        return kv

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        assert bucket is not None

        def run(inputs: StepTensors, plan: AttentionPlan) -> Any:
            results = program(inputs, plan)
            outputs = [part for part in results if part is not None]
            text = xla_model.get_stablehlo([*outputs, *self._caches])
            self.recorded[bucket, plan.decode] = Recorded(bucket, plan.decode, text)
            # What is pending is dropped: its results by new ones, its writes by others.
            for cache in self._caches:
                cache.zero_()
            if len(self.recorded) == self._wanted:
                raise Enough
            return [None if part is None else torch.zeros(part.shape, device=part.device) for part in results]

        return run


def record(config: EngineConfig, by_hand: dict[str, tuple[int, ...]], *, kernel: bool) -> list[Recorded]:
    """The programs of every bucket."""
    device = Recorder(by_hand, kernel=kernel)
    try:
        open_in_process(config, device)
    except Enough:
        pass
    finally:
        device.close()
    return list(device.recorded.values())
