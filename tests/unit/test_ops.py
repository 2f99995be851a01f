"""The reference ops against independent formulas: numpy in float64, one scalar at a time where that is clearest."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mainspring.core.backend import AttentionMetadata, KVSpec, WeightScheme
from mainspring.core.errors import BackendError
from mainspring.core.ops import Ops, resolve
from mainspring.core.ops.activation import gelu, gelu_mul, silu_mul
from mainspring.core.ops.attention import PagedKV, attention, kv_write
from mainspring.core.ops.norm import add_rms_norm, layer_norm, rms_norm
from mainspring.core.ops.quantized import (
    can_quantize,
    dequantize,
    quantize_activation,
    quantize_weight,
    quantized_linear,
)
from mainspring.core.ops.rope import rope

Array = npt.NDArray[np.float64]


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- attention ---

BLOCK_SIZE, NUM_BLOCKS, HEADS, KV_HEADS, HEAD_DIM = 4, 12, 6, 2, 8
SCALE = 0.3


def naive_attention(
    q_HD: Array, keys: Array, values: Array, *, window: int | None, softcap: float | None, sinks: Array | None
) -> Array:
    """One query that stands at the last of `keys`, by the definition, one head at a time."""
    out = np.zeros_like(q_HD)
    first = 0 if window is None else max(0, len(keys) - window)
    for head in range(len(q_HD)):
        kv_head = head // (len(q_HD) // keys.shape[1])
        scores = [float(q_HD[head] @ keys[position, kv_head]) * SCALE for position in range(first, len(keys))]
        if softcap is not None:
            scores = [softcap * math.tanh(score / softcap) for score in scores]
        weights = [math.exp(score) for score in scores]
        total = sum(weights) + (0.0 if sinks is None else math.exp(sinks[head]))
        for position, weight in enumerate(weights, first):
            out[head] += weight / total * values[position, kv_head]
    return out


class Cached:
    """Sequences whose tokens are known both as arrays and in a cache full of NaN elsewhere."""

    def __init__(self, random: torch.Generator) -> None:
        self.random = random
        self.kv = PagedKV.allocate(KVSpec(2, KV_HEADS, HEAD_DIM, "float32", BLOCK_SIZE), NUM_BLOCKS, "cpu")
        for cache in self.kv.keys + self.kv.values:
            cache.fill_(float("nan"))

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def slots(self, table: list[int], positions: range) -> list[int]:
        return [table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE for position in positions]


def array(x: Tensor) -> Array:
    return x.double().numpy()


@pytest.mark.parametrize(
    ("window", "softcap", "with_sinks"),
    [(None, None, False), (3, None, False), (1, None, False), (None, 1.5, False), (None, None, True), (5, 2.0, True)],
)
def test_attention_is_its_definition(
    random: torch.Generator, window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    """A decode, a chunk after a prefix, a prompt, a padded row and two padded tokens, in one step."""
    cached = Cached(random)
    tables, news, lengths = [[7, 3, 9], [5, 1], [4, 2]], [1, 3, 6], [9, 5, 6]
    keys = [cached.tensor(length, KV_HEADS, HEAD_DIM) for length in lengths]
    values = [cached.tensor(length, KV_HEADS, HEAD_DIM) for length in lengths]
    for table, new, length, k, v in zip(tables, news, lengths, keys, values, strict=True):
        past = range(length - new)
        kv_write(
            k[: len(past)], v[: len(past)], cached.kv, 1, torch.tensor(cached.slots(table, past), dtype=torch.int64)
        )
    slot = [
        slot
        for table, new, length in zip(tables, news, lengths, strict=True)
        for slot in cached.slots(table, range(length - new, length))
    ]
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, 1, 4, 10, 10], dtype=torch.int32),
        kv_length=torch.tensor([*lengths, 0], dtype=torch.int32),
        block_table=torch.tensor([[7, 3, 9], [5, 1, 0], [4, 2, 0], [0, 0, 0]], dtype=torch.int32),
        slot=torch.tensor([*slot, -1, -1]),
        max_query=6,
        max_kv=9,
        num_decodes=1,
    )
    q = cached.tensor(12, HEADS, HEAD_DIM)
    new_keys, new_values = (
        torch.cat([*(x[-new:] for x, new in zip(parts, news, strict=True)), cached.tensor(2, KV_HEADS, HEAD_DIM)])
        for parts in (keys, values)
    )
    sinks = cached.tensor(HEADS) if with_sinks else None
    out = attention(
        q, new_keys, new_values, cached.kv, 1, metadata, scale=SCALE, window=window, softcap=softcap, sinks=sinks
    )
    expected: list[Array] = []
    for row, (new, length) in enumerate(zip(news, lengths, strict=True)):
        for position in range(length - new, length):
            seen = slice(0, position + 1)
            expected.append(
                naive_attention(
                    array(q[len(expected)]),
                    array(keys[row][seen]),
                    array(values[row][seen]),
                    window=window,
                    softcap=softcap,
                    sinks=None if sinks is None else array(sinks),
                )
            )
    np.testing.assert_allclose(array(out[:10]), np.stack(expected), atol=1e-6)
    assert torch.equal(out[10:], torch.zeros(2, HEADS, HEAD_DIM))


def test_kv_write_stores_by_slot_and_skips_padding(random: torch.Generator) -> None:
    cached = Cached(random)
    k, v = cached.tensor(3, KV_HEADS, HEAD_DIM), cached.tensor(3, KV_HEADS, HEAD_DIM)
    kv_write(k, v, cached.kv, 0, torch.tensor([6, -1, 47]))
    assert torch.equal(cached.kv.keys[0][1, 2], k[0])
    assert torch.equal(cached.kv.values[0][11, 3], v[2])
    assert int(cached.kv.keys[0].isfinite().sum()) == 2 * KV_HEADS * HEAD_DIM
    assert not cached.kv.keys[1].isfinite().any()


def test_copy_blocks_copies_every_layer_and_keeps_the_source(random: torch.Generator) -> None:
    cached = Cached(random)
    for cache in cached.kv.keys + cached.kv.values:
        cache[2:4] = cached.tensor(2, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    cached.kv.copy_blocks([(2, 8), (3, 5)])
    for cache in cached.kv.keys + cached.kv.values:
        assert torch.equal(cache[8], cache[2])
        assert torch.equal(cache[5], cache[3])
        assert not cache[6].isfinite().any()
    cached.kv.copy_blocks([])


# --- norms, rope, activations ---


def test_norms_are_their_definitions(random: torch.Generator) -> None:
    x, residual, weight, bias = (torch.randn(shape, generator=random) for shape in ((5, 12), (5, 12), (12,), (12,)))
    epsilon = 0.1

    def rms(values: Array) -> Array:
        root = np.sqrt((values**2).mean(-1, keepdims=True) + epsilon)
        normed: Array = values / root * array(weight)
        return normed

    np.testing.assert_allclose(array(rms_norm(x, weight, epsilon)), rms(array(x)), atol=1e-6)
    normed, total = add_rms_norm(x, residual, weight, epsilon)
    np.testing.assert_allclose(array(total), array(x) + array(residual), atol=1e-6)
    np.testing.assert_allclose(array(normed), rms(array(x) + array(residual)), atol=1e-6)
    centred = array(x) - array(x).mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * array(weight) + array(bias)
    np.testing.assert_allclose(array(layer_norm(x, weight, bias, epsilon)), expected, atol=1e-6)


def test_rms_norm_takes_its_statistics_in_float32() -> None:
    """Squares of 500 leave float16's range."""
    x = torch.full((1, 8), 500.0, dtype=torch.float16)
    assert torch.allclose(rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-5), torch.ones(1, 8, dtype=torch.float16))


