"""Products with quantized weights at the shapes that serving gives them, by the tiles that are chosen there.

The kit's shapes are small: none of them is cut along K by tiles of many rows.
"""

from __future__ import annotations

import pytest
import torch

from mainspring.backends.cuda.device import CudaDevice
from mainspring.core.backend import WeightScheme
from mainspring.core.ops.quantized import dequantize, quantize_weight

LAYERS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
"""Llama-3.1-8B's."""
SCHEMES = {
    "int4": WeightScheme(weight="int4", bits=4, group_size=128),
    "int4 with zeros": WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False),
    "int8": WeightScheme(weight="int8", bits=8),
}
ROUNDING = 1e-2
"""Of bfloat16 operands, relative to the whole result."""


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_of_any_number_of_rows(scheme: str, layer: str) -> None:
    torch.manual_seed(0)
    device = CudaDevice(0)
    size, depth = LAYERS[layer]
    tensors = quantize_weight(torch.randn(size, depth, device="cuda"), SCHEMES[scheme])
    packed = device.pack(SCHEMES[scheme], tensors)
    weight = dequantize(SCHEMES[scheme], tensors).double()
    for rows in (1, 4, 5, 16, 33, 65, 100, 130, 256, 300):
        x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
        wanted = x.double() @ weight.t()
        found = device.quantized_linear(x, packed).double()
        assert float((found - wanted).norm() / wanted.norm()) < ROUNDING, f"{rows} rows"
