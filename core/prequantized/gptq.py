"""GPTQ: integers of 2, 3, 4 or 8 bits packed along the input features, groups in any order (`desc_act`).

The layout of AutoGPTQ and GPTQModel: `qweight` int32 [K * bits / 32, N], `qzeros` int32 [G, N * bits / 32], `scales`
[G, N], and `g_idx` [K], the group of each input feature. The first layout stores zero points less one, subtracted from
words, borrows and all; `gptq_v2` as they are. 2 and 3 bits become 4: the values are the same, the memory is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.format import Format, Parts, signed, unpack


@dataclass(frozen=True, slots=True)
class GPTQ(Format):
    """GPTQ weights; the width is read off each layer, since a checkpoint may mix them."""

    zero_offset: int

    def quantizes(self, names: frozenset[str]) -> bool:
        return "qweight" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        outputs = shapes["qweight"][1]
        return outputs, shapes["qweight"][0] * 32 // self._bits(shapes)

    def read(self, module: str, parts: Parts) -> Stored:
        bits = self._bits({name: tuple(tensor.shape) for name, tensor in parts.items()})
        values_NK = unpack(parts["qweight"], bits, 0).t().contiguous()
        zeros_NG = self._zeros(parts["qzeros"], bits).t()
        scales_NG = parts["scales"].float().t().contiguous()
        features, groups = values_NK.shape[1], scales_NG.shape[1]
        size = None if groups == 1 else -(-features // groups)
        width = max(bits, 4)
        # Symmetric weights have the middle for their zero point everywhere.
        symmetric = bool((zeros_NG == 1 << (bits - 1)).all())
        tensors = {"weight": signed(values_NK, bits) if symmetric else values_NK, "scales": scales_NG}
        if not symmetric:
            tensors["zeros"] = zeros_NG.float().contiguous()
        index = parts.get("g_idx")
        scattered = size is not None and index is not None and not _in_order(index, size)
        if scattered and index is not None:
            tensors["group_index"] = index.to(torch.int32)
        scheme = WeightScheme(
            weight="int8" if width == 8 else "int4",
            bits=width,
            group_size=size,
            symmetric=symmetric,
            scattered=scattered,
        )
        return Stored(scheme, tensors)

    def _bits(self, shapes: Mapping[str, Shape]) -> int:
        """From the zero points, which have a value for each output feature."""
        return 32 * shapes["qzeros"][1] // shapes["qweight"][1]

    def _zeros(self, words: Tensor, bits: int) -> Tensor:
        if not self.zero_offset:
            return unpack(words, bits, 1)
        if 32 % bits:
            return (unpack(words, bits, 1) + 1) & ((1 << bits) - 1)
        ones = sum(1 << shift for shift in range(0, 32, bits))
        return unpack(((words.long() + ones) & 0xFFFFFFFF).to(torch.uint32).view(torch.int32), bits, 1)


def _in_order(index: Tensor, size: int) -> bool:
    return torch.equal(index.long(), torch.arange(len(index)) // size)
