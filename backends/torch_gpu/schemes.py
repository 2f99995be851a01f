"""The quantized schemes that GPUs take, preferred first, and what a layer's shape must be. Imports no torch.

The kernels are `backends/triton`'s; `quantization.py` says which takes which.
"""

from __future__ import annotations

from mainspring.core.backend import Verdict, WeightScheme

INT4_GROUPS = (32, 64, 128, None)
INT8_GROUPS = (None, 32, 128)
"""Group sizes that checkpoints have; None: a scale an output channel."""

SCHEMES = (
    *(
        WeightScheme(weight="int4", bits=4, group_size=size, symmetric=symmetric)
        for size in INT4_GROUPS
        for symmetric in (False, True)
    ),
    *(
        WeightScheme(weight="int8", bits=8, group_size=size, symmetric=symmetric)
        for size in INT8_GROUPS
        for symmetric in (True, False)
    ),
    *(WeightScheme(weight="float8_e4m3fn", bits=8, group_size=size) for size in (None, 0)),
)


def verdict(scheme: WeightScheme, in_features: int) -> Verdict:
    """Whether a layer of so many input features can be packed under a scheme."""
    if scheme not in SCHEMES:
        return Verdict(False, f"GPUs have no kernel for {scheme}; they have: {'; '.join(map(str, SCHEMES))}")
    if scheme.group_size and in_features % scheme.group_size:
        return Verdict(False, f"{in_features} input features do not divide into groups of {scheme.group_size}")
    return Verdict(True)
