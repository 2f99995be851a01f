"""The CPU backend's compiled kernels against the references, where the kit does not look: memory that holds no numbers,
shapes with tails, rows alone and in company. And torch's kernels, which the backend has where it cannot compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mainspring.backends.cpu import CpuBackend
from mainspring.backends.cpu.cache import HeadMajorKV
from mainspring.backends.cpu.native.attention import NativeKV
from mainspring.backends.cpu.schemes import INT4_DYNAMIC, INT8_DYNAMIC
from mainspring.core.backend import AttentionMetadata, Device, KVSpec, WeightScheme, unquantized
from mainspring.core.config import EngineConfig
from mainspring.core.conformance.checks import check_device
from mainspring.core.ops import Ops, resolve
from mainspring.core.ops.attention import PagedKV
from mainspring.core.ops.quantized import quantize_weight, quantized_linear

BLOCKS, BLOCK_SIZE = 104, 16
REFERENCE = Ops()


def opened(kernels: str) -> Device:
    return CpuBackend().open(0, 0, 1, EngineConfig(model="m", threads=2, backend_options={"kernels": kernels}))


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """With compiled kernels and two threads."""
    threads = torch.get_num_threads()
    yield opened("native")
    torch.set_num_threads(threads)


def test_torch_conforms_as_well() -> None:
    backend, device = CpuBackend(), opened("torch")
    devices = backend.devices()
    assert isinstance(devices, list)
    findings = tuple(check_device(device, backend.capabilities(devices[0])))
    assert [problem for finding in findings for problem in finding.problems] == []
    assert isinstance(device.allocate_kv(KVSpec(1, 2, 16, "float32", 16), 2), HeadMajorKV)


def test_a_head_that_the_kernel_does_not_take_is_torchs(device: Device) -> None:
    assert isinstance(device.allocate_kv(KVSpec(1, 2, 16, "float32", 16), 2), NativeKV)
    assert isinstance(device.allocate_kv(KVSpec(1, 2, 40, "float32", 16), 2), HeadMajorKV)


# --- attention ---


def metadata(lengths: list[int], counts: list[int]) -> AttentionMetadata:
    """Rows of such lengths, of which the last `counts` tokens are computed, each in 20 blocks of its own, backwards."""
    width = max(-(-length // BLOCK_SIZE) for length in lengths)
    table = torch.zeros(len(lengths), width, dtype=torch.int32)
    slots = []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        used = -(-length // BLOCK_SIZE)
        table[row, :used] = BLOCKS - 1 - 20 * row - torch.arange(used, dtype=torch.int32)
        positions = torch.arange(length - count, length)
        slots.append(table[row, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    lengths_R = torch.tensor(lengths, dtype=torch.int32)
    return AttentionMetadata(starts, lengths_R, table, torch.cat(slots), max(counts), max(lengths), counts.count(1))


def poisoned(device: Device, spec: KVSpec) -> NativeKV:
    kv = device.allocate_kv(spec, BLOCKS)
    assert isinstance(kv, NativeKV)
    for memory in kv.keys + kv.values:
        memory.fill_(float("nan"))
    return kv


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 16), (8, 1, 80), (14, 2, 128)])
@pytest.mark.parametrize("how", [{}, {"window": 20}, {"softcap": 5.0}, {"window": 7, "softcap": 3.0}])
def test_memory_that_was_never_written_is_never_read(
    device: Device, heads: int, kv_heads: int, head_dim: int, how: dict[str, float]
) -> None:
    spec = KVSpec(1, kv_heads, head_dim, "float32", BLOCK_SIZE)
    kv, expected_kv = poisoned(device, spec), PagedKV.allocate(spec, BLOCKS, "cpu")
    attention = resolve(device.ops()).attention
    # First the prompts, whole; then one token, a chunk that ends inside a block, and one more token each.
    for lengths, counts in (([300, 45, 1], [300, 45, 1]), ([301, 82, 2], [1, 37, 1])):
        step = metadata(lengths, counts)
        tokens = sum(counts)
        q, k, v = drawn(tokens, heads, head_dim), drawn(tokens, kv_heads, head_dim), drawn(tokens, kv_heads, head_dim)
        plan = device.prepare_attention(step, kv)
        out = attention(q, k, v, kv, 0, plan, scale=head_dim**-0.5, **how)
        expected = REFERENCE.attention(q, k, v, expected_kv, 0, step, scale=head_dim**-0.5, **how)
        assert torch.allclose(out, expected, atol=5e-6), float((out - expected).abs().max())


def test_padding_is_zeros_and_writes_nothing(device: Device) -> None:
    kv = poisoned(device, KVSpec(1, 2, 32, "float32", BLOCK_SIZE))
    step = metadata([5, 3], [1, 3])
    step = replace(step, kv_length=torch.tensor([0, 3], dtype=torch.int32), slot=step.slot.clone())
    step.slot[0] = -1
    q, k = drawn(4, 4, 32), drawn(4, 2, 32)
    out = resolve(device.ops()).attention(q, k, k, kv, 0, device.prepare_attention(step, kv), scale=1.0)
    assert not out[0].any()
    assert out[1:].isfinite().all()
    written = kv.values[0].view(2, BLOCKS, BLOCK_SIZE, 32).isfinite()
    assert int(written.any(-1).sum()) == 2 * 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_short_cache_holds_what_torch_rounds_to(device: Device, dtype: str) -> None:
    spec = KVSpec(1, 2, 32, dtype, BLOCK_SIZE)  # type: ignore[arg-type]
    kv, expected_kv = poisoned(device, spec), PagedKV.allocate(spec, BLOCKS, "cpu")
    step = metadata([40, 9], [40, 9])
    q, k, v = drawn(49, 4, 32), drawn(49, 2, 32), drawn(49, 2, 32)
    out = resolve(device.ops()).attention(q, k, v, kv, 0, device.prepare_attention(step, kv), scale=0.2)
    assert torch.allclose(out, REFERENCE.attention(q, k, v, expected_kv, 0, step, scale=0.2), atol=2e-6)


def test_a_row_alone_is_the_same_bit_for_bit(device: Device) -> None:
    kv, attention = poisoned(device, KVSpec(1, 3, 64, "float32", BLOCK_SIZE)), resolve(device.ops()).attention
    lengths = [300, 45, 17, 200, 33]
    prompts = metadata(lengths, lengths)
    q, k, v = drawn(sum(lengths), 9, 64), drawn(sum(lengths), 3, 64), drawn(sum(lengths), 3, 64)
    whole = attention(q, k, v, kv, 0, device.prepare_attention(prompts, kv), scale=0.125)
    # The last query of each prompt again, as a decode, in company and alone.
    step, last = metadata(lengths, [1] * 5), prompts.query_start[1:].long() - 1
    together = attention(q[last], k[last], v[last], kv, 0, device.prepare_attention(step, kv), scale=0.125)
    assert torch.equal(together, whole[last])
    for row in range(5):
        one = replace(
            step, query_start=torch.tensor([0, 1], dtype=torch.int32), kv_length=step.kv_length[row : row + 1],
            block_table=step.block_table[row : row + 1], slot=step.slot[row : row + 1],
        )  # fmt: skip
        at = last[row : row + 1]
        assert torch.equal(
            attention(q[at], k[at], v[at], kv, 0, device.prepare_attention(one, kv), scale=0.125)[0], together[row]
        )


# --- linear layers ---


@pytest.mark.parametrize("scheme", [INT8_DYNAMIC, INT4_DYNAMIC, unquantized("float32")])
@pytest.mark.parametrize(("in_features", "out_features"), [(64, 32), (96, 48), (1536, 80), (70, 45)])
def test_products_of_any_number_of_rows(
    device: Device, scheme: WeightScheme, in_features: int, out_features: int
) -> None:
    if scheme.group_size and in_features % scheme.group_size:
        assert not device.supports(scheme, in_features, out_features).ok
        return
    weight, bias = drawn(out_features, in_features) * in_features**-0.5, drawn(out_features)
    quantized = scheme.activation is not None
    neutral = quantize_weight(weight, scheme) if quantized else {"weight": weight, "scales": torch.ones(1, 1)}
    packed = device.pack(scheme, {"weight": weight, "bias": bias})
    # Zeros of int4 groups are stored times their scale in float16; rounding that falls between two integers may differ.
    tolerance = 2e-2 if scheme.weight == "int4" else 5e-3 if quantized else 2e-5
    x = drawn(27, in_features)
    expected = quantized_linear(x, scheme, neutral, bias)
    whole = device.quantized_linear(x, packed)
    assert torch.allclose(whole, expected, atol=tolerance), float((whole - expected).abs().max())
    for tokens in range(1, 27):
        assert torch.equal(device.quantized_linear(x[:tokens], packed), whole[:tokens])


@pytest.mark.parametrize("scheme", [INT8_DYNAMIC, INT4_DYNAMIC])
def test_a_token_that_is_no_number_stays_none_and_alone(device: Device, scheme: WeightScheme) -> None:
    packed = device.pack(scheme, {"weight": drawn(64, 96)})
    x = drawn(4, 96)
    clean = device.quantized_linear(x, packed)
    for bad in (float("nan"), float("inf")):
        x[2, 50] = bad
        out = device.quantized_linear(x, packed)
        assert not out[2].isfinite().any()
        assert torch.equal(out[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("size", [32, 97, 1500])
def test_masks_leave_what_they_allow_and_their_argument_as_it_is(device: Device, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits_NV = torch.randn(9, size, generator=generator)
    before = logits_NV.clone()
    rows_G = torch.tensor([7, 0, 3, 4])
    mask_GW = torch.randint(-(2**31), 2**31, (4, -(-size // 32)), generator=generator).int()
    mask_GW[1], mask_GW[2, ::2] = -1, 0
    found = resolve(device.ops()).apply_bitmask(logits_NV, rows_G, mask_GW)
    assert torch.equal(found, REFERENCE.apply_bitmask(logits_NV, rows_G, mask_GW))
    assert torch.equal(logits_NV, before)
    assert found[7].isinf().any()
