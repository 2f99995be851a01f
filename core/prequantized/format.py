"""What a reader of a quantized format is, and the unpacking of small integers that several share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mainspring.core.layers.weights import Shape, Stored

Parts = Mapping[str, Tensor]
"""A module's stored tensors, by what their names say after the module's: `qweight`, `weight.absmax`."""


class Format(ABC):
    """A format of quantized weights under one `quantization_config`."""

    @abstractmethod
    def quantizes(self, names: frozenset[str]) -> bool:
        """Whether a module with these stored tensors is quantized."""

    @abstractmethod
    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        """[N, K] of a quantized module's weight, from its tensors' shapes, or from the value of a small one; `module`
        is its name in the checkpoint.
        """

    @abstractmethod
    def read(self, module: str, parts: Parts) -> Stored:
        """A module's weight in its neutral form. `module` is its name in the checkpoint."""

    def consumed(self, name: str) -> bool:
        """Whether a stored tensor of a quantized module is part of its weight, and no tensor of the model's."""
        return name != "bias"


def unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 words as the unsigned values in them, lowest bits first, along `dim` of a matrix; uint8.

    Values of 3 bits are a stream that runs over three words.
    """
    rows = words if dim == 1 else words.t()
    if 32 % bits:
        stream = unpack(rows, 1, 1).reshape(len(rows), -1, bits)
        values = (stream << torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    else:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        values = ((rows.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(1)
    return values if dim == 1 else values.t()


def unpack_nibbles(packed: Tensor, *, high_first: bool) -> Tensor:
    """Bytes as the two codes in each, along the last dimension."""
    low, high = packed & 15, packed >> 4
    return torch.stack((high, low) if high_first else (low, high), -1).flatten(-2)


def signed(values: Tensor, bits: int) -> Tensor:
    """Unsigned values around their middle as int8."""
    return (values.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
