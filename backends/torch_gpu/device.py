"""One opened GPU, whoever made it: memory, events, graphs and ops, over the `Runtime` that its shell gives.

Torch is imported in methods: shells are imported where devices are only listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mainspring.backends.torch_gpu.schemes import family, verdict
from mainspring.core.backend import (
    AddRmsNorm,
    AttentionMetadata,
    Communicator,
    Device,
    Event,
    KVSpec,
    PackedLinear,
    Program,
    ShapeLimits,
    Verdict,
    WeightScheme,
)
from mainspring.core.batch import Bucket, Buckets

if TYPE_CHECKING:
    import torch

    from mainspring.backends.torch_gpu.attention import StepPlan
    from mainspring.backends.torch_gpu.runtime import Runtime
    from mainspring.backends.torch_gpu.tuning import Tuning
    from mainspring.core.ops.attention import PagedKV


class GpuDevice(Device):
    """All work goes to the current stream, in the order it was given."""

    def __init__(self, runtime: Runtime, index: int, tuning: Tuning, *, captures: bool = True) -> None:
        from mainspring.backends.torch_gpu.quantization import Quantized

        self.torch_device = f"{runtime.kind}:{index}"
        self._runtime = runtime
        self._index = index
        self._tuning = tuning
        self._quantized = Quantized(tuning)
        self._capturer: Any = None
        if captures and runtime.graph is not None:
            from mainspring.backends.torch_gpu.graphs import Capturer

            self._capturer = Capturer(runtime)

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes; what torch holds in reserve without using it is given back first, and free."""
        self._runtime.module.empty_cache()
        free, total = self._runtime.module.mem_get_info(self._index)
        return free, total

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        """The reference layout: the heads of a token side by side, which copies and other attention libraries take."""
        from mainspring.core.ops.attention import PagedKV

        return PagedKV.allocate(spec, num_blocks, self.torch_device)

    def synchronize(self) -> None:
        """Waits for the GPU."""
        self._runtime.module.synchronize(self._index)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory, from torch's caching allocator."""
        import torch

        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def event(self) -> Event:
        """An event of the current stream."""
        event: Event = self._runtime.module.Event()
        return event

    def peak_bytes(self) -> int:
        """Of torch's allocator, since the last call."""
        peak: int = self._runtime.module.max_memory_allocated(self._index)
        self._runtime.module.reset_peak_memory_stats(self._index)
        return peak

    def close(self) -> None:
        """Drops the captured graphs' memory; the driver takes back the rest when the process ends."""
        self._capturer = None

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Triton kernels for what a Llama-like model runs at every step."""
        from mainspring.backends.torch_gpu.attention import attention, kv_write, rotate_and_store
        from mainspring.backends.torch_gpu.experts import moe
        from mainspring.backends.torch_gpu.sampling import choose, sample
        from mainspring.backends.triton import elementwise
        from mainspring.backends.triton.moe import route

        overlapping = {
            "rms_norm": elementwise.rms_norm,
            "add_rms_norm": elementwise.add_rms_norm,
            "rope": elementwise.rope,
            "silu_mul": elementwise.silu_mul,
            "route": route,
            "moe": partial(moe, tuning=self._tuning),
            "kv_write": kv_write,
            "attention": partial(attention, tuning=self._tuning),
            "rotate_and_store": rotate_and_store,
        }
        bound = {name: partial(op, overlap=self._tuning.overlap) for name, op in overlapping.items()}
        return {**bound, "sample": sample, "choose": choose}

    def prepare_attention(self, metadata: AttentionMetadata, kv: PagedKV) -> StepPlan:
        """Host integers only."""
        from mainspring.backends.torch_gpu.attention import plan_step

        return plan_step(metadata, kv.keys[0].shape[2], self._tuning.processors)

    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        """Unquantized, or as `schemes` has it."""
        return Verdict(True) if scheme.bits >= 16 else verdict(scheme, in_features)

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, torch.Tensor]) -> PackedLinear:
        """An unquantized weight as it is."""
        return super().pack(scheme, tensors) if scheme.bits >= 16 else self._quantized.pack(scheme, tensors)

    def quantized_linear(self, x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
        """By the library, or by the scheme's kernel."""
        if packed.scheme.bits >= 16:
            return super().quantized_linear(x, packed)
        return self._quantized(x, packed)

    def reads_rows(self, scheme: WeightScheme) -> bool:
        """Of GGUF's blocks."""
        return family(scheme) == "blocks"

    def rows(self, index: torch.Tensor, packed: PackedLinear, dtype: torch.dtype) -> torch.Tensor:
        """Read from the words that products read."""
        return self._quantized.rows(index, packed, dtype)

    def quantize_activation(self, x: torch.Tensor, scheme: WeightScheme) -> tuple[torch.Tensor, torch.Tensor]:
        """As the scheme's product rounds it."""
        return self._quantized.round(x, scheme)

    def buckets(self, limits: ShapeLimits) -> Buckets | None:
        """A ladder of decodes, and one of other steps; what fits neither runs in its own shape."""
        if self._capturer is None:
            return None
        from mainspring.backends.torch_gpu.graphs import ladder

        return ladder(limits)

    def communicator(self, ranks: Sequence[int]) -> Communicator:
        """Over memory that ranks share where the machine has it, else torch's."""
        if not self._runtime.symmetric:
            return super().communicator(ranks)
        import torch

        from mainspring.backends.torch_gpu.symmetric import SymmetricCommunicator

        return SymmetricCommunicator(ranks, torch.device(self.torch_device), self._tuning.overlap)

    def summed_norm(self, group: Communicator, add_rms_norm: AddRmsNorm) -> AddRmsNorm:
        """Both in one kernel, where `communicator` could connect the ranks' memory."""
        from mainspring.backends.torch_gpu.symmetric import SymmetricCommunicator

        if isinstance(group, SymmetricCommunicator):
            return group.summed_norm(add_rms_norm)
        return super().summed_norm(group, add_rms_norm)

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        """A captured graph for a bucket; eager otherwise."""
        if bucket is None or self._capturer is None:
            return program
        captured: Program = self._capturer.program(program)
        return captured
