"""Quantized linear layers on a GPU: how neutral tensors are packed, and which kernel multiplies how many rows.

Weights that are read as codes (`backends/triton/words.py`) take a row of `CODES` each: a format is where its codes
begin, and nothing else. Neutral tensors are those of `core/ops/quantized.py`.

Legend: T tokens, K input features, N output features, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear as library

from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.codes import PLAIN, Kind
from mainspring.backends.triton.packing import pack_shorts, pack_words, short_type
from mainspring.backends.triton.words import WordWeight, dequantize_words, word_linear
from mainspring.core.backend import PackedLinear, WeightScheme
from mainspring.core.ops.quantized import quantize_weight

LIBRARY_ROWS = 512
"""From here on a dequantized copy and the library's product cost less than reading codes in every tile of rows."""
MOST_TILES = 1 << 16
"""Of one product."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A format of codes, and its neutral weight as them."""

    kind: Kind
    bias: int = 0
    """What symmetric codes are above their value."""
    add: int = 0
    """What asymmetric neutral weights are below their code."""


CODES: Mapping[str, Codes] = {
    "int4": Codes("int4", 8),
    "int8": Codes("int8", 128),
    "float8_e4m3fn": Codes("float8_e4m3fn"),
}
"""By `WeightScheme.weight`."""


class Weights(Protocol):
    """`PackedLinear.data` of a quantized layer."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None, on: Quantized) -> Tensor:
        """[T, N] in x's dtype, bias added."""
        ...


@dataclass(frozen=True, slots=True)
class CodedWeights:
    """Read as codes, or dequantized for many rows."""

    words: WordWeight
    order: Tensor | None
    """[K] Input features as groups have them, where a checkpoint's do not lie side by side."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None, on: Quantized) -> Tensor:
        tuning = on.tuning
        reader = tuning.reader if x_TK.dtype == torch.bfloat16 else PLAIN
        if self.order is not None:
            x_TK = x_TK.index_select(1, self.order)
        if len(x_TK) >= LIBRARY_ROWS:
            return library(
                x_TK, dequantize_words(self.words, x_TK.dtype, overlap=tuning.overlap, reader=reader), bias_N
            )
        x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
        tile = tuning.words(len(x_TK), self.words, tuning.processors)
        return word_linear(
            x_TK, self.words, bias_N, tile, arrived=on.arrived(x_TK.device), overlap=tuning.overlap, reader=reader
        )


class Quantized:
    """The quantized layers of one device."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self._arrived: Tensor | None = None

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        """Neutral tensors, or a floating-point weight, which is rounded. The scheme must be one of `schemes`."""
        size, depth = tensors["weight"].shape
        if "scales" not in tensors:
            tensors = {**tensors, **quantize_weight(tensors["weight"], scheme)}
        return PackedLinear(scheme, depth, size, _coded(scheme, tensors), tensors.get("bias"))

    def __call__(self, x_TK: Tensor, packed: PackedLinear) -> Tensor:
        """As `Device.quantized_linear`."""
        if not len(x_TK):
            return x_TK.new_empty((0, packed.out_features))
        weights: Weights = packed.data
        return weights.product(x_TK, packed.bias, self)

    def arrived(self, device: torch.device) -> Tensor:
        """Zeros that kernels count in. Kept for ever: captured steps hold its address; one step runs at a time."""
        if self._arrived is None:
            self._arrived = torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
        return self._arrived


def _coded(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> CodedWeights:
    codes, weight_NK = CODES[scheme.weight], tensors["weight"]
    order = None
    if weight_NK.dtype == torch.float8_e4m3fn:
        codes_NK = weight_NK.view(torch.uint8)
    else:
        codes_NK = weight_NK.to(torch.int16) + (codes.bias if scheme.symmetric else 0)
    if order is not None:
        codes_NK = codes_NK[:, order]
    zeros_NG = None if scheme.symmetric else tensors["zeros"].float() - codes.bias
    return CodedWeights(_words(codes, scheme, codes_NK, tensors["scales"].float(), zeros_NG), order)


def _words(
    codes: Codes, scheme: WeightScheme, codes_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor | None
) -> WordWeight:
    size, depth = codes_NK.shape
    group = scheme.group_size or None
    short = short_type(scales_NG, zeros_NG)
    if group is None:
        scales_NG = scales_NG.expand(size, 1)
        padded = torch.nn.functional.pad(scales_NG[:, 0], (0, -size % 64))
        scales = padded.contiguous()
    else:
        scales = pack_shorts(scales_NG, short, codes.kind, group)
    return WordWeight(
        kind=codes.kind, size=size, depth=depth, words=pack_words(codes_NK, codes.kind), scales=scales,
        group_size=group, short=short, bias=codes.bias,
        zeros=None if zeros_NG is None else pack_shorts(zeros_NG, short, codes.kind, group or 1 << 30),
        whole=zeros_NG is not None and bool((zeros_NG == zeros_NG.round()).all()),
    )  # fmt: skip
