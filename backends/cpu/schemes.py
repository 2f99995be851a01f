"""The quantized schemes that the CPU declares, and the shapes that their kernels take. Imports no torch.

The kernels themselves are `quantization.py`; the limits here are theirs, some of which they do not check.
"""

from __future__ import annotations

from mainspring.core.backend import Verdict, WeightScheme
from mainspring.core.gguf_layouts import LAYOUTS, rounding_scheme

INT8_DYNAMIC = WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token")
INT8 = WeightScheme(weight="int8", bits=8)
INT4_DYNAMIC = WeightScheme(
    weight="int4", bits=4, group_size=32, symmetric=False, activation="int8", activation_granularity="token"
)
INT4_GROUPS = (32, 64, 128)
"""Group sizes that checkpoints have, of those that torch's kernel takes."""


def schemes(integer_products: bool) -> tuple[WeightScheme, ...]:
    """What the backend declares, preferred first; `integer_products`: the processor has VNNI or its like."""
    int4 = (
        WeightScheme(weight="int4", bits=4, group_size=size, symmetric=symmetric)
        for size in INT4_GROUPS
        for symmetric in (False, True)
    )
    return (*((INT8_DYNAMIC, INT4_DYNAMIC) if integer_products else ()), INT8, *int4)


def block_schemes() -> tuple[WeightScheme, ...]:
    """GGUF's blocks with activations rounded as ggml does, which the compiled kernels alone multiply."""
    return tuple(map(rounding_scheme, LAYOUTS))


def verdict(scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
    """Whether a layer of this shape can be packed under a scheme that is declared."""
    if scheme == INT8 and in_features % 16:
        return Verdict(False, f"the int8 kernel takes multiples of 16 input features, not {in_features}")
    if scheme.weight == "int4":
        if scheme.group_size is None or in_features % scheme.group_size:
            return Verdict(False, f"{in_features} input features do not divide into groups of {scheme.group_size}")
        if out_features % 16:
            return Verdict(False, f"the int4 kernel takes multiples of 16 output features, not {out_features}")
    return Verdict(True)
