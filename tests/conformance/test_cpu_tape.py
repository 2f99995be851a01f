"""Decode steps of the CPU backend from tapes: the same numbers as the calls give, and refusals that stay refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mainspring.backends.cpu import CpuBackend
from mainspring.backends.cpu.device import CpuDevice
from mainspring.backends.cpu.native.attention import NativeKV
from mainspring.backends.cpu.native.tape import Arena, Tape, TapedProgram
from mainspring.core.backend import AttentionMetadata, KVSpec, PackedLinear, unquantized
from mainspring.core.config import EngineConfig
from mainspring.core.execution.inputs import StepTensors
from mainspring.core.ops import Ops, resolve

SPEC = KVSpec(layers=2, heads=2, head_dim=16, dtype="float32", block_size=16)
HEADS, HIDDEN, VOCABULARY, CONTEXT = 4, 64, 48, 40

Program = Callable[[StepTensors, Any], Any]


@pytest.fixture(scope="module")
def device() -> Iterator[CpuDevice]:
    threads = torch.get_num_threads()
    opened = CpuBackend().open(0, 0, 1, EngineConfig(model="m", threads=2))
    assert isinstance(opened, CpuDevice)
    yield opened
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ops(device: CpuDevice) -> Ops:
    return resolve(device.ops())


@pytest.fixture
def kv(device: CpuDevice) -> NativeKV:
    kv = device.allocate_kv(SPEC, 64)
    assert isinstance(kv, NativeKV)
    for each in (*kv.keys, *kv.values):
        each.normal_(generator=torch.Generator().manual_seed(1))
    return kv


def step(rows: int, seed: int, lengths: list[int] | None = None) -> StepTensors:
    """A decode step of `rows` rows, each in blocks of its own, that reads tokens by table row and position."""
    lengths = lengths or [CONTEXT - row % 7 for row in range(rows)]
    kv_length = torch.tensor(lengths, dtype=torch.int32)
    width = -(-max(lengths) // SPEC.block_size)
    blocks = 1 + torch.randperm(63, generator=torch.Generator().manual_seed(seed))[: rows * width]
    table = blocks.view(rows, width).int()
    last = kv_length.long() - 1
    slot = table.long()[torch.arange(rows), last // SPEC.block_size] * SPEC.block_size + last % SPEC.block_size
    metadata = AttentionMetadata(
        torch.arange(rows + 1, dtype=torch.int32), kv_length, table, slot, 1, max(lengths), rows
    )  # fmt: skip
    each = torch.arange(rows, dtype=torch.int32)
    return StepTensors(kv_length - 1, each.flip(0).contiguous(), metadata, each, each, kv_length, None)


def model(device: CpuDevice, ops: Ops, kv: NativeKV) -> Program:
    """Two layers with what a decoder has, and torch's ops between: an embedding, a sum, copies that might be views."""
    draw = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) / shape[-1] ** 0.5

    def packed(outputs: int, inputs: int) -> PackedLinear:
        return device.pack(unquantized("float32"), {"weight": weight(outputs, inputs)})

    embedding, head = weight(VOCABULARY, HIDDEN), packed(VOCABULARY, HIDDEN)
    layers = [
        (weight(HIDDEN), packed((HEADS + 2 * 2) * 16, HIDDEN), packed(HIDDEN, HEADS * 16), packed(256, HIDDEN),
         packed(HIDDEN, 128))
        for _ in range(2)
    ]  # fmt: skip
    angles = torch.randn(64, 16, generator=draw)

    def program(inputs: StepTensors, plan: Any) -> tuple[Tensor, Tensor, None]:
        x = embedding[inputs.token_rows.long() % VOCABULARY]
        for layer, (norm, qkv, out, up, down) in enumerate(layers):
            q, k, v = device.quantized_linear(ops.rms_norm(x, norm, 1e-5), qkv).split((64, 32, 32), 1)
            q, k = ops.rope(q.view(-1, HEADS, 16), k.view(-1, 2, 16), inputs.positions, angles)
            attended = ops.attention(q, k, v.view(-1, 2, 16), kv, layer, plan, scale=0.25)
            attended = attended.to(torch.bfloat16).transpose(1, 2).reshape(-1, 64).float().contiguous()
            x, kept = ops.add_rms_norm(device.quantized_linear(attended.reshape(-1, 64), out), x, norm, 1e-5)
            x = kept + device.quantized_linear(ops.silu_mul(device.quantized_linear(x, up)), down)
        return x, device.quantized_linear(x[inputs.sample_index], head), None

    return program


def taped(device: CpuDevice, program: Program) -> TapedProgram:
    compiled = device.compile(program, None)
    assert isinstance(compiled, TapedProgram)
    return compiled


def tapes(program: TapedProgram) -> list[Tape]:
    return [tape for tape in program._tapes.values() if tape is not None]


