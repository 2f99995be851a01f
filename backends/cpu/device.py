"""The CPU as a backend: what it declares, and the device that joins this folder's rooms.

Torch is imported in methods, when a device is open: listing backends must not load it.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from mainspring.backends.cpu.host import Host
from mainspring.backends.cpu.schemes import INT4_DYNAMIC, INT8_DYNAMIC, block_schemes, schemes, verdict
from mainspring.core.backend import (
    AttentionMetadata,
    Backend,
    Capabilities,
    Device,
    DeviceInfo,
    KVSpec,
    PackedLinear,
    Program,
    Unavailable,
    Verdict,
    WeightScheme,
)
from mainspring.core.errors import BackendError, unknown
from mainspring.core.gguf_layouts import LAYOUTS

if TYPE_CHECKING:
    import torch

    from mainspring.backends.cpu.cache import HeadMajorKV
    from mainspring.backends.cpu.linear import Weights
    from mainspring.backends.cpu.native.attention import NativeKV, NativePlan
    from mainspring.backends.cpu.native.blocks import BlockWeights
    from mainspring.backends.cpu.native.library import Kernels
    from mainspring.backends.cpu.quantization import NumberedBlocks
    from mainspring.backends.cpu.steps import StepPlan
    from mainspring.core.batch import Bucket
    from mainspring.core.config import EngineConfig

KERNELS = ("native", "torch")
"""Values of the backend option `kernels`: what computes. Without a compiler it is torch in any case."""

_log = logging.getLogger(__name__)


class CpuBackend(Backend):
    """Answers questions about the host without touching it."""

    name = "cpu"
    contract_version = 1
    preference = 10

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The host, as one device."""
        if importlib.util.find_spec("torch") is None:
            return Unavailable("torch is not installed", "pip install 'mainspring[cpu]'")
        _, total = self._host.memory()
        return [DeviceInfo(0, self._host.processor(), self._host.arch(), total)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """float32 first: it is exact, and bfloat16 is faster only on processors that multiply it."""
        return Capabilities(
            compute_dtypes=("float32", "bfloat16"),
            kv_dtypes=("float32", "bfloat16", "float16"),
            weight_schemes=(*schemes(self._host.multiplies_integers()), *block_schemes(self._host.multiplies_bytes())),
            block_sizes=(32, 16, 64, 128),
            attention=frozenset({"sliding_window", "softcap", "sinks"}),
            collectives="gloo",
            ranks_share_device=True,
            default_memory_fraction=0.5,
            verified="L5",
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens the host. `options.threads` threads compute, or this rank's share of the cores."""
        if wrong := [key for key in options.backend_options if key != "kernels"]:
            raise BackendError([unknown("backend option", key, ("kernels",)) for key in wrong])
        if (chosen := str(options.backend_options.get("kernels", "native"))) not in KERNELS:
            raise BackendError(unknown("value of the backend option kernels", chosen, KERNELS))
        if options.threads is not None and options.threads < 1:
            raise BackendError(f"--threads {options.threads} computes nothing; use 1 or more, or leave it out")
        import torch

        threads = options.threads or min(torch.get_num_threads(), max(1, self._host.cores() // world))
        torch.set_num_threads(threads)
        native = chosen == "native" and not options.compile
        kernels = self._kernels(threads) if native else None
        return CpuDevice(self._host, kernels=kernels, compiles=options.compile)

    def _kernels(self, threads: int) -> Kernels | None:
        """The compiled kernels, or None where there can be none, which is said."""
        from mainspring.backends.cpu.native.build import CannotBuildError, build
        from mainspring.backends.cpu.native.library import open_library

        try:
            kernels = open_library(build(self._host.instructions()), threads)
        except CannotBuildError as error:
            _log.warning("torch's kernels compute, the faster ones of this backend cannot be had: %s", error)
            return None
        _log.info("this backend's own kernels compute, compiled for this processor")
        return kernels


class CpuDevice(Device):
    """The opened host. `kernels` compute what they have the shapes for, torch the rest; None leaves it all to torch.

    With `--compile` steps go through torch.compile. inductor cannot take oneDNN's blocked weights into its graphs, so
    weights stay plain then, and what it fuses around them may gain less than they lose (SmolLM2, 8 rows, one thread:
    105 ms a step compiled, 72 as it is). Measure before you turn it on.
    """

    torch_device = "cpu"

    def __init__(self, host: Host, *, kernels: Kernels | None = None, compiles: bool = False) -> None:
        self._host = host
        self._kernels = kernels
        self._compiles = compiles

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes that this process may use, container limits counted."""
        return self._host.memory()

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> HeadMajorKV | NativeKV:
        """A cache with heads outside; with keys transposed within a block, if the kernels take its shape."""
        from mainspring.backends.cpu.cache import HeadMajorKV
        from mainspring.backends.cpu.native.attention import NativeKV, takes

        if self._kernels is not None and takes(spec):
            return NativeKV.allocate(spec, num_blocks)
        return HeadMajorKV.allocate(spec, num_blocks)

    def synchronize(self) -> None:
        """Ops finish before they return."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Attention over this backend's cache, and the small ops with fewer kernels."""
        from mainspring.backends.cpu import elementwise
        from mainspring.backends.cpu.attention import attention, kv_write
        from mainspring.backends.cpu.moe import moe
        from mainspring.core.ops.sample import sample

        ops: dict[str, Callable[..., Any]] = {
            "rms_norm": elementwise.rms_norm,
            "add_rms_norm": elementwise.add_rms_norm,
            "rope": elementwise.rope,
            "silu_mul": elementwise.silu_mul,
            "gelu_mul": elementwise.gelu_mul,
            "moe": self._outside_graphs(moe),
            "kv_write": kv_write,
            "attention": self._outside_graphs(attention),
            "sample": functools.partial(sample, peek=True),
        }
        if self._kernels is not None:
            from mainspring.backends.cpu.native.ops import native_ops

            ops |= native_ops(self._kernels)
        return ops

    def prepare_attention(self, metadata: AttentionMetadata, kv: HeadMajorKV | NativeKV) -> StepPlan | NativePlan:
        """Where to write, what to gather and what to hide: once a step, for all layers."""
        from mainspring.backends.cpu.native.attention import NativeKV, plan_native
        from mainspring.backends.cpu.steps import plan_step

        if self._kernels is not None and isinstance(kv, NativeKV):
            return plan_native(metadata)
        return plan_step(metadata, cast("HeadMajorKV", kv))

    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        """Unquantized always; declared schemes where the shape suits their kernel."""
        if scheme in schemes(self._host.multiplies_integers()):
            return verdict(scheme, in_features, out_features)
        if scheme in block_schemes(self._host.multiplies_bytes()):
            return Verdict(True)
        if scheme in (INT8_DYNAMIC, INT4_DYNAMIC):
            return Verdict(False, "int8 activations need a processor with VNNI")
        return super().supports(scheme, in_features, out_features)

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, torch.Tensor]) -> PackedLinear:
        """oneDNN's layout for floating point, a kernel's own for quantized schemes."""
        if scheme.packing in LAYOUTS:
            blocks = self._packed_blocks(scheme, tensors["weight"])
            return PackedLinear(scheme, blocks.in_features, blocks.out_features, blocks, tensors.get("bias"))
        out_features, in_features = tensors["weight"].shape
        return PackedLinear(scheme, in_features, out_features, self._packed(scheme, tensors), tensors.get("bias"))

    def _packed_blocks(self, scheme: WeightScheme, weight: torch.Tensor) -> BlockWeights | NumberedBlocks:
        from mainspring.backends.cpu.native.blocks import pack_blocks
        from mainspring.backends.cpu.quantization import NumberedBlocks

        if self._kernels is None:
            return NumberedBlocks.of(scheme, weight, opaque=not self._compiles)
        return pack_blocks(scheme, weight, self._kernels)

    def _packed(self, scheme: WeightScheme, tensors: Mapping[str, torch.Tensor]) -> Weights:
        import torch

        from mainspring.backends.cpu.linear import pack_float
        from mainspring.backends.cpu.native import linear as native
        from mainspring.backends.cpu.quantization import pack_quantized

        if scheme.weight in ("float32", "float16", "bfloat16"):
            if self._kernels is not None and tensors["weight"].dtype == torch.float32:
                return native.pack_float(tensors["weight"], self._kernels)
            return pack_float(tensors["weight"], opaque=not self._compiles)
        if self._kernels is not None and scheme in (INT8_DYNAMIC, INT4_DYNAMIC):
            return native.pack_native(scheme, tensors, self._kernels)
        return pack_quantized(scheme, tensors)

    def quantized_linear(self, x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
        """x[T, K] times the packed weight, plus its bias: [T, N]."""
        return cast("torch.Tensor", packed.data.product(x, packed.bias))

    def reads_rows(self, scheme: WeightScheme) -> bool:
        """Of GGUF's blocks."""
        return scheme.packing in LAYOUTS

    def rows(self, index: torch.Tensor, packed: PackedLinear, dtype: torch.dtype) -> torch.Tensor:
        """Rows index[T] of a table in blocks, as numbers."""
        return cast("torch.Tensor", packed.data.rows(index, dtype))

    def quantize_activation(self, x: torch.Tensor, scheme: WeightScheme) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 and a scale a token, by the reference."""
        from mainspring.core.ops.quantized import quantize_activation

        return quantize_activation(x, scheme)

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        """Decodes from tapes where the kernels compute. Through inductor when the operator asked for it, once for all
        shapes; attention stays outside its graphs.
        """
        if self._kernels is not None:
            from mainspring.backends.cpu.native.tape import Arena, TapedProgram

            return TapedProgram(program, self._kernels, Arena())
        if not self._compiles:
            return program
        import torch

        return torch.compile(program, dynamic=True)

    def artifact_key(self) -> str:
        """What inductor's code depends on."""
        import torch

        return f"torch-{torch.__version__}-{self._host.arch()}"

    def _outside_graphs(self, op: Callable[..., Any]) -> Callable[..., Any]:
        """Attention runs by a plan that differs from step to step, which a traced graph would hold fast."""
        if not self._compiles:
            return op
        import torch

        outside: Callable[..., Any] = torch.compiler.disable(op)  # type: ignore[no-untyped-call]
        return outside
