"""GGUF's blocks taken apart: to the bit what the `gguf` package makes of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from mainspring.core.backend import GGUF_PACKINGS, GGUFPacking
from mainspring.core.gguf_layouts import LAYOUTS, exact_scheme, packing_of, rounding_scheme
from mainspring.core.ops import gguf_blocks


@pytest.mark.parametrize("packing", GGUF_PACKINGS)
def test_values_are_those_of_the_gguf_package(packing: GGUFPacking) -> None:
    kind = gguf.GGMLQuantizationType[packing.upper()]
    assert (LAYOUTS[packing].inputs, LAYOUTS[packing].num_bytes) == gguf.GGML_QUANT_SIZES[kind]
    raw = gguf_blocks.random_weight(packing, 7, 768)
    ours = gguf_blocks.dequantize(packing, raw).numpy()
    assert np.isfinite(ours).all()
    assert (ours == gguf.quants.dequantize(raw.numpy(), kind)).all()


@pytest.mark.parametrize("packing", GGUF_PACKINGS)
def test_rounded_activations_are_half_a_step_off_at_most(packing: GGUFPacking) -> None:
    x_TK = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    x_TK[0, :32] = 0
    values, scales = gguf_blocks.round_activations(x_TK)
    assert ((values * scales - x_TK).abs() <= scales * 0.5001).all()
    raw = gguf_blocks.random_weight(packing, 5, 256)
    rounded = gguf_blocks.product(x_TK, rounding_scheme(packing), raw)
    exact = gguf_blocks.product(x_TK, exact_scheme(packing), raw)
    assert 0 < (rounded - exact).abs().max() < 0.05


def test_other_types_have_no_blocks() -> None:
    assert packing_of("Q5_0") is None
    with pytest.raises(ValueError, match="has no blocks of GGUF's"):
        gguf_blocks.blocks_of(exact_scheme("q4_0").__class__(weight="int8", bits=8))