@torch.inference_mode()
def test_a_tape_computes_what_the_calls_compute(device: CpuDevice, ops: Ops, kv: NativeKV) -> None:
    eager = model(device, ops, kv)
    program = taped(device, eager)
    for seed in range(6):
        for rows in (5, 1, 8):
            inputs = step(rows, seed, [20 + seed * 3 + row for row in range(rows)] if seed % 2 else None)
            plan = device.prepare_attention(inputs.metadata, kv)
            hidden, logits, _ = eager(inputs, plan)
            again = program(inputs, device.prepare_attention(inputs.metadata, kv))
            assert torch.equal(again[0], hidden)
            assert torch.equal(again[1], logits)
    assert len(tapes(program)) == 3


@torch.inference_mode()
def test_a_tape_plays_products_with_weights_in_onednns_order(device: CpuDevice, kv: NativeKV) -> None:
    draw = torch.Generator().manual_seed(0)
    embedding = torch.randn(VOCABULARY, HIDDEN, generator=draw).bfloat16()
    weight = torch.randn(HIDDEN, HIDDEN, generator=draw).bfloat16()
    packed = device.pack(unquantized("bfloat16"), {"weight": weight})

    def eager(inputs: StepTensors, plan: Any) -> tuple[Tensor, Tensor, None]:
        x = device.quantized_linear(embedding[inputs.token_rows.long() % VOCABULARY], packed)
        return x, device.quantized_linear(x, packed), None

    program = taped(device, eager)
    for seed in range(3):
        inputs = step(5, seed)
        plan = device.prepare_attention(inputs.metadata, kv)
        assert all(torch.equal(*pair) for pair in zip(eager(inputs, plan)[:2], program(inputs, plan)[:2], strict=True))
    assert len(tapes(program)) == 1


@torch.inference_mode()
def test_a_tape_reads_the_weights_as_they_are_now(device: CpuDevice, ops: Ops, kv: NativeKV) -> None:
    weight = torch.ones(HIDDEN)

    def eager(inputs: StepTensors, plan: Any) -> Any:
        return ops.rms_norm(torch.ones(len(inputs.positions), HIDDEN), weight, 0.0), None, None

    program, inputs = taped(device, eager), step(3, 0)
    plan = device.prepare_attention(inputs.metadata, kv)
    for value in (1.0, 2.0, 3.0):
        weight.fill_(value)
        assert program(inputs, plan)[0].unique().tolist() == [value]


@torch.inference_mode()
def test_a_step_that_asks_for_a_number_is_never_taped(device: CpuDevice, ops: Ops, kv: NativeKV) -> None:
    def eager(inputs: StepTensors, plan: Any) -> Any:
        return ops.rms_norm(torch.full((3, HIDDEN), float(inputs.positions.sum().item())), torch.ones(64), 9.0), None, 0

    program = taped(device, eager)
    for seed in range(4):
        inputs = step(3, seed, [seed + 2, seed + 3, seed + 4])
        eager_hidden, *_ = eager(inputs, None)
        assert torch.equal(program(inputs, device.prepare_attention(inputs.metadata, kv))[0], eager_hidden)
    assert tapes(program) == []


@torch.inference_mode()
def test_prefills_and_padded_steps_are_not_taped(device: CpuDevice, ops: Ops, kv: NativeKV) -> None:
    seen: list[int] = []

    def eager(inputs: StepTensors, plan: Any) -> Any:
        seen.append(len(inputs.positions))
        return inputs.positions, None, None

    program = taped(device, eager)
    padded = step(3, 0, [4, 5, 6])
    padded.metadata.kv_length[2] = 0
    for _ in range(4):
        program(padded, device.prepare_attention(padded.metadata, kv))
    assert len(seen) == 4


@torch.inference_mode()
def test_tapes_share_the_memory_of_their_results(device: CpuDevice, ops: Ops, kv: NativeKV) -> None:
    sizes = []
    for counts in ((16,), range(16, 0, -1)):
        program = taped(device, model(device, ops, kv))
        for rows in counts:
            for _ in range(2):
                inputs = step(rows, 0)
                program(inputs, device.prepare_attention(inputs.metadata, kv))
        assert len(tapes(program)) == len(counts)
        sizes.append(program.arena.num_bytes)
    # A smaller step may take a room that another of the same step would have fitted better.
    assert sizes[1] < 1.25 * sizes[0]


def test_an_arena_gives_what_nobody_holds() -> None:
    arena = Arena()
    first = arena.take((3, 5))
    second = arena.take((16,))
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    place = first.data_ptr()
    part = first[1]
    del first
    assert arena.take((9,)).data_ptr() != place  # a view still holds it
    del part
    assert arena.take((9,)).data_ptr() == place
