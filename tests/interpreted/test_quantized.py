"""Quantized products as torch's GPUs run them, against the reference, in float32 and float16.

The interpreter rounds to float8 without carrying into the exponent, so what is rounded to it here is int8's kernel, and
float8 is multiplied as it is; `tests/gpu` has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mainspring.backends.torch_gpu.quantization import Quantized
from mainspring.backends.torch_gpu.quantized_tiles import scaled_tile, word_tile
from mainspring.backends.torch_gpu.schemes import SCHEMES, family
from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.scaled import ScaledTile, ScaledWeight, round_rows, scaled_linear
from mainspring.backends.triton.words import WordTile
from mainspring.core.backend import GGUFPacking, WeightScheme
from mainspring.core.gguf_layouts import LAYOUTS, exact_scheme
from mainspring.core.ops.gguf_blocks import dequantize as dequantize_blocks
from mainspring.core.ops.gguf_blocks import random_weight
from mainspring.core.ops.quantized import dequantize, quantize_activation, quantize_weight, quantized_linear

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
SHORT = 6e-4
"""Of scales and zeros in 16 bits, and of float16's own rounding."""
CODED = [scheme for scheme in SCHEMES if family(scheme) == "codes"]
SCALED = [scheme for scheme in SCHEMES if family(scheme) == "scaled" and scheme.activation == "int8"]
NAMES = {scheme: f"{scheme!s}{' a tensor' if scheme.group_size == 0 else ''}" for scheme in SCHEMES}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def layer(scheme: WeightScheme, size: int, depth: int) -> dict[str, Tensor]:
    """Neutral tensors, rounded to nearest, of a weight whose rows and groups differ."""
    weight = torch.randn(size, depth) * torch.linspace(0.5, 2, size)[:, None] + torch.linspace(0, 0.5, depth)
    tensors = quantize_weight(weight, replace(scheme, scattered=False))
    if scheme.scattered and scheme.group_size:
        tensors["group_index"] = (torch.randperm(depth) // scheme.group_size).int()
    return tensors


def relative_error(quantized: Quantized, scheme: WeightScheme, tensors: Mapping[str, Tensor], x: Tensor) -> float:
    bias = torch.randn(len(tensors["weight"]))
    packed = quantized.pack(scheme, {**tensors, "bias": bias.to(x.dtype)})
    wanted = quantized_linear(x.float(), scheme, tensors, bias.to(x.dtype).float())
    return float((quantized(x, packed) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("scheme", CODED + SCALED, ids=NAMES.get)
def test_every_scheme_with_rows_and_features_that_fill_no_tile(scheme: WeightScheme) -> None:
    quantized = Quantized(Tuning(8))
    depth = scheme.group_size * 3 if scheme.group_size else 200
    tensors = layer(scheme, 70, depth)
    assert relative_error(quantized, scheme, tensors, torch.randn(3, depth)) < SHORT
    assert relative_error(quantized, scheme, tensors, torch.randn(1, depth).half()) < SHORT


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("rows", [5, 40])
def test_tiles_of_any_size_give_the_same(rows: int, splits: int) -> None:
    scheme = WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False)
    tile = WordTile(2, 32, splits, 8, 3)
    quantized = Quantized(Tuning(8, words=lambda rows, weight, processors: tile))
    tensors, x = layer(scheme, 150, 640), torch.randn(rows, 640)
    assert relative_error(quantized, scheme, tensors, x) < SHORT
    assert not quantized.arrived(x.device).any()


def test_many_rows_are_multiplied_by_a_dequantized_copy() -> None:
    scheme = WeightScheme(weight="int4", bits=4, group_size=64)
    quantized, tensors = Quantized(Tuning(8)), layer(scheme, 70, 192)
    assert relative_error(quantized, scheme, tensors, torch.randn(600, 192)) < SHORT


@pytest.mark.parametrize("packing", [*LAYOUTS])
def test_blocks_of_gguf(packing: GGUFPacking) -> None:
    weight, x = random_weight(packing, 70, 512), torch.randn(3, 512)
    quantized = Quantized(Tuning(8))
    packed = quantized.pack(exact_scheme(packing), {"weight": weight})
    wanted = torch.nn.functional.linear(x, dequantize_blocks(packing, weight))
    rounding = SHORT if family(exact_scheme(packing)) == "blocks" else 3e-3
    assert (packed.in_features, packed.out_features) == (512, 70)
    assert (quantized(x, packed) - wanted).norm() < rounding * wanted.norm()


@pytest.mark.parametrize("packing", [*LAYOUTS])
def test_rows_of_a_table_in_blocks(packing: GGUFPacking) -> None:
    weight, index = random_weight(packing, 150, 512), torch.randint(0, 150, (21,))
    quantized = Quantized(Tuning(8))
    packed = quantized.pack(exact_scheme(packing), {"weight": weight})
    wanted = dequantize_blocks(packing, weight)[index]
    for given, dtype in ((index.int(), torch.float32), (index, torch.float16)):
        found = quantized.rows(given, packed, dtype)
        assert found.dtype == dtype
        assert (found - wanted).norm() < SHORT * wanted.norm()


@pytest.mark.parametrize("packing", [*LAYOUTS])
def test_blocks_take_no_more_memory_as_words(packing: GGUFPacking) -> None:
    weight = random_weight(packing, 256, 1024)
    packed = Quantized(Tuning(8)).pack(exact_scheme(packing), {"weight": weight})
    # Steps of six bits stand in eight.
    assert packed.data.words.bytes() <= 1.03 * weight.nbytes


def test_a_ranks_part_holds_any_number_of_a_groups_features() -> None:
    scheme = WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False, scattered=True)
    tensors = layer(scheme, 64, 128)
    tensors["group_index"] = torch.randint(0, 4, (128,)).int()
    assert relative_error(Quantized(Tuning(8)), scheme, tensors, torch.randn(3, 128)) < SHORT


def test_whole_zero_points_are_exact() -> None:
    scheme = WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False)
    tensors = layer(scheme, 64, 128)
    tensors["zeros"], tensors["scales"] = tensors["zeros"].round(), tensors["scales"].half().float()
    assert relative_error(Quantized(Tuning(8)), scheme, tensors, torch.randn(3, 128)) < 1e-6


