"""Checks of the ops that know no cache: norms, rope, activations, embedding.

Each case is arguments as a device would get them; the reference gets the same numbers in float32 on the host.

Legend: T packed tokens, E hidden size, I intermediate size, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device
from mainspring.core.conformance.cases import token_counts
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import TOLERANCES, Check, Trial
from mainspring.core.ops import Ops, resolve
from mainspring.core.ops.moe import route

Arguments = tuple[Any, ...]
EPSILON = 1e-5


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _embedding(tokens: int) -> Iterator[tuple[str, Arguments]]:
    yield "100 rows", (torch.arange(tokens, dtype=torch.int32) * 7 % 100, _random(100, 48))


def _rms_norm(tokens: int) -> Iterator[tuple[str, Arguments]]:
    for size in (64, 80, 576):
        yield f"of {size}", (_random(tokens, size), _random(size), EPSILON)
    # Where the epsilon decides, and where squares would leave float16.
    yield "small numbers", (_random(tokens, 64) * 1e-3, _random(64), EPSILON)
    yield "large numbers", (_random(tokens, 64) * 1e3, _random(64), EPSILON)
    yield "heads", (_random(tokens, 4, 32), _random(32), EPSILON)


def _add_rms_norm(tokens: int) -> Iterator[tuple[str, Arguments]]:
    for size in (64, 576):
        yield f"of {size}", (_random(tokens, size), _random(tokens, size).flip(-1), _random(size), EPSILON)
    yield "small numbers", (_random(tokens, 64) * 1e-3, _random(tokens, 64).flip(-1) * 1e-3, _random(64), EPSILON)


def _layer_norm(tokens: int) -> Iterator[tuple[str, Arguments]]:
    yield "with bias", (_random(tokens, 96) + 1, _random(96), _random(96).flip(0), EPSILON)
    yield "without bias", (_random(tokens, 96) + 1, _random(96), None, EPSILON)


def _rope(tokens: int) -> Iterator[tuple[str, Arguments]]:
    positions = torch.arange(tokens, dtype=torch.int32) * 31 % 257
    for num_heads, num_kv_heads, head_dim, rotary_dim in (
        (6, 2, 64, 64),
        (9, 3, 64, 64),
        (4, 4, 80, 32),
        (8, 1, 128, 128),
    ):
        angles = torch.arange(257.0)[:, None] / 100 ** (torch.arange(0, rotary_dim, 2) / rotary_dim)
        table = torch.cat((angles.cos(), angles.sin()), dim=-1)
        q_THD, k_TKD = _random(tokens, num_heads, head_dim), _random(tokens, num_kv_heads, head_dim)
        yield f"{rotary_dim} of {head_dim} dimensions", (q_THD, k_TKD, positions, table)
        # As a fused projection leaves them: views with a stride.
        qkv = _random(tokens, num_heads + 2 * num_kv_heads, head_dim)
        views = qkv[:, :num_heads], qkv[:, num_heads : num_heads + num_kv_heads]
        yield f"{rotary_dim} of {head_dim} dimensions, views", (*views, positions, table)


def _gated(tokens: int) -> Iterator[tuple[str, Arguments]]:
    for size in (32, 72, 1536):
        yield f"of {size}", (_random(tokens, 2 * size) * 3,)


def _with_tanh(tokens: int) -> Iterator[tuple[str, Arguments]]:
    for size, tanh in ((32, True), (32, False), (72, True)):
        yield f"of {size}, {'tanh' if tanh else 'exact'}", (_random(tokens, 2 * size) * 3, tanh)


def _route(tokens: int) -> Iterator[tuple[str, Arguments]]:
    for experts, chosen, normalized in ((4, 2, True), (5, 1, False), (60, 6, False), (128, 8, True)):
        # No two alike, in any dtype: which of them comes first is nobody's promise.
        places = (torch.arange(experts) * 7 + torch.arange(tokens)[:, None]) % experts
        scores = places / 8
        yield f"{chosen} of {experts} experts{', normalized' * normalized}", (scores, chosen, normalized)


def _moe(tokens: int) -> Iterator[tuple[str, Arguments]]:
    for experts, chosen, size, features in ((4, 2, 64, 48), (5, 1, 80, 32), (16, 4, 64, 96)):
        scores = _random(tokens, experts)
        weights, indices = route(scores, chosen, normalized=True)
        gate_up, down = _random(experts, 2 * features, size) / 8, _random(experts, size, features) / 8
        x = _random(tokens, size)
        yield f"{chosen} of {experts} experts, {size} to {features}", (x, gate_up, down, weights, indices)
    yield "all to the last expert", (x, gate_up, down, weights[:, :1], torch.full_like(indices[:, :1], experts - 1))
    # As a rank that holds some experts sees the choices of others': they lie at any place, here one that overflows.
    weightless = torch.where(indices % 2 == 0, 0.0, weights)
    overflowing = gate_up.clone()
    overflowing[::2] = torch.inf
    yield "half of the experts without weight", (x, overflowing, down, weightless, indices)
    yield "no weight at all", (x, torch.full_like(gate_up, torch.inf), down, torch.zeros_like(weights), indices)


CASES: Mapping[str, Callable[[int], Iterator[tuple[str, Arguments]]]] = MappingProxyType(
    {
        "embedding": _embedding,
        "rms_norm": _rms_norm,
        "add_rms_norm": _add_rms_norm,
        "layer_norm": _layer_norm,
        "rope": _rope,
        "route": _route,
        "moe": _moe,
        "silu_mul": _gated,
        "gelu_mul": _with_tanh,
        "gelu": _with_tanh,
    }
)
"""By op: for a number of tokens, what is special about a case and the arguments, floating-point ones in float32."""

STAYS_FLOAT32 = {"rope": (3,), "moe": (3,)}
"""Arguments that are float32 whatever the compute dtype is: the rope table, the weights of experts."""


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each op."""
    for name in CASES:
        yield Check(name, partial(_finding, name, capabilities))


def _finding(name: str, capabilities: Capabilities, device: Device) -> Finding:
    overrides = device.ops()
    calls = getattr(resolve(overrides), name), getattr(Ops(), name)
    trial = Trial(name, "native" if name in overrides else "falls back")
    for dtype_name in capabilities.compute_dtypes:
        dtype = getattr(torch, dtype_name)
        for tokens in token_counts(device, capabilities):
            for special, arguments in CASES[name](tokens):
                work = partial(_both, device, calls, name, dtype, arguments)
                trial.run(f"{tokens} tokens, {special}; {dtype_name}", work, TOLERANCES[dtype])
    return trial.finding()


def _both(
    device: Device,
    calls: tuple[Callable[..., Any], Callable[..., Any]],
    name: str,
    dtype: torch.dtype,
    given: Arguments,
) -> tuple[Tensor, Tensor]:
    """The device's result and the reference's on the same rounded numbers; several results in one row."""
    native, reference = calls
    kept = STAYS_FLOAT32.get(name, ())
    rounded = [_converted(x, None if index in kept else dtype) for index, x in enumerate(given)]
    theirs = [x.to(device.torch_device) if isinstance(x, Tensor) else x for x in rounded]
    exact = [_converted(x, torch.float32) for x in rounded]
    result, expected = native(*theirs), reference(*exact)
    device.synchronize()
    return _one(result), _one(expected)


def _converted(x: Any, dtype: torch.dtype | None) -> Any:
    """Floating-point tensors in a dtype, strides kept; anything else as it is."""
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and dtype is not None else x


def _one(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else torch.cat([part.flatten(1) for part in result], dim=1)
