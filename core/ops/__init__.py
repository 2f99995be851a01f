"""Every op that a model is made of: one file an op, with its signature and its reference in plain torch.

The reference is the semantics, the fallback and the test oracle at once. A backend overrides ops by name
(`Device.ops`); `resolve` merges the two once, when the model is built, so layers hold plain callables and nothing
dispatches per call.

Legend: T packed tokens, R sequences, E hidden size, I intermediate size, H query heads, K kv heads, D head dim,
L layers, B blocks a sequence, S tokens a block, V vocabulary, P positions of the rope table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import Tensor

from mainspring.core.errors import BackendError, unknown
from mainspring.core.ops.activation import gelu, gelu_mul, silu_mul
from mainspring.core.ops.attention import attention, kv_write
from mainspring.core.ops.bitmask import apply_bitmask
from mainspring.core.ops.choose import choose
from mainspring.core.ops.embedding import embedding
from mainspring.core.ops.heads import RotateAndStore
from mainspring.core.ops.logprobs import logprobs
from mainspring.core.ops.moe import moe, route
from mainspring.core.ops.norm import add_rms_norm, layer_norm, rms_norm
from mainspring.core.ops.rope import rope
from mainspring.core.ops.sample import SamplingTensors, sample

_CHOOSE = partial(choose, sample)


@dataclass(frozen=True, slots=True)
class Ops:
    """The ops, each defaulting to its reference. Field names are the names that `Device.ops` may override."""

    embedding: Callable[[Tensor, Tensor], Tensor] = embedding
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_rms_norm
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor] = layer_norm
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = rope
    silu_mul: Callable[[Tensor], Tensor] = silu_mul
    gelu_mul: Callable[[Tensor, bool], Tensor] = gelu_mul
    gelu: Callable[[Tensor, bool], Tensor] = gelu
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]] = route
    moe: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = moe
    kv_write: Callable[..., None] = kv_write
    attention: Callable[..., Tensor] = attention
    sample: Callable[[Tensor, SamplingTensors], Tensor] = sample
    logprobs: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]] = logprobs
    choose: Callable[[Tensor, SamplingTensors, Tensor, Tensor], Tensor] = _CHOOSE
    """Over the backend's own `sample` where it overrides only that."""
    rotate_and_store: RotateAndStore | None = None
    """In place of `rms_norm` over heads, `rope` and the writing half of `attention`. None: layers call those."""
    apply_bitmask: Callable[[Tensor, Tensor, Tensor], Tensor] = apply_bitmask


def resolve(overrides: Mapping[str, Callable[..., Any]]) -> Ops:
    """The reference ops with a backend's overrides in their place.

    Raises `BackendError` for a name that is no op, with the nearest one.
    """
    names = {field.name for field in fields(Ops)}
    wrong = [unknown("op", name, names) for name in overrides if name not in names]
    if wrong:
        raise BackendError(wrong)
    ops = replace(Ops(), **overrides)
    if "sample" in overrides and "choose" not in overrides:
        return replace(ops, choose=partial(choose, ops.sample))
    return ops
