"""How fast ops are at a shape that decoding has, and how near that is to what memory allows.

The roof is a plain copy on the same device, timed here: an op that moves the bytes it must at that speed is at 100 %.
Ops whose data fits a cache go past it. Only ops that memory bounds are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device, KVSpec, unquantized
from mainspring.core.conformance.cases import Row, geometries, moved, step_of
from mainspring.core.conformance.report import Timing
from mainspring.core.ops import resolve

ROWS, HIDDEN, CONTEXT = 64, 2048, 512
COPIED_BYTES = 1 << 26
BUDGET = 0.05
"""Seconds that one op is repeated for."""


@dataclass(frozen=True, slots=True)
class Call:
    """One op at one shape."""

    subject: str
    shape: str
    run: Callable[[], Any]
    moved_bytes: int


def timings(device: Device, capabilities: Capabilities) -> Mapping[str, Timing]:
    """By subject. Empty on devices that take only shapes of their buckets: those are not the shapes here."""
    if capabilities.shapes == "bucketed":
        return {}
    with torch.inference_mode():
        source, target = (torch.zeros(COPIED_BYTES, dtype=torch.uint8).to(device.torch_device) for _ in range(2))
        speed = 2 * COPIED_BYTES / _seconds(device, lambda: target.copy_(source))
        return {
            call.subject: Timing(
                shape=call.shape,
                seconds=(seconds := _seconds(device, call.run)),
                roofline=call.moved_bytes / speed / seconds,
            )
            for call in _calls(device, capabilities)
        }


def _seconds(device: Device, run: Callable[[], Any]) -> float:
    """The quickest of several calls in a row, per call; the first are not counted."""
    run()
    run()
    device.synchronize()
    best, deadline = float("inf"), time.perf_counter() + BUDGET
    while time.perf_counter() < deadline:
        begun = time.perf_counter()
        # Results are kept, so that a device that computes when asked has somebody who might ask.
        results = [run() for _ in range(4)]
        device.synchronize()
        best = min(best, (time.perf_counter() - begun) / len(results))
    return best


def _calls(device: Device, capabilities: Capabilities) -> Iterator[Call]:
    ops, dtype = resolve(device.ops()), getattr(torch, capabilities.compute_dtypes[0])

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device.torch_device, dtype)

    x_TE, y_TE, weight_E = random(ROWS, HIDDEN), random(ROWS, HIDDEN), random(HIDDEN)
    gated_T2I = random(ROWS, 2 * HIDDEN)
    named = f"[{ROWS}, {HIDDEN}] {capabilities.compute_dtypes[0]}"
    yield Call("rms_norm", named, lambda: ops.rms_norm(x_TE, weight_E, 1e-5), 2 * x_TE.nbytes)
    yield Call("add_rms_norm", named, lambda: ops.add_rms_norm(x_TE, y_TE, weight_E, 1e-5), 4 * x_TE.nbytes)
    yield Call("silu_mul", named, lambda: ops.silu_mul(gated_T2I), 3 * x_TE.nbytes)
    yield Call("gelu_mul", named, lambda: ops.gelu_mul(gated_T2I, True), 3 * x_TE.nbytes)
    plain = unquantized(capabilities.compute_dtypes[0])
    weight_NK = random(HIDDEN, HIDDEN)
    packed = device.pack(plain, {"weight": weight_NK})
    yield Call(
        f"linear, {capabilities.compute_dtypes[0]}",
        f"[1, {HIDDEN}] x [{HIDDEN}, {HIDDEN}]",
        lambda: device.quantized_linear(x_TE[:1], packed),
        weight_NK.nbytes,
    )
    yield _attention(device, capabilities, random)


def _attention(device: Device, capabilities: Capabilities, random: Callable[..., Tensor]) -> Call:
    geometry, size = geometries(capabilities.head_dims)[0], capabilities.block_sizes[0]
    dtype = capabilities.compute_dtypes[0]
    kv_dtype = dtype if not capabilities.kv_dtypes or dtype in capabilities.kv_dtypes else capabilities.kv_dtypes[0]
    spec = KVSpec(1, geometry.num_kv_heads, geometry.head_dim, kv_dtype, size)
    rows, blocks = 8, CONTEXT // size
    kv = device.allocate_kv(spec, rows * blocks + 1)
    tables = [range(1 + row * blocks, 1 + (row + 1) * blocks) for row in range(rows)]
    step = moved(step_of([Row(1, blocks * size)] * rows, tables, size, None), device.torch_device)
    plan = device.prepare_attention(step, kv)
    attend = resolve(device.ops()).attention
    q_THD = random(rows, geometry.num_heads, geometry.head_dim)
    k_TKD, v_TKD = (random(rows, geometry.num_kv_heads, geometry.head_dim) for _ in range(2))
    scale = geometry.head_dim**-0.5
    return Call(
        "attention",
        f"{rows} decodes of {blocks * size} tokens, {geometry}",
        lambda: attend(q_THD, k_TKD, v_TKD, kv, 0, plan, scale=scale),
        rows * blocks * spec.block_bytes(),
    )