@pytest.mark.parametrize("rows", [1, 70])
def test_float8_with_scales_of_rows_and_of_blocks(rows: int) -> None:
    x, weight = (torch.randn(*shape).mul(40).to(torch.float8_e4m3fn) for shape in ((rows, 300), (150, 300)))
    x_scales, arrived = torch.rand(rows, 3), torch.zeros(64, dtype=torch.int32)
    for group_rows, scales in ((1, torch.rand(150, 1)), (128, torch.rand(2, 3))):
        blocks = scales.shape[1] > 1
        found = scaled_linear(
            x, x_scales if blocks else x_scales[:, :1].contiguous(),
            ScaledWeight(weight, scales, 128 if blocks else None, group_rows), None,
            ScaledTile(64, 16, 128, 2, 4, 3), out_dtype=torch.float32, arrived=arrived,
        )  # fmt: skip
        spread = scales.repeat_interleave(group_rows, 0)[:150].repeat_interleave(128 if blocks else 300, 1)[:, :300]
        x_spread = x_scales.repeat_interleave(128, 1)[:, :300] if blocks else x_scales[:, :1]
        wanted = (x.double() * x_spread) @ (weight.double() * spread).t()
        assert (found - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("granularity", ["token", "tensor", "block"])
def test_activations_are_rounded_as_the_reference_rounds_them(granularity: str) -> None:
    scheme = WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token", group_size=64)
    scheme = replace(scheme, activation_granularity=granularity)
    x = torch.randn(5, 192) * torch.linspace(0.1, 3, 5)[:, None]
    for given in (x, torch.cat((x, x), 1)[:, :192]):
        values, scales = Quantized(Tuning(8)).round(given, scheme)
        wanted, wanted_scales = quantize_activation(x, scheme)
        assert torch.equal(values, wanted)
        assert torch.equal(scales, wanted_scales)
    values, _ = round_rows(x, torch.int8, given=torch.tensor([[0.5]]))
    assert torch.equal(
        values, quantize_activation(x, replace(scheme, activation_granularity="tensor"), torch.tensor(0.5))[0]
    )


def test_tiles_hold_rows_and_features_whatever_the_shape() -> None:
    quantized = Quantized(Tuning(132))
    scheme = WeightScheme(weight="int4", bits=4, group_size=128)
    words = quantized.pack(scheme, layer(scheme, 256, 256)).data.words
    weight = ScaledWeight(torch.zeros(256, 256, dtype=torch.int8), torch.ones(256, 1))
    for rows in (1, 16, 17, 64, 65, 300):
        assert word_tile(rows, words, 132).rows >= min(rows, 128)
        assert scaled_tile(rows, weight, 132).rows >= min(rows, 128)
    assert dequantize(scheme, layer(scheme, 256, 256)).shape == (256, 256)
