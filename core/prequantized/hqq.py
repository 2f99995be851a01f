"""HQQ as transformers serializes it: all that a layer needs to know of itself lies beside it as a tensor of one value.

`W_q`, packed by `packing` (bytes of its name); `scale` and `zero` of its groups; `shape`, `group_size`, `axis`. A value
is (code - zero) * scale with zeros that need not be whole. The weight was quantized as a matrix of
[N * K / group_size, group_size] with a group a row (`axis` 1), or of the transpose's shape with a group a column (0),
and packed along that matrix's first dimension: its first rows lie in the highest bits. `view_as_float` calls the bytes
another type.

Groups of `axis` 0 lie across output features, and where `group_size` does not divide K groups run on over rows: no
scheme has such, and the weight becomes numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme, unquantized
from mainspring.core.errors import ModelError
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.format import Format, Parts

PACKINGS: Mapping[str, tuple[int, torch.dtype]] = MappingProxyType(
    {
        "8bit_u8": (8, torch.uint8),
        "4bit_u8": (4, torch.uint8),
        "3bit_32": (3, torch.int32),
        "2bit_u8": (2, torch.uint8),
        "1bit_u8": (1, torch.uint8),
    }
)
"""Bits of a code and the type of what they are packed into; 3 bits have ten in a word of 32."""


@dataclass(frozen=True, slots=True)
class HQQ(Format):
    """Half-quadratic quantization, any width."""

    def quantizes(self, names: frozenset[str]) -> bool:
        return "W_q" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        return tuple(value("shape").tolist())

    def read(self, module: str, parts: Parts) -> Stored:
        nested = [name for name in ("quant_scale", "quant_zero") if name in parts and bool(parts[name])]
        if nested:
            raise ModelError(f"{module}: {nested[0]} is set; HQQ has dropped scales and zeros that are quantized too")
        rows, columns = parts["shape"].tolist()
        size, by_row = int(parts["group_size"]), int(parts["axis"]) == 1
        packing = bytes(parts["packing"].tolist()).decode()
        if packing not in PACKINGS:
            raise ModelError(f"{module}: packing {packing!r} is not known; known are {', '.join(PACKINGS)}")
        scales, zeros = parts["scale"].float(), parts["zero"].float()
        groups = rows * columns // size
        codes = _codes(parts["W_q"], packing, (groups, size) if by_row else (size, groups))
        if not by_row or columns % size:
            values_NK = ((codes.float() - zeros) * scales).reshape(rows, columns)
            return Stored(unquantized("float32"), {"weight": values_NK})
        eight = PACKINGS[packing][0] == 8
        scheme = WeightScheme(
            weight="int8" if eight else "int4",
            bits=8 if eight else 4,
            group_size=None if size == columns else size,
            symmetric=False,
        )
        return Stored(
            scheme,
            {
                "weight": codes.reshape(rows, columns),
                "scales": scales.reshape(rows, -1),
                # One for all where zero points are not by group.
                "zeros": zeros.expand(scales.shape).reshape(rows, -1).contiguous(),
            },
        )


def _codes(packed: Tensor, packing: str, shape: Shape) -> Tensor:
    """The quantized matrix, uint8, of this shape; rows that filled up the last words are left out."""
    bits, dtype = PACKINGS[packing]
    words = packed.contiguous().view(dtype)
    places = torch.arange(8 * dtype.itemsize // bits - 1, -1, -1, dtype=dtype) * bits
    pieces = (words.unsqueeze(0) >> places.reshape(-1, 1, 1)) & ((1 << bits) - 1)
    return pieces.to(torch.uint8).flatten()[: prod(shape)].reshape(shape)
