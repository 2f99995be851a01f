"""The kernel for few rows of weights of codes, in every form that a weight has, against float64 of what it stands for.

What a kernel allocates comes from memory that held NaN a moment ago, so that nothing unwritten passes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mainspring.backends.cuda.few_rows import FewRows, FewTile
from mainspring.backends.cuda.runtime_compiler import CompileError, Compiler
from mainspring.backends.torch_gpu.quantization import CodedWeights, Quantized
from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.words import WordWeight
from mainspring.core.backend import WeightScheme
from mainspring.core.ops.quantized import dequantize, quantize_weight

CAPABILITY = torch.cuda.get_device_capability()
FEW = FewRows(Compiler(str(torch.version.cuda).partition(".")[0]), CAPABILITY, 132)
ROUNDING = 1e-2
"""Of bfloat16 operands, relative to the whole result."""
SCHEMES = [
    *(
        WeightScheme(weight="int4", bits=4, group_size=size, symmetric=symmetric)
        for size in (None, 32, 64, 128, 256) for symmetric in (True, False)
    ),
    *(
        WeightScheme(weight="int8", bits=8, group_size=size, symmetric=symmetric)
        for size in (None, 32, 64, 128) for symmetric in (True, False)
    ),
    *(WeightScheme(weight="float8_e4m3fn", bits=8, group_size=size) for size in (None, 128)),
    WeightScheme(weight="mxfp4", bits=4, group_size=32),
]  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned() -> None:
    torch.manual_seed(0)
    for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24):
        torch.full((size,), float("nan"), device="cuda")


def made(scheme: WeightScheme, size: int, depth: int, *, whole: bool = False) -> tuple[WordWeight, Tensor]:
    """As the kernel reads it, and what it stands for in float64."""
    tensors = quantize_weight(torch.randn(size, depth, device="cuda"), scheme)
    if whole:
        tensors["zeros"] = tensors["zeros"].round()
    data = Quantized(Tuning(1)).pack(scheme, tensors).data
    assert isinstance(data, CodedWeights)
    assert data.words.whole == whole
    return data.words, dequantize(scheme, tensors).double()


def error(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    wanted = torch.nn.functional.linear(x.double(), weight, None if bias is None else bias.double())
    return float((found.double() - wanted).norm() / wanted.norm())


def rows_of(count: int, depth: int) -> Tensor:
    return torch.randn(count, depth, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_form_of_weight(scheme: WeightScheme) -> None:
    for size, depth in ((256, 2048), (330, 768)):
        weight, numbers = made(scheme, size, depth)
        for count in (1, 3, 4):
            x = rows_of(count, depth)
            assert FEW.takes(x, weight)
            found = FEW(x, weight, None)
            assert found.shape == (count, size)
            assert error(found, x, numbers) < ROUNDING


@pytest.mark.parametrize("group_size", [None, 32, 128])
def test_whole_zeros_and_a_bias(group_size: int | None) -> None:
    scheme = WeightScheme(weight="int4", bits=4, group_size=group_size, symmetric=False)
    weight, numbers = made(scheme, 250, 1152, whole=True)
    bias = torch.randn(250, device="cuda", dtype=torch.bfloat16)
    for count in (1, 4):
        x = rows_of(count, 1152)
        assert error(FEW(x, weight, bias), x, numbers, bias) < ROUNDING


@pytest.mark.parametrize("tile", [FewTile(2, 1), FewTile(4, 8), FewTile(16, 2), FewTile(4, 2, ahead=True)], ids=str)
def test_tiles_and_depths_that_do_not_fill_blocks(tile: FewTile) -> None:
    scheme = WeightScheme(weight="int4", bits=4)
    for depth in (128, 1000, 14336):
        weight, numbers = made(scheme, 192, depth)
        x = rows_of(3, 2 * depth)[:, :depth]
        assert error(FEW(x, weight, None, tile), x, numbers) < ROUNDING


def test_what_it_does_not_take() -> None:
    weight, _ = made(WeightScheme(weight="int4", bits=4), 64, 256)
    looked_up, _ = made(WeightScheme(weight="nf4", bits=4, group_size=64), 64, 256)
    assert not FEW.takes(rows_of(5, 256), weight)
    assert not FEW.takes(rows_of(1, 256).half(), weight)
    assert not FEW.takes(rows_of(1, 256), looked_up)


def test_products_one_behind_the_other_wait_for_what_they_read() -> None:
    """Each starts before the one in front has finished, and reads what that one writes."""
    scheme = WeightScheme(weight="int4", bits=4, group_size=128)
    layers = [made(scheme, 1024, 1024) for _ in range(8)]
    x = rows_of(1, 1024)
    for _ in range(20):
        found, wanted = x, x.double()
        for weight, numbers in layers:
            found = FEW(found, weight, None) / 32
            wanted = (wanted @ numbers.t()).to(torch.bfloat16).double() / 32
        assert error(found, wanted, torch.eye(1024, device="cuda", dtype=torch.float64)) < 0.05


def test_a_graph_replays_it() -> None:
    weight, numbers = made(WeightScheme(weight="int4", bits=4, group_size=128), 512, 1024)
    x = rows_of(2, 1024)
    FEW(x, weight, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = FEW(x, weight, None)
    x.copy_(rows_of(2, 1024))
    graph.replay()
    assert error(found, x, numbers) < ROUNDING


def test_a_program_that_does_not_compile_says_why() -> None:
    with pytest.raises(CompileError, match="expected"):
        Compiler(str(torch.version.cuda).partition(".")[0]).cubin("not a program", CAPABILITY, {})
