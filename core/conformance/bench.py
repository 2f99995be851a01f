"""A device's paged cache and the reference's, side by side: filled alike, attended to alike.

Legend: T packed tokens, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata, Device, KVCache, KVSpec
from mainspring.core.config import Dtype, KVDtype
from mainspring.core.conformance.cases import Geometry, Placed, moved
from mainspring.core.conformance.trial import Tolerance, coarsest
from mainspring.core.ops import Ops
from mainspring.core.ops.attention import PagedKV, attention
from mainspring.core.ops.heads import HeadNorms, HeadsStep, RotateAndStore, rotate_and_store

LAYERS = 2
LAYER = 1
"""The one that is looked at; the other holds something else."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a layer asks of attention besides a scale."""

    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def __str__(self) -> str:
        parts = (f"window {self.window}" * (self.window is not None), f"softcap {self.softcap}" * bool(self.softcap))
        return ", ".join(part for part in (*parts, "sinks" * self.sinks) if part)


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything about a case but its batch."""

    geometry: Geometry
    dtype: Dtype
    kv_dtype: KVDtype
    block_size: int
    features: Features = field(default=Features())

    def __str__(self) -> str:
        cache = f", cache {self.kv_dtype}" if self.kv_dtype != self.dtype else ""
        features = f", {self.features}" if self.features != Features() else ""
        return f"{self.dtype}{cache}, {self.geometry}, blocks of {self.block_size}{features}"

    @property
    def tolerance(self) -> Tolerance:
        return coarsest(self.dtype, self.kv_dtype)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Queries, keys and values of one step, on the host."""

    queries: Tensor
    """[T, H, D]"""
    keys: Tensor
    """[T, K, D]"""
    values: Tensor


@dataclass(frozen=True, slots=True)
class Angles:
    """How a step's heads turn."""

    positions: Tensor
    """[T] int32"""
    table: Tensor
    """[positions, R] float32, as `rope` takes it."""


