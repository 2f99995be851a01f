"""Checks of attention and the paged cache: batches, geometries, features, writes, padding, copies.

What is compared, and how caches are filled, is `bench.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata, Capabilities, Device
from mainspring.core.batch import Buckets
from mainspring.core.config import Dtype, KVDtype
from mainspring.core.conformance.bench import LAYER, LAYERS, Bench, Features, Setting
from mainspring.core.conformance.cases import (
    Placed,
    RaggedBatch,
    Row,
    geometries,
    limits,
    place,
    ragged_batches,
    step_of,
)
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import EXACT, Check, Trial
from mainspring.core.ops import resolve

Act = Callable[[Bench], AttentionMetadata]
"""What is done to a filled cache, and to the reference's; returns the step that is compared then."""


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each subject, the features that are declared among them."""
    yield Check("attention", lambda device: AttentionChecks(device, capabilities).attention())
    for feature in ("sliding_window", "softcap", "sinks"):
        if feature in capabilities.attention:
            yield Check(f"attention, {feature.replace('_', ' ')}", partial(_feature, feature, capabilities))
    yield Check("kv_write", lambda device: AttentionChecks(device, capabilities).kv_write())
    yield Check("padding is inert", lambda device: AttentionChecks(device, capabilities).padding())
    yield Check("copy_blocks", lambda device: AttentionChecks(device, capabilities).copy_blocks())
    yield Check("swap_blocks", lambda device: AttentionChecks(device, capabilities).swap_blocks())
    if capabilities.batch_invariant:
        yield Check("batch invariance", lambda device: AttentionChecks(device, capabilities).invariance())


def _feature(feature: str, capabilities: Capabilities, device: Device) -> Finding:
    return AttentionChecks(device, capabilities).feature(feature)


class AttentionChecks:
    """All checks of attention and the cache on one device."""

    def __init__(self, device: Device, capabilities: Capabilities) -> None:
        self._device = device
        self._capabilities = capabilities
        self._overrides = device.ops()
        self._ops = resolve(self._overrides)

    def findings(self) -> Iterator[Finding]:
        """One for each subject."""
        for check in checks(self._capabilities):
            yield check.run(self._device)

    # --- what is tried ---

    def _kv_dtypes(self, dtype: Dtype) -> tuple[KVDtype, ...]:
        """Cache dtypes to try with a compute dtype: all with the preferred, else its own where declared."""
        # int8 caches need scales, which are the backend's own affair.
        floats = tuple(kv_dtype for kv_dtype in self._capabilities.kv_dtypes if kv_dtype != "int8")
        if not floats:
            return (dtype,)
        if dtype == self._capabilities.compute_dtypes[0]:
            return floats
        return (dtype,) if dtype in floats else floats[:1]

    def _preferred(self, features: Features | None = None) -> Setting:
        dtype = self._capabilities.compute_dtypes[0]
        geometry = geometries(self._capabilities.head_dims)[0]
        kv_dtypes = self._kv_dtypes(dtype)
        kv_dtype = dtype if dtype in kv_dtypes else kv_dtypes[0]
        return Setting(geometry, dtype, kv_dtype, self._capabilities.block_sizes[0], features or Features())

    def _settings(self) -> Iterator[tuple[Setting, bool]]:
        """The preferred setting, then each that differs from it in one respect; whether all batches are worth it."""
        preferred = self._preferred()
        yield preferred, True
        for dtype in self._capabilities.compute_dtypes:
            for kv_dtype in self._kv_dtypes(dtype):
                if (dtype, kv_dtype) != (preferred.dtype, preferred.kv_dtype):
                    yield replace(preferred, dtype=dtype, kv_dtype=kv_dtype), dtype != preferred.dtype
        for geometry in geometries(self._capabilities.head_dims)[1:]:
            yield replace(preferred, geometry=geometry), False
        for block_size in self._capabilities.block_sizes[1:]:
            yield replace(preferred, block_size=block_size), True

    def _batches(self, block_size: int) -> tuple[RaggedBatch, ...]:
        mixes = self._capabilities.mixes_prefill_and_decode
        return tuple(batch for batch in ragged_batches(block_size) if mixes or not batch.mixed)

    def _buckets(self, block_size: int) -> Buckets | None:
        return self._device.buckets(limits(block_size))

    def _place(self, batch: RaggedBatch, setting: Setting) -> Placed:
        generator = torch.Generator().manual_seed(0)
        return place(batch, setting.block_size, self._buckets(setting.block_size), generator)

    def _bench(self, batch: RaggedBatch, setting: Setting) -> Bench:
        bench = Bench(self._device, self._ops, setting, self._place(batch, setting))
        bench.spoil()
        bench.remember()
        return bench

    # --- trials ---

    def _trial(self, subject: str, op: str) -> Trial:
        return Trial(subject, "native" if op in self._overrides else "falls back")

    def _method_trial(self, method: str) -> Trial:
        own = getattr(type(self._device), method) is not getattr(Device, method)
        return Trial(method, "native" if own else "default")

    def _try(
        self,
        trial: Trial,
        setting: Setting,
        batch: RaggedBatch,
        *,
        act: Act = lambda bench: bench.placed.step,
        layer: int = LAYER,
        writes_apart: bool = False,
    ) -> None:
        """One batch under one setting: a filled cache, what is done to it, then the step."""

        def work() -> tuple[Tensor, Tensor]:
            bench = self._bench(batch, setting)
            step = act(bench)
            tokens = bench.tokens(step)
            if writes_apart:
                bench.write(step, tokens, layer=layer)
            result = bench.attend(step, tokens, layer=layer, writes=not writes_apart)
            self._device.synchronize()
            return result, bench.expect(step, tokens, layer=layer)

        trial.run(f"{batch.name}; {setting}", work, setting.tolerance)

    # --- checks ---

    def attention(self) -> Finding:
        trial = self._trial("attention", "attention")
        for setting, thoroughly in self._settings():
            batches = self._batches(setting.block_size)
            for batch in batches if thoroughly else batches[-1:]:
                self._try(trial, setting, batch)
        return trial.finding()

    def feature(self, feature: str) -> Finding:
        """Attention with a declared feature, and with it and a window where both are declared."""
        size = self._preferred().block_size
        windowed = "sliding_window" in self._capabilities.attention
        if feature == "sliding_window":
            variants = [Features(window=window) for window in sorted({1, 3, size, size + 1, 100 * size})]
        elif feature == "softcap":
            both = [Features(window=size + 1, softcap=2.0)] * windowed
            variants = [Features(softcap=2.0), Features(softcap=30.0), *both]
        else:
            both = [Features(window=size + 1, sinks=True)] * windowed
            variants = [Features(sinks=True), *both]
        trial = self._trial(f"attention, {feature.replace('_', ' ')}", "attention")
        for features in variants:
            setting = self._preferred(features)
            for batch in self._batches(setting.block_size):
                if batch.rows:
                    self._try(trial, setting, batch)
        return trial.finding()

    def kv_write(self) -> Finding:
        """The step's keys and values come by `kv_write`, and attention is given none."""
        trial = self._trial("kv_write", "kv_write")
        setting = self._preferred()
        for batch in self._batches(setting.block_size):
            self._try(trial, setting, batch, writes_apart=True)
        return trial.finding()

    def padding(self) -> Finding:
        """A step of padding leaves every slot of the cache as it was, the first and the last among them."""
        trial = self._trial("padding is inert", "attention")
        setting = self._preferred()
        nothing = self._place(RaggedBatch("nothing", (), padded_rows=2, padded_tokens=3), setting).step

        def idle(bench: Bench) -> AttentionMetadata:
            tokens = bench.tokens(nothing)
            bench.attend(nothing, tokens)
            bench.write(nothing, tokens)
            return bench.placed.step

        row = Row(1, 2 * setting.block_size + 1)
        self._try(trial, setting, RaggedBatch("full blocks to the cache's end", (row, row)), act=idle)
        return trial.finding()

    def copy_blocks(self) -> Finding:
        """Rows go on in copies of their blocks, in every layer."""
        trial = self._method_trial("copy_blocks")

        def copy(bench: Bench) -> AttentionMetadata:
            pairs = _moves(bench)
            bench.device.copy_blocks(bench.kv, pairs)
            bench.expected_kv.copy_blocks(pairs)
            return self._after(bench, pairs)

        for layer in range(LAYERS):
            self._try(trial, self._preferred(), self._movable(), act=copy, layer=layer)
        return trial.finding()

    def swap_blocks(self) -> Finding:
        """Blocks leave for another cache and come back to other places, in every layer."""
        trial = self._method_trial("swap_blocks")

        def swap(bench: Bench) -> AttentionMetadata:
            pairs = _moves(bench)
            back = [(destination, destination) for _, destination in pairs]
            host, expected_host = bench.another_cache()
            bench.device.swap_blocks(bench.kv, host, pairs)
            bench.device.swap_blocks(host, bench.kv, back)
            expected_host.copy_blocks_from(bench.expected_kv, pairs)
            bench.expected_kv.copy_blocks_from(expected_host, back)
            return self._after(bench, pairs)

        for layer in range(LAYERS):
            self._try(trial, self._preferred(), self._movable(), act=swap, layer=layer)
        return trial.finding()

    def _movable(self) -> RaggedBatch:
        """Four rows, of which the first two have as many blocks as the others."""
        size = self._preferred().block_size
        lengths = (2 * size + 1, 2 * size, 2 * size + 3, size + 2)
        return RaggedBatch("rows that move", tuple(Row(1, length) for length in lengths))

    def _after(self, bench: Bench, pairs: Sequence[tuple[int, int]]) -> AttentionMetadata:
        """The step of the last two rows in the blocks they were moved to."""
        places = dict(pairs)
        tables = [[places[block] for block in table] for table in bench.placed.tables[2:]]
        size = bench.setting.block_size
        return step_of(bench.placed.batch.rows[2:], tables, size, self._buckets(size))

    def invariance(self) -> Finding:
        """Each row alone gives, bit for bit, what it gives among others."""
        trial = Trial("batch invariance", "declared")
        setting = self._preferred()
        size = setting.block_size
        for batch in self._batches(size):
            for row in range(len(batch.rows)):
                trial.run(f"row {row} of {batch.name}", partial(self._alone, batch, row), EXACT)
        return trial.finding()

    def _alone(self, batch: RaggedBatch, row: int) -> tuple[Tensor, Tensor]:
        setting = self._preferred()
        bench = self._bench(batch, setting)
        placed, tokens = bench.placed, bench.tokens(bench.placed.step)
        start, stop = placed.step.query_start[row : row + 2].tolist()
        together = bench.attend(placed.step, tokens)[start:stop].clone()
        size = setting.block_size
        step = step_of(batch.rows[row : row + 1], placed.tables[row : row + 1], size, self._buckets(size))
        room = bench.tokens(step)
        for mine, theirs in zip(
            (room.queries, room.keys, room.values), (tokens.queries, tokens.keys, tokens.values), strict=True
        ):
            mine[: stop - start] = theirs[start:stop]
        alone = bench.attend(step, room)[: stop - start]
        self._device.synchronize()
        return alone, together


def _moves(bench: Bench) -> list[tuple[int, int]]:
    """(source, destination): from each block of the last two rows to one of the first two."""
    first, second, third, fourth = bench.placed.tables
    return list(zip([*third, *fourth], [*first, *second], strict=True))
