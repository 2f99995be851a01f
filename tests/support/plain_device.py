"""The reference device, with eyes: tests can look into its cache, poison it, and give it buckets."""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.core.backend import Capabilities, KVSpec, ShapeLimits
from mainspring.core.batch import Buckets
from mainspring.core.ops.attention import PagedKV
from tests.support.reference_device import ReferenceDevice

DYNAMIC = Capabilities(compute_dtypes=("float32",), kv_dtypes=("float32",))


class PlainDevice(ReferenceDevice):
    """Remembers the cache that it allocated, and how often it was closed."""

    def __init__(self, buckets: Buckets | None = None) -> None:
        self.kv: PagedKV | None = None
        self.closed = 0
        self._buckets = buckets

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        self.kv = super().allocate_kv(spec, num_blocks)
        return self.kv

    def buckets(self, limits: ShapeLimits) -> Buckets | None:
        return self._buckets

    def close(self) -> None:
        self.closed += 1

    def poison(self, blocks: Iterable[int]) -> None:
        """Fills blocks with NaN, as stale memory that nobody may read."""
        assert self.kv is not None
        for cache in (*self.kv.keys, *self.kv.values):
            cache[list(blocks)] = float("nan")
