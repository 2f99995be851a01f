"""NVIDIA GPUs as a backend: what they declare, and the device that joins this folder's rooms.

Torch is imported in methods, when a device is open: listing backends must not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mainspring.backends.cuda.driver import DriverError, Gpu, gpus
from mainspring.backends.torch_gpu.device import GpuDevice
from mainspring.backends.torch_gpu.options import check_options
from mainspring.backends.torch_gpu.shell import capabilities, missing_software
from mainspring.core.backend import (
    Backend,
    Capabilities,
    Device,
    DeviceInfo,
    PackedLinear,
    Unavailable,
    WeightScheme,
)
from mainspring.core.errors import BackendError

if TYPE_CHECKING:
    import torch

    from mainspring.core.config import EngineConfig, KVDtype

OLDEST = (8, 0)
"""Compute capability from which bfloat16 and asynchronous copies to shared memory exist; kernels rely on both."""

FIRST_WITH_FLOAT8 = 89
"""Architecture from which 8-bit floats are converted in one instruction (Ada, Hopper)."""
MEASURED = (9, 0)
"""Compute capability that quantized products' tiles were measured on, and whose shared memory they take."""
FLOAT8, ROW_SCALES = (8, 9), (9, 0)
"""Compute capability from which matrices of float8 are multiplied, and torch's product takes a scale a row."""
FLOAT8_LIBRARY_ROWS = 32


def _missing_software() -> str:
    return missing_software("cuda", "CUDA")


class CudaBackend(Backend):
    """Answers questions about GPUs by the driver's word alone."""

    name = "cuda"
    contract_version = 1
    preference = 100

    def __init__(
        self,
        find: Callable[[], list[Gpu]] = gpus,
        missing: Callable[[], str] = _missing_software,
    ) -> None:
        self._find = find
        self._missing = missing

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The GPUs that are new enough."""
        if reason := self._missing():
            return Unavailable(reason, "pip install 'mainspring[cuda]'")
        try:
            found = self._find()
        except DriverError as error:
            return Unavailable(str(error), "install NVIDIA's driver, or pass the GPU into the container (--gpus all)")
        if not found:
            return Unavailable("the driver shows no GPU", "look at CUDA_VISIBLE_DEVICES and at nvidia-smi")
        fitting = [gpu for gpu in found if gpu.capability >= OLDEST]
        if not fitting:
            oldest = ".".join(map(str, OLDEST))
            return Unavailable(
                f"{found[0].name} has compute capability {'.'.join(map(str, found[0].capability))}",
                f"kernels need {oldest} (Ampere) or newer; use --backend cpu here",
            )
        return [
            DeviceInfo(gpu.index, gpu.name, f"sm_{gpu.capability[0]}{gpu.capability[1]}", gpu.total_bytes, gpu.uuid)
            for gpu in fitting
        ]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """The same for all generations taken, but for how far they were verified."""
        # On the hardware for Hopper. Other generations run the same source, and nobody has looked.
        narrow: tuple[KVDtype, ...] = ("float8_e4m3fn", "float8_e5m2")
        return capabilities(
            collectives="nccl",
            verified="L5" if device.arch == "sm_90" else "L0",
            narrow=narrow if int(device.arch.removeprefix("sm_")) >= FIRST_WITH_FLOAT8 else (),
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens a GPU; the device becomes this process's current one."""
        check_options(options.backend_options)
        import torch

        if not torch.cuda.is_available():
            raise BackendError(f"torch {torch.__version__} cannot use CUDA here; pip install 'mainspring[cuda]'")
        torch.cuda.set_device(index)
        return CudaDevice(index, captures=options.backend_options.get("graphs", "on") == "on")


class CudaDevice(GpuDevice):
    """One opened NVIDIA GPU: its linear layers are measured, and its kernels overlap where they can."""

    def __init__(self, index: int, *, captures: bool = True) -> None:
        import torch
        import triton

        from mainspring.backends.cuda.codes import OLDEST, reader_of
        from mainspring.backends.cuda.cublas import Cublas, CublasError
        from mainspring.backends.cuda.few_rows import FewRows
        from mainspring.backends.cuda.linear import Linears
        from mainspring.backends.cuda.overlap import overlap_of
        from mainspring.backends.cuda.runtime_compiler import CompileError, Compiler
        from mainspring.backends.cuda.tiles import experts_tile, prefill_tile
        from mainspring.backends.torch_gpu.quantized_tiles import (
            scaled_tile,
            small_scaled_tile,
            small_word_tile,
            word_tile,
        )
        from mainspring.backends.torch_gpu.runtime import Runtime
        from mainspring.backends.torch_gpu.tuning import Tuning

        card = torch.cuda.get_device_properties(index)
        processors, overlap = card.multi_processor_count, overlap_of((card.major, card.minor))
        reader = reader_of((card.major, card.minor))
        few_rows = None
        if (card.major, card.minor) >= OLDEST:
            with suppress(CompileError):
                compiler = Compiler(str(torch.version.cuda).partition(".")[0])
                few_rows = FewRows(compiler, (card.major, card.minor), processors)
        cublas = None
        with suppress(CublasError):
            cublas = Cublas()
        self._linears = Linears(overlap, processors, card.name, Path(triton.knobs.cache.dir), cublas=cublas)
        capture = {"capture_error_mode": "thread_local"}
        runtime = Runtime("cuda", torch.cuda, torch.cuda.CUDAGraph, capture, symmetric=True, lends=True)
        measured = (card.major, card.minor) == MEASURED
        tuning = Tuning(
            processors,
            prefill=prefill_tile,
            experts=experts_tile,
            overlap=overlap,
            few_rows=few_rows,
            reader=reader,
            words=word_tile if measured else small_word_tile,
            scaled=scaled_tile if measured else small_scaled_tile,
            float8=(card.major, card.minor) >= FLOAT8,
            float8_library_rows=FLOAT8_LIBRARY_ROWS if (card.major, card.minor) >= ROW_SCALES else None,
        )
        super().__init__(runtime, index, tuning, captures=captures)

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, torch.Tensor]) -> PackedLinear:
        """An unquantized weight as it is; its shape is remembered."""
        packed = super().pack(scheme, tensors)
        if scheme.bits >= 16:
            self._linears.add(packed.data)
        return packed

    def quantized_linear(self, x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
        """The kernel that was fastest for the shape, or the scheme's."""
        return self._linears(x, packed) if packed.scheme.bits >= 16 else super().quantized_linear(x, packed)

    def artifact_key(self) -> str:
        """What Triton's and cuBLAS's choices depend on."""
        import torch

        major, minor = torch.cuda.get_device_capability(self._index)
        return f"torch-{torch.__version__}-cuda-{torch.version.cuda}-sm_{major}{minor}"
