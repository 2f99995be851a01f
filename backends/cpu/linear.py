"""Unquantized linear layers, in oneDNN's blocked layout where torch has oneDNN.

The layout is chosen once, at load, so that no product reorders weights: faster than `torch.nn.functional.linear` at
any number of rows (benchmarks/cpu_linear.py). `torch.ops.mkldnn` is what inductor's own CPU code calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F


class Weights(Protocol):
    """`PackedLinear.data` of this backend: a packed weight that knows its product."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        """[T, N] in x's dtype, bias added."""
        ...


@dataclass(frozen=True, slots=True)
class PlainWeights:
    """As the checkpoint has it, for builds of torch without oneDNN for its dtype."""

    weight: Tensor
    """[N, K]"""

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        return F.linear(x_TK, self.weight, bias_N)


@dataclass(frozen=True, slots=True)
class BlockedWeights:
    """oneDNN's opaque tensor."""

    blocked: Tensor

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        out = torch.ops.mkldnn._linear_pointwise.default(x_TK, self.blocked, bias_N, "none", [], "")
        return cast("Tensor", out)


def pack_float(weight_NK: Tensor, *, opaque: bool = True) -> Weights:
    """The form of an unquantized weight that multiplies fastest here. A copy where that is another layout.

    `opaque` False keeps it a tensor that a tracing compiler can look into.
    """
    if not opaque or not has_onednn(weight_NK.dtype):
        return PlainWeights(weight_NK)
    return BlockedWeights(torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous(), None))


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this dtype natively here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
