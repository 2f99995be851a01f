"""The vendor's software: torch_tpu, where torch speaks to TPUs natively, else torch_xla, whose tensors are lazy graphs.

The one file that names either. Nothing of them is imported before a device is opened; `find` looks at what is installed
and at the PCI bus. torch_xla also has XLA's compiler for the host, chosen by its own PJRT_DEVICE=CPU: the same graphs
without a chip, for tests.

APIs: github.com/pytorch/xla (release 2.9: `torch_xla.sync`, `core.xla_model`, `_XLAC._xla_tpu_custom_call`) and
github.com/google-pytorch/torch_tpu (release 0.2: `torch.tpu`, `torch.compile(backend="tpu")`, `torch.tpu.pallas`).
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mainspring.backends.tpu.chips import Chip

if TYPE_CHECKING:
    import torch

    from mainspring.core.backend import Program

HOST_ARCH = "xla-host"
REMEDY = "pip install 'mainspring[tpu]' on a Cloud TPU VM; it brings torch_tpu and libtpu"


class VendorMissing(Exception):
    """There is no such software, or nothing that it could run on; the message is one sentence."""


class Vendor(ABC):
    """What this backend asks of either library."""

    package: str
    """What is installed and imported."""
    lazy: bool
    """Whether ops gather in a graph until `flush`. Otherwise a bucket's program goes through torch.compile."""

    @abstractmethod
    def device(self, index: int) -> str:
        """As torch calls it. Starts the runtime."""

    @abstractmethod
    def flush(self) -> None:
        """Ends a lazy graph and enqueues it."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for all that was enqueued."""

    @abstractmethod
    def used_bytes(self, device: str) -> tuple[int, int] | None:
        """(in use, in all); None where the runtime does not tell."""

    @abstractmethod
    def exact_products(self) -> None:
        """float32 matrix products in float32: a TPU's own way is one pass in bfloat16."""

    @abstractmethod
    def compile(self, program: Program) -> Program:
        """The program of one bucket."""

    @abstractmethod
    def from_jax(self, name: str, function: Callable[..., Any], result: Callable[..., Any]) -> Callable[..., Any]:
        """A JAX function as a torch op. `result` says which argument has the shape and dtype of what it returns."""

    def compilations(self) -> int | None:
        """Programs compiled in this process; None where the runtime does not count."""
        return None

    def keep_programs(self, folder: str) -> None:
        """Keeps what is compiled in a folder, so that the next start finds it."""

    def version(self) -> str:
        """Name and version."""
        return f"{self.package}-{importlib.import_module(self.package).__version__}"


class TorchXla(Vendor):
    """The legacy way: device `xla:0`, lazy graphs, programs cached by their graph's hash."""

    package = "torch_xla"
    lazy = True

    def device(self, index: int) -> str:
        """The device of this process; torch_xla numbers them by itself."""
        import torch_xla

        return str(torch_xla.device(index))

    def flush(self) -> None:
        import torch_xla

        torch_xla.sync()

    def synchronize(self) -> None:
        import torch_xla
        from torch_xla.core import xla_model

        torch_xla.sync()
        xla_model.wait_device_ops()

    def used_bytes(self, device: str) -> tuple[int, int] | None:
        from torch_xla.core import xla_model

        try:
            info = xla_model.get_memory_info(device)
        except RuntimeError:  # UNIMPLEMENTED on the host
            return None
        return info["bytes_used"], info["bytes_limit"]

    def exact_products(self) -> None:
        from torch_xla import backends

        backends.set_mat_mul_precision("highest")

    def compile(self, program: Program) -> Program:
        """As it is: the flush behind it makes it a program."""
        return program

    def from_jax(self, name: str, function: Callable[..., Any], result: Callable[..., Any]) -> Callable[..., Any]:
        """Its Mosaic module is lowered once for each set of shapes, and becomes a custom call of the graph."""
        import torch_xla

        modules: dict[Any, str] = {}

        def call(*tensors: torch.Tensor) -> Any:
            key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
            if key not in modules:
                modules[key] = _mosaic_module(function, tensors)
            like = result(*tensors)
            custom_call = torch_xla._XLAC._xla_tpu_custom_call
            return custom_call(list(tensors), modules[key], [list(like.shape)], [like.dtype])[0]

        return call

    def compilations(self) -> int:
        from torch_xla.debug import metrics

        return metrics.counter_value("UncachedCompile") or 0

    def keep_programs(self, folder: str) -> None:
        from torch_xla import runtime

        runtime.initialize_cache(folder)


class TorchTpu(Vendor):
    """The native way: device `tpu:0`, ops as they come, a bucket's program through torch.compile."""

    package = "torch_tpu"
    lazy = False

    def device(self, index: int) -> str:
        import torch

        torch.accelerator.set_device_index(index)
        return f"tpu:{index}"

    def flush(self) -> None:
        """Ops are enqueued as they come."""

    def synchronize(self) -> None:
        import torch

        torch.accelerator.synchronize()

    def used_bytes(self, device: str) -> tuple[int, int] | None:
        import torch

        try:
            free, total = torch.accelerator.get_memory_info(device)
        except (RuntimeError, NotImplementedError):
            return None
        return total - free, total

    def exact_products(self) -> None:
        import torch

        torch.set_float32_matmul_precision("highest")

    def compile(self, program: Program) -> Program:
        import torch

        return torch.compile(program, backend="tpu", dynamic=False)

    def from_jax(self, name: str, function: Callable[..., Any], result: Callable[..., Any]) -> Callable[..., Any]:
        """torch_tpu takes the result's shape from the function itself."""
        pallas = importlib.import_module("torch.tpu.pallas")
        made: Callable[..., Any] = pallas.jax_op(f"mainspring::{name}", function)
        return made


def _mosaic_module(function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> str:
    """What JAX hands to XLA for the one Pallas call that a function is."""
    import jax

    shapes = [jax.ShapeDtypeStruct(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in tensors]
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
    calls: list[str] = []

    def visit(operation: Any) -> None:
        for region in operation.regions:
            for block in region.blocks:
                for inner in block.operations:
                    if inner.operation.name == "stablehlo.custom_call":
                        calls.append(inner.operation.attributes["backend_config"].value)
                    visit(inner.operation)

    visit(lowered.compiler_ir("stablehlo").operation)
    (module,) = calls
    return module


def find(
    chips: Sequence[Chip],
    settings: Mapping[str, str],
    installed: Callable[[str], object] = importlib.util.find_spec,
) -> tuple[Vendor, bool]:
    """The software to use, and whether it runs on TPUs (or on XLA's host device, as `settings` may ask).

    `settings` are the process's environment. Raises `VendorMissing`.
    """
    if not installed("torch"):
        raise VendorMissing("torch is not installed")
    host = settings.get("PJRT_DEVICE") == "CPU"
    if not (chips or host):
        has = [package for package in ("torch_tpu", "torch_xla") if installed(package)]
        what = f"{has[0]} is installed, but" if has else "neither torch_tpu nor torch_xla is installed, and"
        raise VendorMissing(f"{what} the machine shows no TPU")
    if not host and installed("torch_tpu"):
        return TorchTpu(), True
    if installed("torch_xla"):
        return TorchXla(), not host
    raise VendorMissing("neither torch_tpu nor torch_xla is installed")
