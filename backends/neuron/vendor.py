"""The vendor's software: TorchNeuron, where torch speaks to the device `neuron`, else torch_xla with AWS's plugin.

The one file that names either. AWS publishes placeholders on PyPI under its packages' names, which raise when they are
imported; an installed package is therefore imported before it is believed, and only where the machine shows a chip.

APIs: awsdocs-neuron.readthedocs-hosted.com ("Native PyTorch": torch.compile backend reference, memory management,
environment variables; "PyTorch NeuronX" for XLA) and github.com/pytorch/xla (release 2.9).
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mainspring.backends.neuron.chips import Chip

if TYPE_CHECKING:
    import torch

    from mainspring.backends.bucketed.attention import FusedAttention
    from mainspring.core.backend import Program

REMEDY = (
    "install torch-neuronx from AWS's own index, as the Neuron documentation's setup guide says (the packages of that "
    "name on PyPI are placeholders), then pip install 'mainspring[neuron]'"
)


FIRST_RELEASE, NATIVE_RELEASE = (1, 11), (2, 13)
"""Of torch-neuronx: what is older is a placeholder; from the second on torch has a device `neuron`."""


class VendorMissing(Exception):
    """There is no such software, or nothing that it could run on; the message is one sentence."""


class Vendor(ABC):
    """What this backend asks of either way. Importing it, when this is made, starts the runtime."""

    lazy: bool
    """Whether ops gather in a graph until `flush`. Otherwise a bucket's program goes through torch.compile."""
    collectives: str
    """As torch.distributed calls them."""

    @abstractmethod
    def device(self, index: int) -> str:
        """As torch calls it."""

    @abstractmethod
    def flush(self) -> None:
        """Ends a lazy graph and enqueues it."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for all that was enqueued."""

    @abstractmethod
    def used_bytes(self, device: str) -> int:
        """Bytes in use."""

    @abstractmethod
    def compile(self, program: Program) -> Program:
        """The program of one bucket."""

    @abstractmethod
    def compilations(self) -> int:
        """Programs compiled in this process."""

    def fused_attention(self) -> FusedAttention | None:
        """The vendor's kernel for prefills, where there is one."""
        return None


class TorchNeuron(Vendor):
    """The native way: device `neuron:0`, ops as they come, a bucket's program through torch.compile."""

    lazy = False
    collectives = "neuron"

    def __init__(self) -> None:
        self._package: Any = importlib.import_module("torch_neuronx")

    def device(self, index: int) -> str:
        return f"neuron:{index}"

    def flush(self) -> None:
        """Ops are enqueued as they come."""

    def synchronize(self) -> None:
        import torch

        # `torch.neuron` exists once torch_neuronx is imported.
        torch.get_device_module("neuron").synchronize()

    def used_bytes(self, device: str) -> int:
        self.synchronize()
        used: int = self._package.memory_allocated()
        return used

    def compile(self, program: Program) -> Program:
        """One graph, or an error: what falls back would be compiled op by op."""
        import torch

        return torch.compile(program, backend="neuron", fullgraph=True, dynamic=False)

    def compilations(self) -> int:
        return len(self._package.get_dynamo_metrics())

    def fused_attention(self) -> FusedAttention | None:
        """torch's own scaled_dot_product_attention, which TorchNeuron gives to its NKI kernel where a real nki is."""
        if why_not_imported("nki") is not None:
            return None
        return attend


class NeuronXla(Vendor):
    """The legacy way, for Inferentia 2 and Trainium 1: device `xla:0`, lazy graphs, compiled by their hash."""

    lazy = True
    collectives = "xla"

    def __init__(self) -> None:
        self._torch_xla: Any = importlib.import_module("torch_xla")
        self._model: Any = importlib.import_module("torch_xla.core.xla_model")
        self._metrics: Any = importlib.import_module("torch_xla.debug.metrics")

    def device(self, index: int) -> str:
        """The device of this process; NEURON_RT_VISIBLE_CORES says which core it is."""
        return str(self._torch_xla.device())

    def flush(self) -> None:
        self._torch_xla.sync()

    def synchronize(self) -> None:
        self._torch_xla.sync()
        self._model.wait_device_ops()

    def used_bytes(self, device: str) -> int:
        self.synchronize()
        return int(self._model.get_memory_info(device)["bytes_used"])

    def compile(self, program: Program) -> Program:
        """As it is: the flush behind it makes it a program."""
        return program

    def compilations(self) -> int:
        return self._metrics.counter_value("UncachedCompile") or 0


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Heads of keys and values are shared by groups of query heads."""
    from torch.nn import functional

    return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)


def why_not_imported(package: str) -> str | None:
    """None for a package that really imports; what it said for a placeholder."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else f"{package} does not import"
    return None


Release = tuple[int, ...]


def release(package: str) -> Release:
    """Of an installed package, (0,) where its metadata says none."""
    try:
        return tuple(int(part) for part in version(package).split(".")[:2] if part.isdecimal()) or (0,)
    except PackageNotFoundError:
        return (0,)


@dataclass(frozen=True, slots=True)
class Installation:
    """What can be asked of an environment without importing anything heavy."""

    has: Callable[[str], object] = importlib.util.find_spec
    refuses: Callable[[str], str | None] = why_not_imported
    release: Callable[[str], Release] = release


HERE = Installation()


def find(chips: Sequence[Chip], here: Installation = HERE) -> type[Vendor]:
    """The software to use. Without a chip, only what may be a placeholder is imported. Raises `VendorMissing`."""
    if not here.has("torch"):
        raise VendorMissing("torch is not installed")
    missing = "and the machine shows no Trainium or Inferentia 2" if not chips else f"though there is a {chips[0].arch}"
    if not here.has("torch_neuronx"):
        raise VendorMissing(f"torch_neuronx is not installed, {missing}")
    found = here.release("torch-neuronx")
    if (chips or found < FIRST_RELEASE) and (said := here.refuses("torch_neuronx")):
        raise VendorMissing(f"the installed torch_neuronx does not import, as PyPI's placeholder does not ({said})")
    if not chips:
        raise VendorMissing("torch_neuronx is installed, but the machine shows no Trainium or Inferentia 2")
    if chips[0].native and found >= NATIVE_RELEASE:
        return TorchNeuron
    if here.has("torch_xla"):
        return NeuronXla
    raise VendorMissing(f"torch_xla is not installed, and torch_neuronx {found} runs {chips[0].arch} by nothing else")


def keep_programs(folder: str, settings: MutableMapping[str, str]) -> None:
    """Keeps compiled programs in a folder, by the switches that either way reads when it compiles first."""
    settings["TORCH_NEURONX_NEFF_CACHE_DIR"] = folder
    settings["NEURON_COMPILE_CACHE_URL"] = folder
