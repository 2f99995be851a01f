"""FP8 of DeepSeek and transformers (`fp8`), AutoFP8 and FBGEMM: e4m3 weights [N, K] beside their scales.

`weight_scale_inv` [N / 128, K / 128] rounded up, multiplied in spite of its name, or `weight_scale`: a number, [1] or
[N, 1]. Calibrated scales of activations are `activation_scale` or `input_scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.format import Format, Parts

SCALES = ("weight_scale_inv", "weight_scale")
INPUT_SCALES = ("activation_scale", "input_scale")


@dataclass(frozen=True, slots=True)
class FP8(Format):
    """e4m3 weights and their scales."""

    scheme: WeightScheme

    def quantizes(self, names: frozenset[str]) -> bool:
        return not names.isdisjoint(SCALES)

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        return shapes["weight"]

    def read(self, module: str, parts: Parts) -> Stored:
        weight_NK = parts["weight"]
        scales = next(parts[name] for name in SCALES if name in parts)
        # Exponents of 2 come as a type of their own or as bytes.
        scales = torch.exp2(scales.float() - 127) if scales.dtype == torch.uint8 else scales.float()
        scheme = self.scheme
        if scales.numel() == 1:
            scales, scheme = scales.reshape(1, 1), replace(scheme, group_size=0, group_rows=1)
        elif scales.numel() == len(weight_NK):
            scales, scheme = scales.reshape(-1, 1), replace(scheme, group_size=None, group_rows=1)
        tensors = {"weight": weight_NK.view(torch.float8_e4m3fn), "scales": scales}
        inputs = [parts[name] for name in INPUT_SCALES if name in parts]
        if inputs and scheme.activation_granularity == "tensor":
            tensors["input_scale"] = inputs[0].float().reshape(1, 1)
        return Stored(scheme, tensors)
