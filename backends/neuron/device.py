"""Neuron as a backend: what the chips declare, and the device that joins this folder's rooms.

torch is imported in methods, when a device is open: listing backends must not load it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.backends.bucketed.device import BucketedDevice
from mainspring.backends.bucketed.ladders import LADDERS, Rungs, read_ladders
from mainspring.backends.neuron.artifacts import folder
from mainspring.backends.neuron.chips import Chip, Core, chips, cores
from mainspring.backends.neuron.vendor import REMEDY, Vendor, VendorMissing, find, keep_programs, release
from mainspring.core.backend import (
    Backend,
    Capabilities,
    Device,
    DeviceInfo,
    Unavailable,
)
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    from mainspring.core.config import EngineConfig

CACHE, KERNELS = "program_cache", "kernels"
OPTIONS = (*LADDERS, CACHE, KERNELS)
"""`--backend-option` keys: ladders of buckets; a folder for compiled programs; `kernels=off` composes prefills of plain
products where NKI has a kernel."""

CLIMB = Rungs(rows=(8, 2), tokens=(128, 2), blocks=(16, 4))
"""The compiler takes minutes a program; 128 is the width of its matrix unit."""

Find = Callable[[list[Chip]], type[Vendor]]


class NeuronBackend(Backend):
    """Answers questions about Neuron chips by the PCI bus and by what imports."""

    name = "neuron"
    contract_version = 1
    preference = 100

    def __init__(self, look: Callable[[], list[Chip]] = chips, find: Find = find) -> None:
        self._look = look
        self._find = find

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The cores, where there is software for them."""
        found = self._look()
        try:
            self._find(found)
        except VendorMissing as error:
            return Unavailable(str(error), REMEDY)
        return [
            DeviceInfo(i, f"AWS {core.chip.arch}, a core of {core.chip.cores}", core.chip.arch, core.hbm_bytes)
            for i, core in enumerate(cores(found))
        ]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """One shape a bucket, sampling included. Results wait in the device until they are asked for."""
        return Capabilities(
            compute_dtypes=("bfloat16", "float32"),
            kv_dtypes=("bfloat16", "float32"),
            block_sizes=(32, 16, 64, 128),
            attention=frozenset({"sliding_window", "softcap", "sinks"}),
            shapes="bucketed",
            mixes_prefill_and_decode=False,
            graphs="ahead_of_time",
            collectives=self._collectives(),
            asynchronous=True,
            verified="L2",
        )

    def _collectives(self) -> str | None:
        try:
            return self._find(self._look()).collectives
        except VendorMissing:
            return None

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Starts the runtime in this process."""
        given = options.backend_options
        if wrong := [unknown("backend option", key, OPTIONS) for key in given if key not in OPTIONS]:
            raise BackendError(wrong)
        by_hand = read_ladders(given)
        found = self._look()
        try:
            kind = self._find(found)
        except VendorMissing as error:
            raise BackendError(f"{error}; {REMEDY}") from error
        if CACHE in given:
            # The vendor's own switches, read when it compiles first.
            where = folder(Path(given[CACHE]), options.model, by_hand, _compiler())
            keep_programs(str(where), os.environ)
        return NeuronDevice(kind(), index, cores(found)[index], by_hand, kernels=given.get(KERNELS) != "off")


class NeuronDevice(BucketedDevice):
    """One opened core."""

    def __init__(
        self, vendor: Vendor, index: int, core: Core, by_hand: Mapping[str, tuple[int, ...]], *, kernels: bool
    ) -> None:
        super().__init__(vendor, by_hand, CLIMB)
        self.torch_device = vendor.device(index)
        self.vendor = vendor
        self._core = core
        self._kernels = kernels

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the core's share of its chip."""
        total = self._core.hbm_bytes
        return max(0, total - self.vendor.used_bytes(self.torch_device)), total

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Attention, and what may not be empty: the compiler fuses the rest."""
        from mainspring.backends.bucketed.attention import Attention, kv_write
        from mainspring.backends.bucketed.sampling import logprobs

        fused = self.vendor.fused_attention() if self._kernels else None
        return {"attention": Attention(fused=fused), "kv_write": kv_write, "logprobs": logprobs}

    def artifact_key(self) -> str:
        """What the compiler's programs depend on."""
        import torch

        return f"torch-{torch.__version__}-{_compiler()}"


def _compiler() -> str:
    """Names and versions of what compiles, as installed."""
    return "-".join(f"{package}-{'.'.join(map(str, release(package)))}" for package in ("torch-neuronx", "neuronx-cc"))
