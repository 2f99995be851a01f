"""AWQ, layouts `gemm` and `gemv` of AutoAWQ: 4-bit integers with zero points; a value is (weight - zero) * scale.

* `gemm` packs along the output features, in an order of its own: `qweight` int32 [K, N / 8], `qzeros` int32 [G, N / 8],
  `scales` [G, N];
* `gemv` along the input features, as they come: `qweight` int32 [N, K / 8], `qzeros` int32 [N, W], `scales` [N, 8 W],
  of which the first G are meant.

Marlin's is `marlin.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.format import Format, Parts, unpack

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of eight neighbouring output features lies, in fours of bits from the lowest."""


@dataclass(frozen=True, slots=True)
class AWQ(Format):
    """Of `gemm`."""

    def quantizes(self, names: frozenset[str]) -> bool:
        return "qweight" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        features, words = shapes["qweight"]
        return 8 * words, features

    def read(self, module: str, parts: Parts) -> Stored:
        weight_NK, zeros_NG = _ordered(parts["qweight"]), _ordered(parts["qzeros"]).float()
        groups = zeros_NG.shape[1]
        scheme = WeightScheme(
            weight="int4", bits=4, group_size=None if groups == 1 else weight_NK.shape[1] // groups, symmetric=False
        )
        scales_NG = parts["scales"].float().t().contiguous()
        return Stored(scheme, {"weight": weight_NK, "scales": scales_NG, "zeros": zeros_NG})


@dataclass(frozen=True, slots=True)
class AWQByOutput(Format):
    """Of `gemv`."""

    scheme: WeightScheme

    def quantizes(self, names: frozenset[str]) -> bool:
        return "qweight" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        features, words = shapes["qweight"]
        return features, 8 * words

    def read(self, module: str, parts: Parts) -> Stored:
        weight_NK = unpack(parts["qweight"], 4, 1)
        groups = weight_NK.shape[1] // (self.scheme.group_size or weight_NK.shape[1])
        zeros_NG = unpack(parts["qzeros"], 4, 1)[:, :groups].float().contiguous()
        scales_NG = parts["scales"][:, :groups].float().contiguous()
        return Stored(self.scheme, {"weight": weight_NK, "scales": scales_NG, "zeros": zeros_NG})


def _ordered(words: Tensor) -> Tensor:
    """[N, rows]."""
    return unpack(words, 4, 1).reshape(len(words), -1, 8)[..., list(PLACES)].flatten(1).t().contiguous()
