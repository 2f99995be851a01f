"""NVIDIA GPUs as a backend: what they declare, and the device that joins this folder's rooms.

Torch is imported in methods, when a device is open: listing backends must not load it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.backends.cuda.driver import DriverError, Gpu, gpus
from mainspring.core.backend import (
    AttentionMetadata,
    Backend,
    Capabilities,
    Device,
    DeviceInfo,
    Event,
    KVSpec,
    PackedLinear,
    Program,
    ShapeLimits,
    Unavailable,
    WeightScheme,
)
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    import torch

    from mainspring.backends.cuda.attention import StepPlan
    from mainspring.core.config import EngineConfig
    from mainspring.core.ops.attention import PagedKV

OLDEST = (8, 0)
"""Compute capability from which bfloat16 and asynchronous copies to shared memory exist; kernels rely on both."""
OPTIONS = {"graphs": ("on", "off")}
"""`--backend-option`, and the values it takes, the default first."""


def missing_software() -> str:
    """What of the software is not installed; empty when nothing is."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return "torch is not installed"
    if not (Path(torch.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return "the installed torch was built without CUDA"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


class CudaBackend(Backend):
    """Answers questions about GPUs by the driver's word alone."""

    name = "cuda"
    contract_version = 1
    preference = 100

    def __init__(self, find: Callable[[], list[Gpu]] = gpus, missing: Callable[[], str] = missing_software) -> None:
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
        return Capabilities(
            compute_dtypes=("bfloat16", "float16", "float32"),
            kv_dtypes=("bfloat16", "float16", "float32"),
            block_sizes=(32, 16, 64, 128),
            attention=frozenset({"sliding_window", "softcap", "sinks"}),
            graphs="capture",
            collectives="nccl",
            asynchronous=True,
            copies_async=True,
            samples_in_program=True,
            # On the hardware for Hopper. Other generations run the same source, and nobody has looked.
            verified="L5" if device.arch == "sm_90" else "L0",
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens a GPU; the device becomes this process's current one."""
        wrong = [unknown("backend option", key, OPTIONS) for key in options.backend_options if key not in OPTIONS] + [
            f"--backend-option {key}={value} is not known; use one of {', '.join(OPTIONS[key])}"
            for key, value in options.backend_options.items()
            if key in OPTIONS and value not in OPTIONS[key]
        ]
        if wrong:
            raise BackendError(wrong)
        import torch

        if not torch.cuda.is_available():
            raise BackendError(f"torch {torch.__version__} cannot use CUDA here; pip install 'mainspring[cuda]'")
        torch.cuda.set_device(index)
        return CudaDevice(index, captures=options.backend_options.get("graphs", "on") == "on")


class CudaDevice(Device):
    """One opened GPU. All work goes to the current stream, in the order it was given."""

    def __init__(self, index: int, *, captures: bool = True) -> None:
        import torch
        import triton

        from mainspring.backends.cuda.cublas import Cublas, CublasError
        from mainspring.backends.cuda.linear import Linears
        from mainspring.backends.cuda.overlap import overlap_of

        self.torch_device = f"cuda:{index}"
        self._index = index
        card = torch.cuda.get_device_properties(index)
        self._processors = card.multi_processor_count
        self._overlap = overlap_of((card.major, card.minor))
        cublas = None
        with suppress(CublasError):
            cublas = Cublas()
        self._linears = Linears(self._overlap, self._processors, card.name, Path(triton.knobs.cache.dir), cublas=cublas)
        self._capturer: Any = None
        if captures:
            from mainspring.backends.cuda.graphs import Capturer

            self._capturer = Capturer()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes; what torch holds in reserve without using it is given back first, and free."""
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._index)

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        """The reference layout: the heads of a token side by side, which copies and other attention libraries take."""
        from mainspring.core.ops.attention import PagedKV

        return PagedKV.allocate(spec, num_blocks, self.torch_device)

    def synchronize(self) -> None:
        """Waits for the GPU."""
        import torch

        torch.cuda.synchronize(self._index)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory, from torch's caching allocator."""
        import torch

        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def event(self) -> Event:
        """An event of the current stream."""
        import torch

        return torch.cuda.Event()

    def peak_bytes(self) -> int:
        """Of torch's allocator, since the last call."""
        import torch

        peak = torch.cuda.max_memory_allocated(self._index)
        torch.cuda.reset_peak_memory_stats(self._index)
        return peak

    def close(self) -> None:
        """Drops the captured graphs' memory; the driver takes back the rest when the process ends."""
        self._capturer = None

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Triton kernels for what a Llama-like model runs at every step."""
        from mainspring.backends.cuda.attention import attention, kv_write, rotate_and_store
        from mainspring.backends.cuda.sampling import choose, sample
        from mainspring.backends.triton import elementwise

        overlapping = {
            "rms_norm": elementwise.rms_norm,
            "add_rms_norm": elementwise.add_rms_norm,
            "rope": elementwise.rope,
            "silu_mul": elementwise.silu_mul,
            "kv_write": kv_write,
            "attention": attention,
            "rotate_and_store": rotate_and_store,
        }
        bound = {name: partial(op, overlap=self._overlap) for name, op in overlapping.items()}
        return {**bound, "sample": sample, "choose": choose}

    def prepare_attention(self, metadata: AttentionMetadata, kv: PagedKV) -> StepPlan:
        """Host integers only."""
        from mainspring.backends.cuda.attention import plan_step

        return plan_step(metadata, kv.keys[0].shape[2], self._processors)

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, torch.Tensor]) -> PackedLinear:
        """As it is; its shape is remembered."""
        packed = super().pack(scheme, tensors)
        self._linears.add(packed.data)
        return packed

    def quantized_linear(self, x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
        """The kernel that was fastest for the shape."""
        return self._linears(x, packed)

    def buckets(self, limits: ShapeLimits) -> Buckets | None:
        """A ladder of decodes, and one of other steps; what fits neither runs in its own shape."""
        if self._capturer is None:
            return None
        from mainspring.backends.cuda.graphs import ladder

        return ladder(limits)

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        """A CUDA graph for a bucket; eager otherwise."""
        if bucket is None or self._capturer is None:
            return program
        captured: Program = self._capturer.program(program)
        return captured

    def artifact_key(self) -> str:
        """What Triton's and cuBLAS's choices depend on."""
        import torch

        major, minor = torch.cuda.get_device_capability(self._index)
        return f"torch-{torch.__version__}-cuda-{torch.version.cuda}-sm_{major}{minor}"
