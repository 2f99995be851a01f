"""Intel GPUs as a backend: how they are found, what they declare, and how one is opened.

torch itself has the device (`torch.xpu`), its collectives (`xccl`) and, from 2.13 on, its graphs (`XPUGraph`).
Intel's extension (IPEX) ended with torch 2.8 and is not used. Torch is imported when a device is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mainspring.backends.torch_gpu.device import GpuDevice
from mainspring.backends.torch_gpu.options import check_options
from mainspring.backends.torch_gpu.shell import capabilities, missing_software
from mainspring.backends.xpu.driver import Gpu, gpus
from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, Unavailable
from mainspring.core.errors import BackendError

if TYPE_CHECKING:
    from mainspring.core.config import EngineConfig

REMEDY = (
    "install torch's XPU build and its Triton from PyTorch's own index (pytorch.org says which), then mainspring[xpu]"
)


def _missing_software() -> str:
    return missing_software("xpu", "XPU")


class XpuBackend(Backend):
    """Answers questions about GPUs by the PCI bus alone."""

    name = "xpu"
    contract_version = 1
    preference = 100

    def __init__(self, find: Callable[[], list[Gpu]] = gpus, missing: Callable[[], str] = _missing_software) -> None:
        self._find = find
        self._missing = missing

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The GPUs that are known."""
        if reason := self._missing():
            return Unavailable(reason, REMEDY)
        found = self._find()
        if not found:
            return Unavailable(
                "the PCI bus shows no Intel GPU that is known here",
                "pass /dev/dri into the container, or use --backend cpu",
            )
        return [DeviceInfo(index, gpu.name, gpu.arch, gpu.total_bytes) for index, gpu in enumerate(found)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """As on any of torch's GPUs; graphs where its torch has them, which only an opened device knows."""
        # Intel's compilers take every kernel for PVC and DG2 (L3), whose numerics hold in the interpreter (L4).
        return capabilities(collectives="xccl", verified="L4" if device.arch in ("pvc", "dg2") else "L0")

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens a GPU; the device becomes this process's current one."""
        check_options(options.backend_options)
        import torch

        if not torch.xpu.is_available():
            raise BackendError(f"torch {torch.__version__} cannot use an XPU here; {REMEDY}")
        torch.xpu.set_device(index)
        return XpuDevice(index, captures=options.backend_options.get("graphs", "on") == "on")


class XpuDevice(GpuDevice):
    """One opened Intel GPU. Its linear layers are oneDNN's."""

    def __init__(self, index: int, *, captures: bool = True) -> None:
        import torch

        from mainspring.backends.torch_gpu.runtime import Runtime
        from mainspring.backends.torch_gpu.tuning import Tuning
        from mainspring.backends.xpu.tiles import decode_tile, prefill_tile

        self._card = torch.xpu.get_device_properties(index)
        # Since torch 2.13; its graphs give no tensors of an address, so each keeps its own results.
        graph = vars(torch.xpu).get("XPUGraph")
        runtime = Runtime("xpu", torch.xpu, graph)
        tuning = Tuning(self._card.gpu_subslice_count, prefill=prefill_tile, decode=decode_tile)
        super().__init__(runtime, index, tuning, captures=captures)

    def artifact_key(self) -> str:
        """What Triton's and oneDNN's choices depend on."""
        import torch

        return f"torch-{torch.__version__}-xpu-{self._card.name}-{self._card.driver_version}".replace(" ", "-")
