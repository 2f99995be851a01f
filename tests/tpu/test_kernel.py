"""The Pallas kernel's numbers, in Pallas's interpreter with a TPU's memory spaces."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

from mainspring.backends.tpu.pallas_attention import paged_decode
from mainspring.core.backend import AttentionMetadata
from mainspring.core.ops.attention import PagedKV, attention

HEADS, GROUP, DIM, SIZE, BLOCKS = 2, 3, 64, 16, 9
LENGTHS = np.array([1, SIZE, 2 * SIZE + 1, 0, 3 * SIZE], np.int32)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_it_is_the_reference_s_and_reads_nothing_stale(softcap: float) -> None:
    jax.config.update("jax_platforms", "cpu")
    generator = np.random.default_rng(0)
    rows, width = len(LENGTHS), 3
    table = generator.permutation(np.arange(1, BLOCKS))[: rows * width - 7]
    table = np.resize(table, (rows, width)).astype(np.int32)
    queries = generator.normal(size=(rows, HEADS, GROUP, DIM)).astype(np.float32)
    keys, values = (generator.normal(size=(BLOCKS, HEADS, SIZE, DIM)).astype(np.float32) for _ in range(2))
    kv = PagedKV((torch.tensor(keys).transpose(1, 2),), (torch.tensor(values).transpose(1, 2),))
    decode = AttentionMetadata(
        query_start=torch.arange(rows + 1, dtype=torch.int32).clamp(max=rows),
        kv_length=torch.tensor(LENGTHS),
        block_table=torch.tensor(table),
        slot=torch.full((rows,), -1),
        max_query=1,
        max_kv=int(LENGTHS.max()),
        num_decodes=rows,
    )
    q_THD = torch.tensor(queries).reshape(rows, HEADS * GROUP, DIM)
    expected = attention(q_THD, None, None, kv, 0, decode, scale=1.0, softcap=softcap or None)
    # Block 0 is nobody's.
    keys[0] = values[0] = np.nan
    found = paged_decode(
        table.reshape(-1), LENGTHS, queries, keys, values, softcap=softcap, interpret=pltpu.InterpretParams()
    )
    np.testing.assert_allclose(np.asarray(found).reshape(expected.shape), expected, atol=2e-5)


def test_a_tail_may_hold_anything() -> None:
    jax.config.update("jax_platforms", "cpu")
    generator = np.random.default_rng(1)
    queries = generator.normal(size=(1, HEADS, GROUP, DIM)).astype(np.float32)
    keys, values = (generator.normal(size=(2, HEADS, SIZE, DIM)).astype(np.float32) for _ in range(2))
    arguments = np.array([1], np.int32), np.array([5], np.int32), queries
    expected = paged_decode(*arguments, keys, values, interpret=pltpu.InterpretParams())
    keys[:, :, 5:] = values[:, :, 5:] = np.nan
    found = paged_decode(*arguments, keys, values, interpret=pltpu.InterpretParams())
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
