"""Marlin's order of 4-bit codes, as AutoGPTQ (`is_marlin_format`) and AutoAWQ (`version: marlin`) save it.

Codes, moved to unsigned, lie as the lanes of a warp fetch them: AutoGPTQ's `B` or AutoAWQ's `qweight`, int32
[K / 16, 2 N]; scales as lanes need them: `s` or `scales`, float16 [G, N]. Both are dealt out in tiles of 16 inputs by
64 outputs, so putting them back is one permutation of dimensions. There are no zero points: weights are symmetric.

Source: Frantar et al. 2024, https://github.com/IST-DASLab/marlin (`gen_weight_perm`, `Layer.pack`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.errors import ModelError
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.format import Format, Parts, signed, unpack

CODES = ("B", "qweight")
SCALES = ("s", "scales")

TILE_INPUTS, TILE_OUTPUTS = 16, 64


@dataclass(frozen=True, slots=True)
class Marlin(Format):
    """Symmetric weights of 4 bits."""

    def quantizes(self, names: frozenset[str]) -> bool:
        return not names.isdisjoint(CODES)

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        tiles, words = next(shapes[name] for name in CODES if name in shapes)
        if words // 2 % TILE_OUTPUTS:
            raise ModelError(f"{module}: {words // 2} output features are no multiple of Marlin's {TILE_OUTPUTS}")
        return words // 2, tiles * TILE_INPUTS

    def read(self, module: str, parts: Parts) -> Stored:
        weight_NK = signed(_codes(next(parts[name] for name in CODES if name in parts)), 4)
        scales_NG = _scales(next(parts[name] for name in SCALES if name in parts))
        groups = scales_NG.shape[1]
        size = None if groups == 1 else weight_NK.shape[1] // groups
        scheme = WeightScheme(weight="int4", bits=4, group_size=size)
        return Stored(scheme, {"weight": weight_NK, "scales": scales_NG})


def _codes(words: Tensor) -> Tensor:
    """[N, K], unsigned.

    Of a tile, output 16 j + 8 b + l and input 8 r + 2 m + p lie at [l, m, j, p, b, r]: lane 4 l + m, its word j, and in
    that the places that a product's two halves come from with one mask.
    """
    tiles = unpack(words, 4, 1).reshape(len(words), -1, 8, 4, 4, 2, 2, 2)
    inputs_first = tiles.permute(0, 7, 3, 5, 1, 4, 6, 2)
    return inputs_first.reshape(len(words) * TILE_INPUTS, -1).t().contiguous()


def _scales(scales_GN: Tensor) -> Tensor:
    """[N, G] float32. Groups of inputs have output 8 j + i of each 64 at 8 i + j; one scale for all inputs, at
    [i, a, c], that of output 8 a + 2 i + c of each 32."""
    groups = len(scales_GN)
    if groups > 1:
        straight = scales_GN.reshape(groups, -1, 8, 8).transpose(2, 3)
    else:
        straight = scales_GN.reshape(groups, -1, 4, 4, 2).transpose(2, 3)
    return straight.reshape(groups, -1).t().float().contiguous()
