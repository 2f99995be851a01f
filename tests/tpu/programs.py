"""The executor's own programs as StableHLO: recorded while it warms up on XLA's host device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch_xla.core import xla_model

from mainspring.backends.tpu.cache import BlockMajorKV
from mainspring.backends.tpu.device import TpuDevice
from mainspring.backends.tpu.vendor import TorchXla
from mainspring.core.backend import AttentionPlan, KVSpec, Program
from mainspring.core.batch import Bucket
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
    """Everything wanted has been recorded; what is pending cannot run here."""


class Recorder(TpuDevice):
    """Records each bucket's program when it is first run. With `kernel` decodes hold the Pallas kernel, which only a
    TPU runs: the first of them ends the warm-up.
    """

    def __init__(self, by_hand: dict[str, tuple[int, ...]], *, kernel: bool = False) -> None:
        vendor = TorchXla()
        vendor.exact_products()
        super().__init__(vendor, 0, by_hand, kernel=kernel)
        self.recorded: dict[tuple[Bucket, bool], Recorded] = {}
        self._kernel_ends = kernel
        self._kv: BlockMajorKV | None = None

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> BlockMajorKV:
        self._kv = super().allocate_kv(spec, num_blocks)
        return self._kv

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        assert bucket is not None

        def run(inputs: StepTensors, plan: AttentionPlan) -> Any:
            results = program(inputs, plan)
            if (key := (bucket, plan.decode)) not in self.recorded:
                assert self._kv is not None
                outputs = [part for part in results if part is not None]
                text = xla_model.get_stablehlo([*outputs, *self._kv.keys, *self._kv.values])
                self.recorded[key] = Recorded(bucket, plan.decode, text)
            if plan.decode and self._kernel_ends:
                raise Enough
            return results

        return run


def record(model: str, by_hand: dict[str, tuple[int, ...]], *, kernel: bool, dtype: str, **sizes: Any) -> list[Recorded]:
    """The programs of a model with dummy weights."""
    device = Recorder(by_hand, kernel=kernel)
    config = EngineConfig(model=model, backend="tpu", dtype=dtype, load_format="dummy", **sizes)  # type: ignore[arg-type]
    try:
        open_in_process(config, device).executor.close()
    except Enough:
        device.close()
    finally:
        torch.set_grad_enabled(True)
    return list(device.recorded.values())
