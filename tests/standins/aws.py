"""The stand-in for Neuron: torch_neuronx (or torch_xla) as the backend calls them, over the stand-in device `neuron`.

Signatures are those of AWS's Neuron documentation ("Native PyTorch": torch.compile backend reference, memory profiling;
"PyTorch NeuronX") and of torch_xla 2.9. AWS publishes no list of what TorchNeuron's compiler takes; it lowers torch's
core ATen IR to StableHLO, so that the allow-list is that IR and what torch decomposes into it. `STANDIN=neuron-xla`
stands in for the legacy way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch._decomp import core_aten_decompositions

from mainspring.backends.neuron.chips import CHIPS
from mainspring.backends.neuron.device import NeuronBackend
from mainspring.backends.neuron.vendor import NeuronXla, TorchNeuron
from mainspring.core.backend import DeviceInfo, Unavailable
from tests.standins.collectives import register
from tests.standins.device import GIB, DeviceModule, StandIn
from tests.standins.recorder import Recorder, install, require

MECHANICAL = """
    __lshift__ __rshift__ _index_put_impl_ _reshape_alias bitwise_left_shift bitwise_right_shift contiguous copy detach
    index_put lift_fresh matmul reshape scaled_dot_product_attention t unbind view
""".split()  # noqa: SIM905  a list of names is read in lines
"""What torch makes of the IR's ops on its way to a device, and StableHLO's shifts, which the IR forgot."""


def core_aten() -> Iterable[str]:
    """Names of the core ATen IR's ops, and of those that torch decomposes into it."""
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        if isinstance(packet, torch._ops.OpOverloadPacket):
            overloads = (getattr(packet, overload) for overload in packet.overloads())
            if any(torch.Tag.core in overload.tags for overload in overloads):
                yield name
    for op in core_aten_decompositions():
        yield op._schema.name.removeprefix("aten::")


class NeuronModule(DeviceModule):
    """`torch.neuron`."""

    def __init__(self, recorder: Recorder) -> None:
        self.synchronize = recorder.function("torch.neuron.synchronize", lambda device=None: None)


class Runtime:
    """The doubles, and what was asked of them."""

    def __init__(self, *, lazy: bool) -> None:
        self.recorder = Recorder()
        allowed = {*core_aten(), *MECHANICAL}
        self.device = StandIn("neuron", allowed, lazy=lazy, module=NeuronModule(self.recorder))
        install(self._xla() if lazy else self._native())

    def _native(self) -> dict[str, dict[str, Any]]:
        of, device = self.recorder.function, self.device
        torch.compile = of("torch.compile", self._compile)  # type: ignore[assignment]
        package = {
            "memory_allocated": of("memory_allocated", lambda device=None: GIB),
            "get_dynamo_metrics": of("get_dynamo_metrics", lambda: sorted(map(hash, device.compiled))),
        }
        return {"torch_neuronx": package, "nki": {}}

    def _compile(self, program: Any, *, fullgraph: bool, dynamic: bool, backend: str) -> Any:
        require((fullgraph, dynamic, backend) == (True, False, "neuron"), f"{backend}, dynamic {dynamic}")

        def run(*args: Any) -> Any:
            with self.device.graph():
                return program(*args)

        return run

    def _xla(self) -> dict[str, dict[str, Any]]:
        of, device = self.recorder.function, self.device
        top = {
            "device": of("torch_xla.device", lambda index=None: torch.device("neuron:0")),
            "sync": of("torch_xla.sync", lambda wait=False, reset_scope=True: device.flush()),
        }
        memory = {"bytes_used": GIB, "bytes_limit": 16 * GIB}
        model = {
            "wait_device_ops": of("wait_device_ops", lambda devices=None: None),
            "get_memory_info": of("get_memory_info", lambda device=None: memory),
        }
        metrics = {"counter_value": of("counter_value", self._counter)}
        return {
            "torch_xla": top, "torch_xla.core": {}, "torch_xla.core.xla_model": model, "torch_xla.debug": {},
            "torch_xla.debug.metrics": metrics,
        }  # fmt: skip

    def _counter(self, name: str) -> int | None:
        require(name == "UncachedCompile", f"counter {name}")
        return self.device.compilations or None


_RUNTIMES: list[Runtime] = []


def runtime() -> Runtime:
    """This process's, made when it is first asked for."""
    if not _RUNTIMES:
        lazy = os.environ.get("STANDIN") == "neuron-xla"
        _RUNTIMES.append(Runtime(lazy=lazy))
        register("xla" if lazy else "neuron", "neuron")
    return _RUNTIMES[0]


class NeuronStandIn(NeuronBackend):
    """The backend on the stand-in, which it says of itself."""

    def __init__(self) -> None:
        kind, chip = (NeuronXla, "0x7164") if runtime().device.lazy else (TorchNeuron, "0x7364")
        super().__init__(look=lambda: [CHIPS[chip]], find=lambda found: kind)

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """Host memory under the name `neuron`."""
        name = "host memory under torch's Python device"
        return [DeviceInfo(i, name, "stand-in", 16 * GIB) for i in range(2)]