def test_rope_is_that_of_transformers(random: torch.Generator) -> None:
    q, k = torch.randn(7, 6, 16, generator=random), torch.randn(7, 2, 16, generator=random)
    positions = torch.tensor([0, 5, 1, 40, 2, 9, 9], dtype=torch.int32)
    angles = torch.arange(64.0)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)
    turned_q, turned_k = rope(q, k, positions, torch.cat((angles.cos(), angles.sin()), dim=-1))
    whole = torch.cat((angles, angles), dim=-1)[positions][None]
    expected_q, expected_k = apply_rotary_pos_emb(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], whole.cos(), whole.sin()
    )
    torch.testing.assert_close(turned_q, expected_q[0].transpose(0, 1))
    torch.testing.assert_close(turned_k, expected_k[0].transpose(0, 1))


def test_rope_turns_pairs_and_leaves_the_rest(random: torch.Generator) -> None:
    """Dimension i and i + R/2 are a complex number that is multiplied by e^(i * angle)."""
    q = torch.randn(1, 1, 10, generator=random)
    angle = torch.tensor([0.3, 1.1])
    turned, _ = rope(q, q, torch.tensor([0]), torch.cat((angle.cos(), angle.sin()))[None])
    numbers = array(q)[0, 0, :2] + 1j * array(q)[0, 0, 2:4]
    expected = numbers * np.exp(1j * array(angle))
    np.testing.assert_allclose(array(turned)[0, 0, :4], np.concatenate((expected.real, expected.imag)), atol=1e-6)
    assert torch.equal(turned[..., 4:], q[..., 4:])


def test_activations_are_their_definitions(random: torch.Generator) -> None:
    x = torch.randn(3, 8, generator=random) * 2
    gate, up = array(x)[:, :4], array(x)[:, 4:]
    erf = np.vectorize(math.erf)
    exact = gate * 0.5 * (1 + erf(gate / math.sqrt(2)))
    approximate = gate * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(array(silu_mul(x)), gate / (1 + np.exp(-gate)) * up, atol=1e-6)
    np.testing.assert_allclose(array(gelu_mul(x, False)), exact * up, atol=1e-6)
    np.testing.assert_allclose(array(gelu_mul(x, True)), approximate * up, atol=1e-6)
    np.testing.assert_allclose(array(gelu(x, True))[:, :4], approximate, atol=1e-6)


# --- quantized ---

