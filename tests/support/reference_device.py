"""The smallest device: the contract's defaults over host memory. Models run on it with the reference ops."""

from __future__ import annotations

from mainspring.core.backend import Device, KVSpec
from mainspring.core.ops.attention import PagedKV


class ReferenceDevice(Device):
    """Every call that is not required is the contract's default."""

    torch_device = "cpu"

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        return PagedKV.allocate(spec, num_blocks, self.torch_device)

    def synchronize(self) -> None:
        pass
