"""compressed-tensors, the format of llm-compressor: integers and floats of 4 and 8 bits, packed or not.

* `pack-quantized`: `weight_packed` int32 [N, K * bits / 32], values moved to unsigned, and the true shape in
  `weight_shape`; `weight_zero_point` int32 [N * bits / 32, G], packed along the outputs, where asymmetric;
  `weight_g_idx` [K] is the group of each input feature (actorder), -1 for none.
* `int-quantized`, `float-quantized`: `weight` int8 or float8 [N, K]; `weight_zero_point` int8.
* `nvfp4-pack-quantized`, `mxfp4-pack-quantized`: `weight_packed` uint8 [N, K / 2], the first code in the low bits;
  `weight_scale` e4m3, divided by `weight_global_scale`, or an exponent of 2 in bytes, 127 for 1.

`weight_scale` is [1], [N, 1], [N, G] or in blocks; `input_scale` [1] a calibrated one of activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.format import Format, Parts, signed, unpack, unpack_nibbles
from mainspring.core.prequantized.layout import Layout


@dataclass(frozen=True, slots=True)
class Compressed(Format):
    """Weights of the groups that a config describes."""

    layout: Layout

    def quantizes(self, names: frozenset[str]) -> bool:
        return "weight_scale" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        if "weight_shape" in shapes:
            rows, columns = value("weight_shape").tolist()
            return rows, columns
        if "weight_packed" in shapes:
            rows, half = shapes["weight_packed"]
            return rows, 2 * half
        return shapes["weight"]

    def read(self, module: str, parts: Parts) -> Stored:
        rule = self.layout.rule(module)
        match rule.packed:
            case "words":
                scheme, tensors = _words(rule.scheme, parts)
            case "bytes":
                scheme, tensors = _bytes(rule.scheme, parts)
            case _:
                scheme, tensors = _plain(rule.scheme, parts)
        if "input_scale" in parts and scheme.activation_granularity == "tensor":
            tensors["input_scale"] = parts["input_scale"].float().reshape(1, 1)
        return Stored(scheme, tensors)


def _words(scheme: WeightScheme, parts: Parts) -> tuple[WeightScheme, dict[str, Tensor]]:
    rows, columns = (int(length) for length in parts["weight_shape"])
    values_NK = unpack(parts["weight_packed"], scheme.bits, 1)[:, :columns]
    tensors = {"weight": signed(values_NK, scheme.bits) if scheme.symmetric else values_NK.contiguous()}
    tensors["scales"] = _matrix(parts["weight_scale"])
    if not scheme.symmetric:
        tensors["zeros"] = unpack(parts["weight_zero_point"], scheme.bits, 0)[:rows].float().contiguous()
    index = parts.get("weight_g_idx")
    if index is None or int(index.min()) < 0:
        return replace(scheme, scattered=False), tensors
    tensors["group_index"] = index.to(torch.int32)
    return replace(scheme, scattered=True), tensors


def _bytes(scheme: WeightScheme, parts: Parts) -> tuple[WeightScheme, dict[str, Tensor]]:
    weight_NK, scales_NG = unpack_nibbles(parts["weight_packed"], high_first=False), parts["weight_scale"]
    if scheme.weight == "mxfp4":
        scales_NG = torch.exp2(scales_NG.view(torch.uint8).float() - 127)
    else:
        scales_NG = scales_NG.float() / parts["weight_global_scale"].float()
    return scheme, {"weight": weight_NK, "scales": scales_NG}


def _plain(scheme: WeightScheme, parts: Parts) -> tuple[WeightScheme, dict[str, Tensor]]:
    weight_NK, tensors = parts["weight"], {"scales": _matrix(parts["weight_scale"])}
    if weight_NK.dtype == torch.int8 and not scheme.symmetric:
        weight_NK = (weight_NK.to(torch.int16) + 128).to(torch.uint8)
        tensors["zeros"] = _matrix(parts["weight_zero_point"]) + 128
    return scheme, {"weight": weight_NK, **tensors}


def _matrix(scales: Tensor) -> Tensor:
    """A number, or a vector of one an output channel, as a matrix; float32."""
    return scales.float().reshape(-1, 1) if scales.dim() < 2 else scales.float()
