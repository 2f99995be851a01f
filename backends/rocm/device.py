"""AMD GPUs as a backend: how they are found, what they declare, and how one is opened.

torch reaches them by the names it has for NVIDIA's (docs.pytorch.org, "HIP (ROCm) semantics"): `torch.cuda`, devices
`cuda:0`, graphs `CUDAGraph`, collectives `nccl`, which is RCCL. Torch is imported when a device is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mainspring.backends.rocm.chips import CHIPS
from mainspring.backends.rocm.driver import Gpu, gpus, visible
from mainspring.backends.torch_gpu.device import GpuDevice
from mainspring.backends.torch_gpu.options import check_options
from mainspring.backends.torch_gpu.shell import capabilities, missing_software
from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, Unavailable
from mainspring.core.errors import BackendError

if TYPE_CHECKING:
    from mainspring.core.config import EngineConfig

REMEDY = (
    "install torch's ROCm build and Triton from PyTorch's own index (pytorch.org says which), then mainspring[rocm]"
)


def _visible_gpus() -> list[Gpu]:
    # HIP reads its switches from the environment, and indices must be those that torch will use.
    return visible(gpus(), os.environ)


def _missing_software() -> str:
    return missing_software("hip", "ROCm")


class RocmBackend(Backend):
    """Answers questions about GPUs by the kernel driver's word alone."""

    name = "rocm"
    contract_version = 1
    preference = 100

    def __init__(
        self,
        find: Callable[[], list[Gpu]] = _visible_gpus,
        missing: Callable[[], str] = _missing_software,
    ) -> None:
        self._find = find
        self._missing = missing

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The GPUs whose architecture kernels were compiled for."""
        if reason := self._missing():
            return Unavailable(reason, REMEDY)
        found = self._find()
        if not found:
            return Unavailable(
                "the amdgpu driver shows no GPU",
                "install the driver, or pass /dev/kfd and /dev/dri into the container, and look at HIP_VISIBLE_DEVICES",
            )
        fitting = [(index, gpu) for index, gpu in enumerate(found) if gpu.arch in CHIPS]
        if not fitting:
            return Unavailable(
                f"kernels were not compiled for {found[0].arch}", f"use one of {', '.join(CHIPS)}, or --backend cpu"
            )
        return [DeviceInfo(index, f"AMD GPU {gpu.arch}", gpu.arch, gpu.total_bytes, gpu.uuid) for index, gpu in fitting]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """As on any of torch's GPUs. Caches of 8 bits wait for scales in the kernels."""
        # AMD's compiler takes every kernel (L3), and their numerics hold in Triton's interpreter (L4).
        return capabilities(collectives="nccl", verified="L4")

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens a GPU; the device becomes this process's current one."""
        check_options(options.backend_options)
        import torch

        if torch.version.hip is None or not torch.cuda.is_available():
            raise BackendError(f"torch {torch.__version__} cannot use ROCm here; {REMEDY}")
        torch.cuda.set_device(index)
        return RocmDevice(index, captures=options.backend_options.get("graphs", "on") == "on")


class RocmDevice(GpuDevice):
    """One opened AMD GPU. Its linear layers are AMD's libraries'."""

    def __init__(self, index: int, *, captures: bool = True) -> None:
        import torch

        from mainspring.backends.rocm.tiles import decode_tile, prefill_tile
        from mainspring.backends.torch_gpu.runtime import Runtime
        from mainspring.backends.torch_gpu.tuning import Tuning

        card = torch.cuda.get_device_properties(index)
        # As HIP says it: gfx942:sramecc+:xnack-.
        self._arch = card.gcnArchName.split(":")[0]
        if self._arch not in CHIPS:
            raise BackendError(f"kernels were not compiled for {self._arch}; use one of {', '.join(CHIPS)}")
        chip = CHIPS[self._arch]
        torch.backends.cuda.preferred_blas_library(chip.library)
        runtime = Runtime("cuda", torch.cuda, torch.cuda.CUDAGraph, {"capture_error_mode": "thread_local"}, lends=True)
        tuning = Tuning(
            card.multi_processor_count,
            prefill=lambda tokens, head_dim, group, dtype: prefill_tile(chip, head_dim, group, dtype),
            decode=partial(decode_tile, chip),
        )
        super().__init__(runtime, index, tuning, captures=captures)

    def artifact_key(self) -> str:
        """What Triton's and hipBLASLt's choices depend on."""
        import torch

        return f"torch-{torch.__version__}-hip-{torch.version.hip}-{self._arch}"
