"""A vendor's collectives on stand-in tensors: gloo on the host memory behind them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch import distributed

from tests.standins.device import on_host


class HostGroup(distributed.ProcessGroup):
    """A process group whose tensors lie on the stand-in."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = distributed.ProcessGroupGloo(store, rank, size, timeout)

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_name(self) -> str:
        """As torch called this group."""
        return self._name

    def allreduce(self, tensors: Any, options: Any = None) -> Any:
        return self._gloo.allreduce(on_host(tensors), options)

    def allgather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return self._gloo.allgather(on_host(outputs), on_host(inputs), options)

    def reduce_scatter(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return self._gloo.reduce_scatter(on_host(outputs), on_host(inputs), options)

    def broadcast(self, tensors: Any, options: Any = None) -> Any:
        return self._gloo.broadcast(on_host(tensors), options)

    def alltoall_base(self, output: Any, given: Any, output_sizes: Any, input_sizes: Any, options: Any = None) -> Any:
        return self._gloo.alltoall_base(on_host(output), on_host(given), output_sizes, input_sizes, options)

    def send(self, tensors: Any, rank: int, tag: int) -> Any:
        return self._gloo.send(on_host(tensors), rank, tag)

    def recv(self, tensors: Any, rank: int, tag: int) -> Any:
        return self._gloo.recv(on_host(tensors), rank, tag)

    def barrier(self, options: Any = None) -> Any:
        return self._gloo.barrier(options)

    def getBackendName(self) -> str:
        return "stand-in"


def register(name: str, device: str) -> None:
    """Makes `torch.distributed` know a vendor's collectives by their name."""

    def make(store: Any, rank: int, size: int, timeout: timedelta) -> HostGroup:
        return HostGroup(store, rank, size, timeout)

    distributed.Backend.register_backend(name, make, devices=[device])
