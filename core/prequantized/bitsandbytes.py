"""bitsandbytes: 4-bit codes of a table (nf4, fp4) with a scale a block, and int8 with a scale an output channel.

4 bits: `weight` uint8 [N * K / 2, 1], the first value in the high bits, in blocks that run on over rows;
`weight.quant_map` [16], the table; `weight.absmax`, itself quantized where `weight.nested_absmax` is there;
`weight.quant_state.bitsandbytes__*`, JSON in bytes with the shape.
8 bits: `weight` int8 [N, K] and `SCB` [N], the largest magnitude of a row, which stands for 127.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme, unquantized
from mainspring.core.errors import ModelError
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.ops.codes import CODES
from mainspring.core.prequantized.format import Format, Parts, unpack_nibbles

STATE = "weight.quant_state.bitsandbytes__"


class _State(msgspec.Struct):
    shape: tuple[int, int]
    blocksize: int
    quant_type: Literal["nf4", "fp4"]
    nested_blocksize: int = 256
    nested_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class BitsAndBytes(Format):
    """Either width: the stored tensors tell."""

    def quantizes(self, names: frozenset[str]) -> bool:
        return "weight.absmax" in names or "SCB" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        if "SCB" in shapes:
            return shapes["weight"]
        return _state(value(next(name for name in shapes if name.startswith(STATE)))).shape

    def read(self, module: str, parts: Parts) -> Stored:
        if "SCB" in parts:
            scales_N1 = parts["SCB"].float().reshape(-1, 1) / 127
            return Stored(WeightScheme(weight="int8", bits=8), {"weight": parts["weight"], "scales": scales_N1})
        state = _state(next(tensor for name, tensor in parts.items() if name.startswith(STATE)))
        table, published = parts["weight.quant_map"].float(), torch.tensor(CODES[state.quant_type])
        if not torch.allclose(table, published, atol=1e-4):
            raise ModelError(f"{module}: the stored table of {state.quant_type} is {table.tolist()}, not the published")
        rows, columns = state.shape
        codes = unpack_nibbles(parts["weight"].flatten(), high_first=True)[: rows * columns]
        scales = _scales(state, parts)
        if columns % state.blocksize:
            # Blocks run on over the ends of rows, which no scheme has.
            spread = scales.repeat_interleave(state.blocksize)[: len(codes)]
            values_NK = (table[codes.int()] * spread).reshape(rows, columns)
            return Stored(unquantized("float32"), {"weight": values_NK})
        scheme = WeightScheme(weight=state.quant_type, bits=4, group_size=state.blocksize)
        return Stored(scheme, {"weight": codes.reshape(rows, columns), "scales": scales.reshape(rows, -1)})


def _scales(state: _State, parts: Parts) -> Tensor:
    absmax = parts["weight.absmax"]
    if "weight.nested_absmax" not in parts:
        return absmax.float()
    table, outer = parts["weight.nested_quant_map"].float(), parts["weight.nested_absmax"].float()
    inner = outer.repeat_interleave(state.nested_blocksize)[: len(absmax)]
    return table[absmax.int()] * inner + state.nested_offset


def _state(text: Tensor) -> _State:
    return msgspec.json.decode(bytes(text.tolist()), type=_State)
