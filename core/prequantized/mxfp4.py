"""MXFP4 as OpenAI writes it (gpt-oss), of linear layers: codes in blocks of 32 inputs, each with a power of two.

`weight_blocks` uint8 [N, G, 16], two codes a byte, the first in the low bits; `weight_scales` uint8 [N, G], exponents
of 2, 127 for 1 (OCP Microscaling Formats 1.0). Experts fused into one tensor (`gate_up_proj_blocks`) belong to a model
that is not served yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.format import Format, Parts, unpack_nibbles


@dataclass(frozen=True, slots=True)
class MXFP4(Format):
    """Blocks and scales side by side."""

    scheme: WeightScheme

    def quantizes(self, names: frozenset[str]) -> bool:
        return "weight_blocks" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        rows, groups, half = shapes["weight_blocks"]
        return rows, groups * 2 * half

    def read(self, module: str, parts: Parts) -> Stored:
        weight_NK = unpack_nibbles(parts["weight_blocks"].flatten(1), high_first=False)
        scales_NG = torch.exp2(parts["weight_scales"].float() - 127)
        return Stored(self.scheme, {"weight": weight_NK, "scales": scales_NG})
