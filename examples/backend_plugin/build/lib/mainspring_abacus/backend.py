"""An accelerator in one file. Copy this folder, replace the bodies, and run `mainspring conformance NAME`.

The abacus is an imaginary machine that torch reaches as the device `cpu`. It declares the six required calls and
overrides one op; everything else falls back to the reference in Mainspring's core.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psutil

from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, KVSpec, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from mainspring.core.ops.attention import PagedKV


class AbacusBackend(Backend):
    """Answers questions about the machine without touching it."""

    name = "abacus"
    contract_version = 1  # a literal: the version this file was written for
    preference = 1

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """One abacus for each host, if torch is there to move its beads."""
        if importlib.util.find_spec("torch") is None:
            return Unavailable("torch is not installed", "pip install 'mainspring[cpu]'")
        return [DeviceInfo(0, "Abacus", "beads", psutil.virtual_memory().total)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """float32 only; attention as the reference does it, which can do all of these."""
        return Capabilities(
            compute_dtypes=("float32",),
            kv_dtypes=("float32",),
            block_sizes=(16, 32),
            attention=frozenset({"sliding_window", "softcap", "sinks"}),
            default_memory_fraction=0.25,
            verified="L5",
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens the device; `--backend-option` keys that it does not know are refused."""
        if options.backend_options:
            raise BackendError([unknown("backend option", key, ()) for key in options.backend_options])
        return AbacusDevice()


class AbacusDevice(Device):
    """One opened abacus."""

    torch_device = "cpu"

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the host, which holds the beads."""
        host = psutil.virtual_memory()
        return host.available, host.total

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        """The reference layout, which the reference attention reads."""
        from mainspring.core.ops.attention import PagedKV

        return PagedKV.allocate(spec, num_blocks, self.torch_device)

    def synchronize(self) -> None:
        """Beads move at once."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """The one op that an abacus does in its own way."""
        return {"silu_mul": silu_mul}


def silu_mul(x_T2I: Tensor) -> Tensor:
    """silu(gate) * up by its definition, x * sigmoid(x): [T, 2I] -> [T, I]."""
    gate, up = x_T2I.chunk(2, dim=-1)
    return gate * gate.sigmoid() * up
