"""A device that is the reference and nothing more: torch on the host, the reference ops, the reference cache."""

from __future__ import annotations

from torch import Tensor

from mainspring.core.backend import Capabilities, Device, KVSpec, ShapeLimits
from mainspring.core.batch import Buckets
from mainspring.core.ops.attention import PagedKV

DYNAMIC = Capabilities(compute_dtypes=("float32",), kv_dtypes=("float32",))


class PlainDevice(Device):
    """Knows the cache that it allocated, so that tests can look into it and poison it."""

    torch_device = "cpu"

    def __init__(self, buckets: Buckets | None = None) -> None:
        self.kv: PagedKV | None = None
        self.closed = 0
        self._buckets = buckets

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        self.kv = PagedKV.allocate(spec, num_blocks, self.torch_device)
        return self.kv

    def synchronize(self) -> None:
        pass

    def buckets(self, limits: ShapeLimits) -> Buckets | None:
        return self._buckets

    def close(self) -> None:
        self.closed += 1


def poison(kv: PagedKV, blocks: range | list[int]) -> None:
    """Fills blocks with NaN, as stale memory that nobody may read."""
    for cache in (*kv.keys, *kv.values):
        _nan(cache, list(blocks))


def _nan(cache: Tensor, blocks: list[int]) -> None:
    cache[blocks] = float("nan")
