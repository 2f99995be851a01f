"""torchao, as transformers saves it: the parts of a weight under names of their own, what they make up in the metadata.

A weight of class C is stored as `_weight_qdata`, `_weight_scale` and so on; safetensors' metadata has by the weight's
name, in JSON, the class (`_type`) and its attributes (`_data`). The classes:

* `Int8Tensor`, `IntxUnpackedToInt8Tensor`, `Float8Tensor`: `qdata` [N, K], a value for each; `scale`, `zero_point`
  [N / r, K / c] in blocks of `block_size` [r, c]; a value is (q - zero) * scale;
* `Int4Tensor`: `qdata` int8 [N, K / 2], signed, the first value in the low bits; `scale`, `zero_point` [G, N]; a value
  is q * scale + zero;
* `Int4TilePackedTo4dTensor`: `qdata` int32 [N / 8, K / 128, 32, 4], unsigned, in the order of NVIDIA's matrix units, N
  and K filled up; `scale_and_zero` [G, N, 2]; a value is (q - 8) * scale + zero. AMD's order differs, and the file does
  not tell.

`act_pre_scale` [K] multiplies activations (AWQ, SmoothQuant): the weight becomes numbers, times that.

Source: torchao/quantization/quantize_/workflows and prototype/safetensors of https://github.com/pytorch/ao 0.18;
aten/src/ATen/native/cuda/int4mm.cu of https://github.com/pytorch/pytorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme, unquantized
from mainspring.core.errors import ModelError
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.ops.quantized import dequantize
from mainspring.core.prequantized.format import Format, Parts, unpack_nibbles
from mainspring.core.prequantized.torchao_config import activation_of, named

PREFIX = "_weight_"


class _Note(msgspec.Struct, rename={"kind": "_type", "attributes": "_data"}):
    kind: str
    attributes: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class TorchAO(Format):
    """Weights of torchao's classes."""

    notes: Mapping[str, str]
    """safetensors' metadata."""

    def quantizes(self, names: frozenset[str]) -> bool:
        return f"{PREFIX}qdata" in names

    def shape(self, module: str, shapes: Mapping[str, Shape], value: Callable[[str], Tensor]) -> Shape:
        rows, columns = self._note(module).attributes.get("shape") or shapes[f"{PREFIX}qdata"]
        return rows, columns

    def read(self, module: str, parts: Parts) -> Stored:
        note = self._note(module)
        if note.kind not in _CLASSES:
            raise ModelError(f"{module}: torchao's {note.kind} is not read; read are {', '.join(_CLASSES)}")
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in parts.items()}
        stored = _CLASSES[note.kind](note.attributes, tensors)
        if "act_pre_scale" not in tensors:
            return stored
        values_NK = dequantize(stored.scheme, stored.tensors) * tensors["act_pre_scale"].float().reshape(1, -1)
        return Stored(unquantized("float32"), {"weight": values_NK})

    def _note(self, module: str) -> _Note:
        name = f"{module}.weight"
        if name not in self.notes:
            raise ModelError(
                f"the metadata of the files says nothing of {name}; save the model with transformers again"
            )
        return msgspec.json.decode(self.notes[name], type=_Note)


def _integers(attributes: Mapping[str, Any], tensors: Parts) -> Stored:
    weight_NK, zeros = tensors["qdata"], tensors.get("zero_point")
    kind = named(attributes.get("target_dtype"), "int8")
    width = 4 if int(kind.removeprefix("int")) <= 4 else 8
    size, rows, scales = _blocks(attributes, weight_NK, tensors["scale"])
    activation, granularity = activation_of(attributes.get("act_quant_kwargs"), "int8")
    symmetric = zeros is None or not bool(zeros.any())
    scheme = WeightScheme(
        weight="int8" if width == 8 else "int4", bits=width, group_size=size, group_rows=rows, symmetric=symmetric,
        activation=activation, activation_granularity=granularity,
    )  # fmt: skip
    held = {"weight": weight_NK, "scales": scales}
    if zeros is not None and not symmetric:
        middle = 1 << (width - 1)
        held["weight"] = (weight_NK.to(torch.int16) + middle).to(torch.uint8)
        held["zeros"] = zeros.float().reshape(scales.shape) + middle
    if "act_quant_scale" in tensors and granularity == "tensor":
        held["input_scale"] = tensors["act_quant_scale"].float().reshape(1, 1)
    return Stored(scheme, held)