INT8 = WeightScheme(weight="int8", bits=8)
INT4 = WeightScheme(weight="int4", bits=4, group_size=8, symmetric=False)
INT4_SYMMETRIC = WeightScheme(weight="int4", bits=4, group_size=8)
FP8_TENSOR = WeightScheme(weight="float8_e4m3fn", bits=8, group_size=0)


@pytest.mark.parametrize("scheme", [INT8, INT4, INT4_SYMMETRIC])
def test_rounding_moves_a_weight_by_half_a_step_at_most(random: torch.Generator, scheme: WeightScheme) -> None:
    weight = torch.randn(6, 24, generator=random)
    tensors = quantize_weight(weight, scheme)
    groups = 1 if scheme.group_size is None else 24 // scheme.group_size
    assert tensors["scales"].shape == (6, groups)
    steps = tensors["scales"].repeat_interleave(24 // groups, dim=1)
    error = (dequantize(scheme, tensors) - weight).abs()
    # An asymmetric zero point is rounded too, which can cut off half a step at either end.
    assert bool((error <= steps * (0.5 if scheme.symmetric else 1.0) + 1e-6).all())
    assert float(error.mean()) < 0.3 * float(steps.mean())


def test_quantized_values_stay_in_range(random: torch.Generator) -> None:
    weight = torch.randn(6, 24, generator=random)
    for scheme, low, high in ((INT8, -127, 127), (INT4, 0, 15), (INT4_SYMMETRIC, -8, 7)):
        values = quantize_weight(weight, scheme)["weight"]
        assert not values.is_floating_point()
        assert low <= int(values.min())
        assert int(values.max()) <= high


def test_a_group_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 16)
    weight[0, 0] = 1.0
    for scheme in (INT8, INT4, INT4_SYMMETRIC, FP8_TENSOR):
        restored = dequantize(scheme, quantize_weight(weight, scheme))
        assert torch.allclose(restored, weight)


def test_one_scale_a_tensor(random: torch.Generator) -> None:
    tensors = quantize_weight(torch.randn(4, 16, generator=random), FP8_TENSOR)
    assert tensors["scales"].shape == (1, 1)
    assert tensors["weight"].dtype == torch.float8_e4m3fn


def test_quantized_linear_is_the_sum_over_groups(random: torch.Generator) -> None:
    """Each output is a sum of (q - zero) * scale * x, written out."""
    weight, x, bias = (torch.randn(shape, generator=random) for shape in ((3, 16), (2, 16), (3,)))
    tensors = quantize_weight(weight, INT4)
    expected = np.zeros((2, 3))
    for token, row, column in np.ndindex(2, 3, 16):
        value = float(tensors["weight"][row, column]) - float(tensors["zeros"][row, column // 8])
        expected[token, row] += value * float(tensors["scales"][row, column // 8]) * float(x[token, column])
    out = quantized_linear(x, INT4, tensors, bias)
    np.testing.assert_allclose(array(out), expected + array(bias), atol=1e-5)


def test_activations_get_a_scale_a_token(random: torch.Generator) -> None:
    scheme = WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token")
    x = torch.randn(3, 16, generator=random) * torch.tensor([[1.0], [100.0], [0.0]])
    quantized, scales = quantize_activation(x, scheme)
    assert quantized.dtype == torch.int8
    assert scales.shape == (3, 1)
    assert torch.allclose(quantized * scales, x, atol=float(scales.max()) / 2)
    assert int(quantized[0].abs().max()) == int(quantized[1].abs().max()) == 127


def test_what_cannot_be_quantized_is_said() -> None:
    scattered = WeightScheme(weight="int4", bits=4, group_size=64, scattered=True)
    assert not can_quantize(scattered)
    with pytest.raises(ValueError, match="only read from a checkpoint"):
        quantize_weight(torch.zeros(2, 64), scattered)
    with pytest.raises(ValueError, match="20 input features do not divide into groups of 8"):
        quantize_weight(torch.zeros(2, 20), INT4)
    with pytest.raises(ValueError, match="leaves activations as they are"):
        quantize_activation(torch.zeros(2, 8), INT8)


# --- the table of ops ---


def test_resolve_puts_overrides_in_place_and_refuses_unknown_names() -> None:
    assert resolve({}) == Ops()
    assert resolve({"silu_mul": silu_mul}).silu_mul is silu_mul
    with pytest.raises(BackendError, match="did you mean 'silu_mul'"):
        resolve({"silu_mull": gelu})


def test_weights_that_were_rounded_in_the_same_groups_keep_their_values() -> None:
    """GGUF's Q4_1 has any minimum, so its zero points are not whole."""
    levels = torch.randint(0, 16, (4, 3, 8), generator=torch.Generator().manual_seed(0)).float()
    levels[..., 0], levels[..., 1] = 0, 15
    weight = (levels * torch.rand(4, 3, 1) + torch.randn(4, 3, 1)).reshape(4, 24)
    assert torch.allclose(dequantize(INT4, quantize_weight(weight, INT4)), weight, atol=1e-5)
    flat = torch.full((2, 16), -0.7)
    assert torch.allclose(dequantize(INT4, quantize_weight(flat, INT4)), flat)
