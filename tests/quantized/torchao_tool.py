"""torchao, by transformers' integration of it on the CPU.

Its 4-bit words are packed by kernels that want a GPU (`mslk`, `_convert_weight_to_int4pack`); those checkpoints are
written by torchao's own classes around words that are packed here, a lane of the kernel at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4Tensor,
    Int4TilePackedTo4dTensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerGroup,
)
from transformers import AutoModelForCausalLM, LlamaForCausalLM, TorchAoConfig

GROUP = 32


def _make(model: Path, out: Path, *, config: Callable[[], Any]) -> Mapping[str, Tensor]:
    options = TorchAoConfig(config())
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, quantization_config=options, dtype=torch.float16)
    loaded.save_pretrained(out)
    weights = dict(LlamaForCausalLM.from_pretrained(model, dtype=torch.float16).state_dict())
    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module.weight, "dequantize"):
            weights[f"{name}.weight"] = module.weight.dequantize()
    return weights


def _pack(model: Path, out: Path, *, tiles: tuple[str, ...]) -> Mapping[str, Tensor]:
    """`tiles` end the names of weights in the order of matrix units; the others have two values a byte."""
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    weights, stored = dict(loaded.state_dict()), dict(loaded.state_dict())
    for name in [name for name in weights if name.endswith("proj.weight")]:
        codes, scales, offsets = _rounded(weights[name])
        spread = [values.float().repeat_interleave(GROUP, 1) for values in (scales, offsets)]
        pack = _tiles if name.endswith(tiles) else _plain
        stored[name] = pack(codes, scales, offsets)
        weights[name] = (codes - 8) * spread[0] + spread[1]
    tensors, notes = flatten_tensor_state_dict(stored)
    out.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors", notes)
    packing = "tile_packed_to_4d" if tiles else "plain"
    options = TorchAoConfig(Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=packing))
    config = json.loads((model / "config.json").read_text()) | {"quantization_config": options.to_dict()}
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return weights


def _rounded(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes from 0 to 15, and a scale and an offset a group, in bfloat16; a value is (code - 8) * scale + offset."""
    groups = weight_NK.float().unflatten(1, (-1, GROUP))
    low = groups.amin(-1)
    scales = ((groups.amax(-1) - low) / 15).bfloat16()
    offsets = (low + 8 * scales.float()).bfloat16()
    codes = ((groups - offsets.float().unsqueeze(-1)) / scales.float().unsqueeze(-1)).round() + 8
    return codes.clamp(0, 15).int().flatten(1), scales, offsets


def _plain(codes: Tensor, scales: Tensor, offsets: Tensor) -> Any:
    values = codes - 8
    packed = ((values[:, 1::2] << 4) | (values[:, ::2] & 15)).to(torch.int8)
    return Int4Tensor(packed, scales.t().contiguous(), offsets.t().contiguous(), [1, GROUP], codes.shape)


def _tiles(codes: Tensor, scales: Tensor, offsets: Tensor) -> Any:
    """What `matrix_to_m16n8k16_Bint4_layout` of torch's int4mm.cu does, with eight inner tiles, lane by lane; inputs
    are filled up to 1024, as torchao does.
    """
    outputs, inputs = codes.shape
    padded = torch.zeros(outputs, 1024, dtype=torch.int32)
    padded[:, :inputs] = codes
    words = torch.zeros(outputs // 8, 1024 // 128, 32, 4, dtype=torch.int64)
    for lane in range(32):
        for pair in range(4):
            first = 32 * pair + 2 * (lane % 4)
            at = [first, first + 8, first + 16, first + 24]
            block = padded[lane // 4 :: 8].unflatten(1, (-1, 128))
            for place, k in enumerate([*at, *(k + 1 for k in at)]):
                words[:, :, lane, pair] |= block[:, :, k].long() << (4 * place)
    packed = (words & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)
    both = torch.zeros(1024 // GROUP, outputs, 2, dtype=torch.bfloat16)
    both[: inputs // GROUP] = torch.stack((scales, offsets), -1).transpose(0, 1)
    return Int4TilePackedTo4dTensor(packed, both, [1, GROUP], codes.shape)


def _groups(bits: int) -> Any:
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(GROUP), mapping_type=MappingType.ASYMMETRIC
    )


MAKES: Mapping[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {
    "int8": partial(_make, config=Int8WeightOnlyConfig),
    "int8-dynamic": partial(_make, config=Int8DynamicActivationInt8WeightConfig),
    "intx4": partial(_make, config=partial(_groups, 4)),
    "float8": partial(_make, config=Float8WeightOnlyConfig),
    "int4": partial(_pack, tiles=()),
    "int4-tiles": partial(_pack, tiles=("layers.0.self_attn.o_proj.weight",)),
}