def _floats(attributes: Mapping[str, Any], tensors: Parts) -> Stored:
    weight_NK = tensors["qdata"]
    if weight_NK.dtype != torch.float8_e4m3fn:
        raise ModelError(f"torchao weights are stored as {weight_NK.dtype}; of 8-bit floats float8_e4m3fn is read")
    size, rows, scales = _blocks(attributes, weight_NK, tensors["scale"])
    activation, granularity = activation_of(attributes.get("act_quant_kwargs"), "float8_e4m3fn")
    scheme = WeightScheme(
        weight="float8_e4m3fn", bits=8, group_size=size, group_rows=rows,
        activation=activation, activation_granularity=granularity,
    )  # fmt: skip
    return Stored(scheme, {"weight": weight_NK, "scales": scales})


def _nibbles(attributes: Mapping[str, Any], tensors: Parts) -> Stored:
    # Signed values as unsigned ones around 8: the highest of four bits turned.
    weight_NK = unpack_nibbles(tensors["qdata"].view(torch.uint8), high_first=False) ^ 8
    return _around_eight(attributes, weight_NK, tensors["scale"].float().t(), tensors["zero_point"].float().t())


def _tiles(attributes: Mapping[str, Any], tensors: Parts) -> Stored:
    """Of a tile of 8 outputs and 32 inputs, output l and input 16 h + 8 i + 2 m + p lie in the word of lane 4 l + m, at
    [p, h, i] from its lowest bits."""
    rows, columns = attributes["shape"]
    words = tensors["qdata"]
    outer, inner, _, pairs = words.shape
    pieces = (words.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    tiles = pieces.to(torch.uint8).reshape(outer, inner, 8, 4, pairs, 2, 2, 2)
    weight_NK = tiles.permute(0, 2, 1, 4, 6, 7, 3, 5).reshape(outer * 8, -1)[:rows, :columns].contiguous()
    groups = -(-columns // int(attributes["block_size"][-1]))
    scales_NG, offsets_NG = tensors["scale_and_zero"].float()[:groups, :rows].permute(2, 1, 0).unbind(0)
    return _around_eight(attributes, weight_NK, scales_NG, offsets_NG)


def _around_eight(attributes: Mapping[str, Any], weight_NK: Tensor, scales_NG: Tensor, offsets_NG: Tensor) -> Stored:
    """What (q - 8) * scale + offset is, as (q - zero) * scale; torchao's scales are never 0."""
    scheme = WeightScheme(weight="int4", bits=4, group_size=int(attributes["block_size"][-1]), symmetric=False)
    scales_NG = scales_NG.contiguous()
    return Stored(scheme, {"weight": weight_NK, "scales": scales_NG, "zeros": 8 - offsets_NG / scales_NG})


def _blocks(attributes: Mapping[str, Any], weight_NK: Tensor, scales: Tensor) -> tuple[int | None, int, Tensor]:
    """`group_size` and `group_rows` of a scheme, and scales in its form; no `block_size` is one scale for all."""
    rows, columns = weight_NK.shape
    block_rows, block_columns = attributes.get("block_size") or (rows, columns)
    shaped = scales.float().reshape(-(-rows // block_rows), -(-columns // block_columns))
    if shaped.numel() == 1:
        return 0, 1, shaped
    return (None if (block_rows, block_columns) == (1, columns) else block_columns), block_rows, shaped


_CLASSES: Mapping[str, Callable[[Mapping[str, Any], Parts], Stored]] = MappingProxyType(
    {
        "Int8Tensor": _integers,
        "IntxUnpackedToInt8Tensor": _integers,
        "Float8Tensor": _floats,
        "Int4Tensor": _nibbles,
        "Int4TilePackedTo4dTensor": _tiles,
    }
)
