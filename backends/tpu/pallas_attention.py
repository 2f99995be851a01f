"""Decode attention over the paged cache as a Pallas kernel: reads each block once and holds nothing but one at a time.

Grid (R, B): blocks of a row follow one another, and the pipeline fetches the next while this one is computed; which
block that is, the table says, which the scalar core has before the kernel starts. Past a row's end the table repeats
the last block, which is then not fetched again. The softmax runs as in `attention.RunningSoftmax`.

Imports JAX, which both vendors' libraries use to lower kernels: only where a chip is. Legend: R rows, B blocks a row,
H query heads, K kv heads, G query heads of a kv head, S tokens a block, D head dim, N blocks of the cache.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mainspring.backends.bucketed.attention import LANES, LOWEST, PagedDecode
from mainspring.backends.tpu.vendor import Vendor


def paged_decode(
    blocks_RB: jax.Array,
    length_R: jax.Array,
    q_RKGD: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    softcap: float = 0.0,
    interpret: Any = False,
) -> jax.Array:
    """[R, K, G, D]. Scaled queries, keys and values [N, K, S, D], the block table flat as [R * B], softcap 0 for none.

    `interpret` is Pallas's own: True or `pltpu.InterpretParams()` run it without a chip.
    """
    num_rows, num_kv_heads, group, head_dim = q_RKGD.shape
    num_blocks, size = blocks_RB.shape[0] // num_rows, keys.shape[2]

    def of_row(row: Any, place: Any, blocks: Any, lengths: Any) -> tuple[Any, ...]:
        return row, 0, 0, 0

    def of_block(row: Any, place: Any, blocks: Any, lengths: Any) -> tuple[Any, ...]:
        last = jnp.maximum(pl.cdiv(lengths[row], size) - 1, 0)
        return blocks[row * num_blocks + jnp.minimum(place, last)], 0, 0, 0

    rows = pl.BlockSpec((1, num_kv_heads, group, head_dim), of_row)
    paged = pl.BlockSpec((1, num_kv_heads, size, head_dim), of_block)
    # One number a query, as wide as a register, or the compiler would pad it.
    running = pltpu.VMEM((num_kv_heads, group, LANES), jnp.float32)
    result: jax.Array = pl.pallas_call(
        functools.partial(_kernel, softcap=softcap, size=size),
        out_shape=jax.ShapeDtypeStruct(q_RKGD.shape, q_RKGD.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(num_rows, num_blocks),
            in_specs=[rows, paged, paged],
            out_specs=rows,
            scratch_shapes=[running, running, pltpu.VMEM((num_kv_heads, group, head_dim), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(blocks_RB, length_R, q_RKGD, keys, values)
    return result


def _kernel(
    blocks: Any, lengths: Any, q: Any, keys: Any, values: Any, out: Any, best: Any, total: Any, summed: Any,
    *, softcap: float, size: int,
) -> None:  # fmt: skip
    row, place = pl.program_id(0), pl.program_id(1)
    length = lengths[row]

    @pl.when(place == 0)
    def _begin() -> None:
        best[...] = jnp.full_like(best, LOWEST)
        total[...] = jnp.zeros_like(total)
        summed[...] = jnp.zeros_like(summed)

    @pl.when(place * size < length)
    def _add() -> None:
        scores = _product(q[0], keys[0], 2)
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        position = place * size + lax.broadcasted_iota(jnp.int32, scores.shape, 2)
        scores = jnp.where(position < length, scores, LOWEST)
        best_before = best[:, :, :1]
        best_now = jnp.maximum(best_before, scores.max(axis=2, keepdims=True))
        kept, weights = jnp.exp(best_before - best_now), jnp.exp(scores - best_now)
        # A block's tail holds whatever its last owner left; times a weight of zero that may still be no number.
        held = place * size + lax.broadcasted_iota(jnp.int32, values.shape[1:], 1) < length
        held_values = jnp.where(held, values[0], jnp.zeros_like(values[0]))
        total[...] = total[...] * kept + weights.sum(axis=2, keepdims=True)
        summed[...] = summed[...] * kept + _product(weights.astype(values.dtype), held_values, 1)
        best[...] = jnp.broadcast_to(best_now, best.shape)

    @pl.when(place == pl.num_programs(1) - 1)
    def _end() -> None:
        seen = total[:, :, :1]
        out[0] = (summed[...] / jnp.where(seen == 0.0, 1.0, seen)).astype(out.dtype)


def _product(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """A product for each kv head, over the last axis of `left` and `axis` of `right`, in float32."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        left, right, (((2,), (axis,)), ((0,), (0,))), precision=precision, preferred_element_type=jnp.float32
    )


def as_torch_op(vendor: Vendor) -> PagedDecode:
    """The kernel as `attention.Attention` calls it."""
    made: dict[float, Any] = {}

    def decode(
        q_RHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, blocks_RB: torch.Tensor,
        length_R: torch.Tensor, scale: float, softcap: float,
    ) -> torch.Tensor:  # fmt: skip
        if softcap not in made:
            kernel = functools.partial(paged_decode, softcap=softcap)
            made[softcap] = vendor.from_jax(f"paged_decode_{len(made)}", kernel, lambda *given: given[2])
        num_rows, _, head_dim = q_RHD.shape
        q_RKGD = (q_RHD * scale).view(num_rows, keys.shape[1], -1, head_dim).to(keys.dtype)
        out: torch.Tensor = made[softcap](blocks_RB.flatten(), length_R, q_RKGD, keys, values)
        return out.view(q_RHD.shape).to(q_RHD.dtype)

    return decode
