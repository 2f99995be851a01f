"""The quantized schemes that GPUs take, preferred first, and which kernels are whose. Imports no torch.

What is declared is what checkpoints mostly have; `verdict` takes every scheme that the kernels can, layer by layer.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

from mainspring.core.backend import Verdict, WeightScheme
from mainspring.core.gguf_layouts import LAYOUTS, exact_scheme

Family = Literal["codes", "scaled", "blocks", "dense"]
"""`codes`: weights are read as codes, activations stay; `scaled`: 8 bits on either side; `blocks`:
GGUF's, which become codes of as many bits; `dense`: dequantized at load,
for what no kernel reads."""

PLANE = 32
"""Input features of which `backends/triton/words.py` makes a plane: the finest groups of activations."""
FINEST = PLANE // 2
"""Groups that its weights have."""
BLOCKS = {4: 128, 8: 64}
"""Input features of a block of words, by bits."""

_INT4 = tuple(
    WeightScheme(weight="int4", bits=4, group_size=size, symmetric=symmetric, scattered=scattered)
    for size, symmetric, scattered in (
        *product((32, 64, 128, None), (False, True), (False,)),
        *product((32, 64, 128), (False, True), (True,)),
    )
)
_INT8 = tuple(
    WeightScheme(weight="int8", bits=8, group_size=size, symmetric=symmetric)
    for size, symmetric in product((None, 32, 128), (True, False))
)
_FLOAT8 = tuple(
    WeightScheme(
        weight="float8_e4m3fn", bits=8, group_size=size, activation=activation, activation_granularity=granularity
    )
    for size, activation, granularity in (
        (None, None, None), (0, None, None), (None, "float8_e4m3fn", "token"), (0, "float8_e4m3fn", "tensor"),
        (None, "float8_e4m3fn", "tensor"),
    )
)  # fmt: skip
_BLOCKS = WeightScheme(
    weight="float8_e4m3fn", bits=8, group_size=128, group_rows=128, activation="float8_e4m3fn",
    activation_granularity="block",
)  # fmt: skip
SCHEMES = (
    *_INT4,
    *_INT8,
    WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token"),
    *_FLOAT8,
    _BLOCKS,
    WeightScheme(weight="nf4", bits=4, group_size=64),
    WeightScheme(weight="fp4", bits=4, group_size=64),
    WeightScheme(weight="mxfp4", bits=4, group_size=32),
    WeightScheme(weight="nvfp4", bits=4, group_size=16),
    *(exact_scheme(packing) for packing in LAYOUTS),
)


def family(scheme: WeightScheme) -> Family | None:
    """Whose a scheme is; None: no kernel's here."""
    if scheme.packing != "plain":
        return None if scheme.activation else "blocks"
    if scheme.bits not in BLOCKS:
        return None
    if scheme.activation is None or scheme.activation.endswith("16"):
        fine = scheme.group_size and not _on_borders(scheme.group_size, scheme.bits)
        return "dense" if fine else "codes"
    if scheme.activation != scheme.weight or not scheme.symmetric or scheme.scattered:
        return None
    blocks = scheme.activation_granularity == "block"
    return "scaled" if not scheme.group_size or (blocks and scheme.group_size % PLANE == 0) else None


def verdict(scheme: WeightScheme, in_features: int) -> Verdict:
    """Whether a layer of so many input features can be packed under a scheme."""
    if family(scheme) is None:
        return Verdict(False, f"GPUs have no kernel for {scheme}; they have: {'; '.join(map(str, SCHEMES))}")
    if scheme.group_size and in_features % scheme.group_size and not scheme.scattered:
        return Verdict(False, f"{in_features} input features do not divide into groups of {scheme.group_size}")
    return Verdict(True)


def _on_borders(group_size: int, bits: int) -> bool:
    """Whether groups end where planes and blocks of words do."""
    block = BLOCKS[bits]
    return group_size >= FINEST and (block % group_size == 0 or group_size % block == 0)