class Bench:
    """A device's cache and the reference's, filled alike."""

    def __init__(
        self,
        device: Device,
        ops: Ops,
        setting: Setting,
        placed: Placed,
        *,
        layers: int = LAYERS,
        expected_blocks: int | None = None,
    ) -> None:
        """`expected_blocks`: how many the reference's cache has, where the device's is too large to have twice."""
        self.device = device
        self.ops = ops
        self.setting = setting
        self.placed = placed
        self._generator = torch.Generator().manual_seed(1)
        geometry = setting.geometry
        self._spec = KVSpec(layers, geometry.num_kv_heads, geometry.head_dim, setting.kv_dtype, setting.block_size)
        self.kv = device.allocate_kv(self._spec, placed.num_blocks)
        # What the cache's dtype rounds is rounded in the reference's tokens, so that its cache can hold float32.
        expected = replace(self._spec, dtype="float32")
        self.expected_kv = PagedKV.allocate(expected, expected_blocks or placed.num_blocks, "cpu")
        self._sinks = torch.randn(geometry.num_heads, generator=self._generator)

    def another_cache(self) -> tuple[KVCache, PagedKV]:
        """An empty pair of the same shape."""
        empty = PagedKV.allocate(replace(self._spec, dtype="float32"), self.placed.num_blocks, "cpu")
        return self.device.allocate_kv(self._spec, self.placed.num_blocks), empty

    def spoil(self) -> None:
        """Fills the device's cache with NaN, block 0 excepted."""
        for metadata in self.placed.stale:
            tokens = self.tokens(metadata)
            nothing = torch.full_like(tokens.keys, float("nan"))
            for layer in range(LAYERS):
                self.attend(metadata, replace(tokens, keys=nothing, values=nothing), layer=layer)

    def remember(self) -> None:
        """Computes the rows' past in both caches."""
        for metadata in self.placed.history:
            # The layer that is looked at comes first, so that what a device puts in a wrong one stays there.
            for layer in reversed(range(LAYERS)):
                tokens = self.tokens(metadata)
                self.attend(metadata, tokens, layer=layer)
                self.expect(metadata, tokens, layer=layer)

    def tokens(self, metadata: AttentionMetadata) -> Tokens:
        """Random ones. Keys and values of padding are NaN: whoever stores them is found out."""
        geometry = self.setting.geometry
        count = len(metadata.slot)

        def random(num_heads: int) -> Tensor:
            x = torch.randn(count, num_heads, geometry.head_dim, generator=self._generator)
            return x.to(getattr(torch, self.setting.dtype)).float()

        q_THD, k_TKD, v_TKD = random(geometry.num_heads), random(geometry.num_kv_heads), random(geometry.num_kv_heads)
        k_TKD[metadata.slot < 0] = v_TKD[metadata.slot < 0] = float("nan")
        return Tokens(q_THD, k_TKD, v_TKD)

    def attend(self, metadata: AttentionMetadata, tokens: Tokens, *, layer: int = LAYER, writes: bool = True) -> Tensor:
        """The device's attention, [T, H, D]; without `writes` it is given no keys and values."""
        plan = self.device.prepare_attention(moved(metadata, self.device.torch_device), self.kv)
        q_THD, k_TKD, v_TKD = (self._placed(x) for x in (tokens.queries, tokens.keys, tokens.values))
        keys_and_values = (k_TKD, v_TKD) if writes else (None, None)
        arguments = self._arguments(self.device.torch_device)
        out: Tensor = self.ops.attention(q_THD, *keys_and_values, self.kv, layer, plan, **arguments)
        # Each step is a piece of its own where ops gather until somebody asks, so that steps of one shape recur.
        self.device.synchronize()
        return out

    def expect(self, metadata: AttentionMetadata, tokens: Tokens, *, layer: int = LAYER) -> Tensor:
        """The reference's, in float32 on the host."""
        rounded = getattr(torch, self.setting.kv_dtype)
        k_TKD, v_TKD = (x.to(rounded).float() for x in (tokens.keys, tokens.values))
        return attention(tokens.queries, k_TKD, v_TKD, self.expected_kv, layer, metadata, **self._arguments("cpu"))

    def attend_rotated(
        self, metadata: AttentionMetadata, tokens: Tokens, angles: Angles, norms: HeadNorms | None
    ) -> tuple[Tensor, Tensor]:
        """The device's `rotate_and_store`, which it must have, and its attention behind: queries and result."""
        there = self.device.torch_device
        plan = self.device.prepare_attention(moved(metadata, there), self.kv)
        step = HeadsStep(angles.positions.to(there), angles.table.to(there), self.kv, LAYER, plan)
        weights = norms and HeadNorms(self._placed(norms.q), self._placed(norms.k), norms.epsilon)
        given = [self._placed(x) for x in (tokens.queries, tokens.keys, tokens.values)]
        rotate: RotateAndStore = self.device.ops()["rotate_and_store"]
        q_THD = rotate(given[0], given[1], given[2], step, weights)
        out_THD = self.ops.attention(q_THD, None, None, self.kv, LAYER, plan, **self._arguments(there))
        self.device.synchronize()
        return q_THD, out_THD

    def expect_rotated(
        self, metadata: AttentionMetadata, tokens: Tokens, angles: Angles, norms: HeadNorms | None
    ) -> tuple[Tensor, Tensor]:
        """The references', in float32 on the host."""
        step = HeadsStep(angles.positions, angles.table, self.expected_kv, LAYER, metadata)
        q_THD = rotate_and_store(tokens.queries, tokens.keys, tokens.values, step, norms)
        rounded = getattr(torch, self.setting.kv_dtype)
        for cache in (self.expected_kv.keys[LAYER], self.expected_kv.values[LAYER]):
            cache.copy_(cache.to(rounded).float())
        arguments = self._arguments("cpu")
        return q_THD, attention(q_THD, None, None, self.expected_kv, LAYER, metadata, **arguments)

    def write(self, metadata: AttentionMetadata, tokens: Tokens, *, layer: int = LAYER) -> None:
        """The device's kv_write."""
        slot_T = metadata.slot.to(self.device.torch_device)
        self.ops.kv_write(self._placed(tokens.keys), self._placed(tokens.values), self.kv, layer, slot_T)
        self.device.synchronize()

    def _placed(self, x: Tensor) -> Tensor:
        return x.to(device=self.device.torch_device, dtype=getattr(torch, self.setting.dtype))

    def _arguments(self, device: str) -> dict[str, Any]:
        features = self.setting.features
        return {
            "scale": self.setting.geometry.head_dim**-0.5,
            "window": features.window,
            "softcap": features.softcap,
            "sinks": self._sinks.to(device) if features.sinks else None,
        }
