"""TPUs as a backend: what they declare, and the device that joins this folder's rooms.

torch is imported in methods, when a device is open: listing backends must not load it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psutil

from mainspring.backends.bucketed.device import BucketedDevice
from mainspring.backends.bucketed.ladders import DEFAULT, LADDERS, read_ladders
from mainspring.backends.tpu.chips import Chip, chips
from mainspring.backends.tpu.vendor import HOST_ARCH, REMEDY, Vendor, VendorMissing, find
from mainspring.core.backend import (
    Backend,
    Capabilities,
    Device,
    DeviceInfo,
    Unavailable,
)
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    from mainspring.backends.bucketed.attention import PagedDecode
    from mainspring.core.config import EngineConfig

CACHE, KERNEL = "program_cache", "kernel"
OPTIONS = (*LADDERS, CACHE, KERNEL)
"""`--backend-option` keys: ladders of buckets; a folder for compiled programs; `kernel=off` for composed decodes."""

Find = Callable[[list[Chip]], tuple[Vendor, bool]]


def _find(found: list[Chip]) -> tuple[Vendor, bool]:
    # PJRT_DEVICE is the vendor's own switch, read where its library would read it.
    return find(found, os.environ)


class TpuBackend(Backend):
    """Answers questions about TPUs by the PCI bus and by what is installed."""

    name = "tpu"
    contract_version = 1
    preference = 100

    def __init__(self, look: Callable[[], list[Chip]] = chips, find: Find = _find) -> None:
        self._look = look
        self._find = find

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The chips; or the host under XLA, where torch_xla is told so."""
        found = self._look()
        try:
            _, real = self._find(found)
        except VendorMissing as error:
            return Unavailable(str(error), REMEDY)
        if not real:
            return [DeviceInfo(0, "the host, compiled by XLA", HOST_ARCH, psutil.virtual_memory().total)]
        return [DeviceInfo(i, f"TPU {chip.arch}", chip.arch, chip.hbm_bytes) for i, chip in enumerate(found)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """One shape a bucket, sampling included. Results wait in the device until they are asked for."""
        real = device.arch != HOST_ARCH
        return Capabilities(
            compute_dtypes=("bfloat16", "float32") if real else ("float32", "bfloat16"),
            kv_dtypes=("bfloat16", "float32") if real else ("float32", "bfloat16"),
            block_sizes=(32, 16, 64, 128),
            attention=frozenset({"sliding_window", "softcap", "sinks"}),
            shapes="bucketed",
            mixes_prefill_and_decode=False,
            graphs="ahead_of_time",
            asynchronous=True,
            default_memory_fraction=0.9 if real else 0.25,
            verified="L3" if device.arch in ("v5e", "v6e") else "L2" if not real else "L0",
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Starts the vendor's runtime in this process."""
        given = options.backend_options
        if wrong := [unknown("backend option", key, OPTIONS) for key in given if key not in OPTIONS]:
            raise BackendError(wrong)
        by_hand = read_ladders(given)
        try:
            vendor, real = self._find(self._look())
        except VendorMissing as error:
            raise BackendError(f"{error}; {REMEDY}") from error
        if CACHE in given:
            vendor.keep_programs(given[CACHE])
        if options.dtype == "float32" or not real:
            vendor.exact_products()
        return TpuDevice(vendor, index, by_hand, kernel=real and given.get(KERNEL) != "off")


class TpuDevice(BucketedDevice):
    """One opened chip, or the host under XLA."""

    def __init__(
        self, vendor: Vendor, index: int, by_hand: Mapping[str, tuple[int, ...]], *, kernel: bool = False
    ) -> None:
        super().__init__(vendor, by_hand, DEFAULT)
        self.torch_device = vendor.device(index)
        self.vendor = vendor
        self._kernel = kernel

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes; the host's where the runtime does not tell."""
        self.vendor.synchronize()
        told = self.vendor.used_bytes(self.torch_device)
        if told is None:
            host = psutil.virtual_memory()
            return host.available, host.total
        used, total = told
        return total - used, total

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Attention, and what XLA cannot take as it is: it fuses the rest better than a hand would."""
        from mainspring.backends.bucketed.attention import Attention, kv_write
        from mainspring.backends.bucketed.sampling import logprobs

        return {"attention": Attention(kernel=self._paged_decode()), "kv_write": kv_write, "logprobs": logprobs}

    def _paged_decode(self) -> PagedDecode | None:
        if not self._kernel:
            return None
        from mainspring.backends.tpu.pallas_attention import as_torch_op

        return as_torch_op(self.vendor)

    def artifact_key(self) -> str:
        """What XLA's programs depend on."""
        import torch

        return f"torch-{torch.__version__}-{self.vendor.version()}"
