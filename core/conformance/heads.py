"""Checks of `rotate_and_store`, the optional op between a projection and attention: against the ops it stands for.

What it stored shows in the attention behind it, which is given no keys and values.

Legend: T packed tokens, H query heads, K kv heads, D head dim, R rotating dims.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata, Capabilities, Device
from mainspring.core.conformance.bench import Angles, Bench, Setting
from mainspring.core.conformance.cases import RaggedBatch, geometries, limits, place, ragged_batches
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import Check, Trial
from mainspring.core.ops import Ops, resolve
from mainspring.core.ops.heads import HeadNorms

SUBJECT = "rotate_and_store"
EPSILON = 1e-6


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """The one."""
    yield Check(SUBJECT, partial(_finding, capabilities))


def _finding(capabilities: Capabilities, device: Device) -> Finding:
    overrides = device.ops()
    trial = Trial(SUBJECT, "native" if SUBJECT in overrides else "falls back")
    if SUBJECT not in overrides:
        return trial.finding("not offered: layers call the ops it stands for")
    ops, size = resolve(overrides), capabilities.block_sizes[0]
    batches = [batch for batch in ragged_batches(size) if capabilities.mixes_prefill_and_decode or not batch.mixed]
    for setting, tried in _settings(capabilities, batches):
        for batch in tried:
            for rotating in (setting.geometry.head_dim, setting.geometry.head_dim // 2):
                for normed in (False, True):
                    name = f"{batch.name}; {setting}, {rotating} dimensions turn{', normed' * normed}"
                    work = partial(_both, device, ops, setting, batch, (rotating, normed))
                    trial.run(name, work, setting.tolerance)
    return trial.finding()


def _settings(capabilities: Capabilities, batches: list[RaggedBatch]) -> Iterator[tuple[Setting, list[RaggedBatch]]]:
    """All batches with the preferred numbers, then one with each other dtype, narrow cache and geometry."""
    size, first = capabilities.block_sizes[0], capabilities.compute_dtypes[0]
    shapes = geometries(capabilities.head_dims)
    preferred = Setting(shapes[0], first, first, size)
    yield preferred, batches
    for dtype in capabilities.compute_dtypes[1:]:
        yield replace(preferred, dtype=dtype, kv_dtype=dtype), batches[-1:]
    for kv_dtype in capabilities.kv_dtypes:
        if kv_dtype.startswith("float8"):
            yield replace(preferred, kv_dtype=kv_dtype), batches[-1:]
    for geometry in shapes[1:]:
        yield replace(preferred, geometry=geometry), batches[-1:]


def _both(
    device: Device, ops: Ops, setting: Setting, batch: RaggedBatch, kind: tuple[int, bool]
) -> tuple[Tensor, Tensor]:
    """Queries, and what attention makes of them and of what was stored: the device's, the reference's, [T, 2H, D]."""
    rotating, normed = kind
    buckets = device.buckets(limits(setting.block_size))
    bench = Bench(device, ops, setting, place(batch, setting.block_size, buckets, torch.Generator().manual_seed(0)))
    bench.spoil()
    bench.remember()
    step = bench.placed.step
    tokens, size = bench.tokens(step), setting.geometry.head_dim
    norms = HeadNorms(torch.linspace(0.5, 1.5, size), torch.linspace(1.25, 0.75, size), EPSILON) if normed else None
    at = Angles(_positions(step), _table(step.max_kv + 1, rotating))
    return _shown(*bench.attend_rotated(step, tokens, at, norms)), _shown(
        *bench.expect_rotated(step, tokens, at, norms)
    )


def _shown(q_THD: Tensor, out_THD: Tensor) -> Tensor:
    return torch.cat((q_THD, out_THD), dim=1)


def _table(positions: int, rotating: int) -> Tensor:
    """[positions, R] float32, half cosines, half sines."""
    angles = torch.arange(float(positions))[:, None] / 50 ** (torch.arange(0, rotating, 2) / rotating)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _positions(step: AttentionMetadata) -> Tensor:
    """Of each packed token, [T] int32; 0 for padding."""
    positions = torch.zeros(len(step.slot), dtype=torch.int32)
    for row, length in enumerate(step.kv_length.tolist()):
        first, past = step.query_start[row : row + 2].tolist()
        positions[first:past] = torch.arange(length - (past - first), length, dtype=torch.int32)
    return positions
