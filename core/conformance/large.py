"""Checks of offsets past 2^31 elements, where 32-bit arithmetic ends: a cache so large that its last blocks lie there.

Only the device's cache is large, and only its first and last blocks are touched; the reference's holds the same blocks
side by side. The cache has one layer in the smallest dtype declared: 8 GiB in 16 bits, 4 in 8. Where that is more than
a third of what is free, nothing is tried and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mainspring.core.backend import KV_DTYPE_BYTES, AttentionMetadata, Capabilities, Device, KVSpec
from mainspring.core.batch import Buckets
from mainspring.core.config import KVDtype
from mainspring.core.conformance.bench import Bench, Setting, Tokens
from mainspring.core.conformance.cases import Geometry, Placed, RaggedBatch, Row, limits, step_of
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import Check, Trial
from mainspring.core.ops import resolve

OFFSET = 2**31
TAIL = 4
"""Blocks past the offset."""
ROOM = 3
"""Times the cache that must be free."""

SUBJECTS = ("attention", "kv_write", "copy_blocks")


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each op that computes such offsets."""
    for subject in SUBJECTS:
        yield Check(f"{subject} past 2^31", partial(_finding, subject, capabilities))


def _finding(subject: str, capabilities: Capabilities, device: Device) -> Finding:
    own = subject in device.ops() if subject != "copy_blocks" else type(device).copy_blocks is not Device.copy_blocks
    trial = Trial(f"{subject} past 2^31", "native" if own else "falls back")
    setting = _setting(capabilities)
    geometry = setting.geometry
    spec = KVSpec(1, geometry.num_kv_heads, geometry.head_dim, setting.kv_dtype, setting.block_size)
    first = -(-OFFSET // (spec.block_size * spec.heads * spec.head_dim))
    needed, free = (first + TAIL) * spec.block_bytes(), device.memory()[0]
    if free < ROOM * needed:
        return trial.finding(f"needs {needed / 2**30:.0f} GiB and is tried where {ROOM} times that are free")
    trial.run(
        f"{setting}, {first + TAIL} blocks", partial(_compare, device, setting, first, subject), setting.tolerance
    )
    return trial.finding()


def _setting(capabilities: Capabilities) -> Setting:
    dtype = capabilities.compute_dtypes[0]
    floats: tuple[KVDtype, ...] = tuple(kv for kv in capabilities.kv_dtypes if kv != "int8") or (dtype,)
    head_dim = 128 if not capabilities.head_dims or 128 in capabilities.head_dims else capabilities.head_dims[0]
    smallest = min(floats, key=lambda kv: KV_DTYPE_BYTES[kv])
    return Setting(Geometry(8, 8, head_dim), dtype, smallest, capabilities.block_sizes[0])


@dataclass(frozen=True, slots=True)
class Places:
    """Blocks of a row in the cache's last ones and of one in its first, where offsets that wrap around would lead."""

    far: tuple[int, ...]
    near: tuple[int, ...]

    def moved(self, offset: int) -> Places:
        """Where the reference has them: what lies past `offset` right behind the rest."""

        return Places(*(tuple(_moved(block, offset) for block in blocks) for blocks in (self.far, self.near)))


def _moved(block: int, offset: int) -> int:
    return block - offset if block > offset else block


def _compare(device: Device, setting: Setting, first: int, subject: str) -> tuple[Tensor, Tensor]:
    buckets = device.buckets(limits(setting.block_size))
    near = tuple(range(TAIL, 2 * TAIL))
    places, offset = Places((first + 3, first, first + 2), near), first - 2 * TAIL
    placed = Placed(RaggedBatch("far and near", ()), (), first + TAIL, (), _step(places, setting, buckets), ())
    bench = Bench(device, resolve(device.ops()), setting, placed, layers=1, expected_blocks=3 * TAIL)
    for ours, theirs in zip(
        _past(places, setting, buckets), _past(places.moved(offset), setting, buckets), strict=True
    ):
        tokens = bench.tokens(ours)
        _write(bench, ours, tokens, subject)
        bench.expect(theirs, tokens, layer=0)
    if subject == "copy_blocks":
        # Out of the last blocks and, when those are free, into them.
        ending = Places((1, 2, 3), tuple(range(first, first + TAIL)))
        for source, destination in ((places.far, ending.far), (places.near, ending.near)):
            pairs = list(zip(source, destination, strict=True))
            device.copy_blocks(bench.kv, pairs)
            bench.expected_kv.copy_blocks([(_moved(a, offset), _moved(b, offset)) for a, b in pairs])
        places = ending
    step = _step(places, setting, buckets)
    tokens = bench.tokens(step)
    apart = subject == "kv_write"
    if apart:
        bench.write(step, tokens, layer=0)
    result = bench.attend(step, tokens, layer=0, writes=not apart)
    device.synchronize()
    return result, bench.expect(_step(places.moved(offset), setting, buckets), tokens, layer=0)


def _write(bench: Bench, step: AttentionMetadata, tokens: Tokens, subject: str) -> None:
    if subject == "kv_write":
        bench.write(step, tokens, layer=0)
    else:
        bench.attend(step, tokens, layer=0)


def _rows(size: int) -> tuple[Row, Row]:
    return Row(1, 2 * size + 2), Row(1, TAIL * size)


def _step(places: Places, setting: Setting, buckets: Buckets | None) -> AttentionMetadata:
    size = setting.block_size
    return step_of(_rows(size), [places.far, places.near], size, buckets)


def _past(places: Places, setting: Setting, buckets: Buckets | None) -> Iterator[AttentionMetadata]:
    """What the rows computed before, each in a step of its own."""
    size = setting.block_size
    for row, table in zip(_rows(size), (places.far, places.near), strict=True):
        yield step_of([Row(row.length - 1, row.length - 1)], [table], size, buckets)
