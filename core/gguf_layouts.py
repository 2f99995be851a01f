"""GGUF's quantized blocks in numbers, and the schemes of weights that are kept in them. Imports no torch.

Taking blocks apart is `core/ops/gguf_blocks.py`.

Source: ggml-common.h of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from mainspring.core.backend import GGUFPacking, WeightScheme


@dataclass(frozen=True, slots=True)
class Layout:
    """What a block holds, apart from the order of its bits."""

    bits: int
    inputs: int
    """Values of a block."""
    num_bytes: int
    group: int
    """Values that share a step."""
    offset: int = 0
    """What a code stands above 0."""
    has_minimums: bool = False

    @property
    def has_steps(self) -> bool:
        """K-quants: groups are smaller than their block."""
        return self.group < self.inputs


LAYOUTS: Mapping[GGUFPacking, Layout] = MappingProxyType({
    "q4_0": Layout(4, 32, 18, group=32, offset=8),
    "q4_1": Layout(4, 32, 20, group=32, has_minimums=True),
    "q8_0": Layout(8, 32, 34, group=32, offset=128),
    "q4_k": Layout(4, 256, 144, group=32, has_minimums=True),
    "q5_k": Layout(5, 256, 176, group=32, has_minimums=True),
    "q6_k": Layout(6, 256, 210, group=16, offset=32),
})  # fmt: skip
"""By `WeightScheme.packing`."""


def packing_of(name: str) -> GGUFPacking | None:
    """The packing of ggml's type of this name, such as `Q4_1`; None for a type that is not kept."""
    return next((packing for packing in LAYOUTS if packing == name.lower()), None)


def rounding_scheme(packing: GGUFPacking) -> WeightScheme:
    """A weight in these blocks, and activations rounded to int8 with a scale for each 32 inputs of a token.

    This is what ggml's own kernels compute, so users of a file have had no other; machines that multiply integers gain.
    """
    return replace(exact_scheme(packing), activation="int8", activation_granularity="block")


def exact_scheme(packing: GGUFPacking) -> WeightScheme:
    """A weight in these blocks, and activations as they are."""
    layout = LAYOUTS[packing]
    return WeightScheme(
        weight="int4" if layout.bits == 4 else "int8", bits=layout.bits, group_size=layout.group,
        symmetric=not layout.has_minimums, packing=packing,
    )  # fmt: skip
