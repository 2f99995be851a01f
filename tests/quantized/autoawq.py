"""AWQ in the `gemm` and `gemv` layouts and in Marlin's, packed by AutoAWQ.

Its search for scales needs a transformers of its time, so weights are rounded by its `pseudo_quantize_tensor` as they
are; the layout does not depend on that. AutoGPTQ's Marlin checkpoints are AutoAWQ's under other names: both have the
order of Marlin's own `Layer.pack`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.modules.linear.gemv import WQLinear_GEMV
from awq.modules.linear.marlin import WQLinear_Marlin
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

GROUP = 32


class _Rounding(AwqQuantizer):  # type: ignore[misc]
    """What the rounding looks at."""

    def __init__(self, group_size: int = GROUP, *, zero_point: bool = True) -> None:
        self.group_size, self.zero_point, self.w_bit = group_size, zero_point, 4


def _linears(loaded: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that are rounded, in float32."""
    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            yield name, module.float()


def gemm(model: Path, out: Path) -> Mapping[str, Tensor]:
    """A checkpoint, and its weights by AutoAWQ's own unpacking."""
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float16)
    weights, stored = dict(loaded.state_dict()), dict(loaded.state_dict())
    for name, module in _linears(loaded):
        module.weight.data, scales, zeros = _Rounding().pseudo_quantize_tensor(module.weight.data)
        packed = WQLinear_GEMM.from_linear(
            module, 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
        )
        del stored[f"{name}.weight"]
        stored |= {f"{name}.{part}": tensor.contiguous() for part, tensor in packed.state_dict().items()}
        whole = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, GROUP)
        weights[f"{name}.weight"] = whole.t()
    described = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    _save(model, out, stored, described)
    return weights


def gemv(model: Path, out: Path) -> Mapping[str, Tensor]:
    """The same; nothing of AutoAWQ unpacks this one but its kernel, so weights are as they were rounded."""
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float16)
    weights, stored = dict(loaded.state_dict()), dict(loaded.state_dict())
    for name, module in _linears(loaded):
        module.weight.data, scales, zeros = _Rounding().pseudo_quantize_tensor(module.weight.data)
        packed = WQLinear_GEMV.from_linear(module, 4, GROUP, scales=scales, zeros=zeros)
        del stored[f"{name}.weight"]
        stored |= {f"{name}.{part}": tensor.contiguous() for part, tensor in packed.state_dict().items()}
        weights[f"{name}.weight"] = module.weight.data
    _save(model, out, stored, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemv"})
    return weights


def _marlin(
    model: Path, out: Path, *, group_size: int, names: Mapping[str, str], describes: Any
) -> Mapping[str, Tensor]:
    """Layers of a multiple of 64 outputs, which a tile has; weights as they were rounded, before they were packed."""
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float16)
    weights, stored = dict(loaded.state_dict()), dict(loaded.state_dict())
    for name, module in _linears(loaded):
        if module.out_features % 64:
            continue
        rounding = _Rounding(group_size, zero_point=False)
        module.weight.data, scales, _ = rounding.pseudo_quantize_tensor(module.weight.data)
        scales = scales.half().float()
        packed = WQLinear_Marlin.from_linear(module, 4, _packed_group(module, group_size), scales=scales)
        del stored[f"{name}.weight"]
        stored |= {f"{name}.{names[part]}": tensor.contiguous() for part, tensor in packed.state_dict().items()}
        spread = scales.repeat_interleave(module.in_features // scales.shape[1], 1)
        weights[f"{name}.weight"] = (module.weight.data / spread).round().clamp(-8, 7) * spread
    _save(model, out, stored, {"bits": 4, "group_size": group_size, **describes})
    return weights


def _packed_group(module: nn.Linear, group_size: int) -> int:
    """AutoAWQ divides by the size that it is given to lay out scales, which for one group has to be all inputs."""
    return group_size if group_size > 0 else module.in_features


def _save(model: Path, out: Path, stored: Mapping[str, Tensor], quantization: Mapping[str, Any]) -> None:
    out.mkdir()
    save_file(dict(stored), out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text()) | {"quantization_config": dict(quantization)}
    (out / "config.json").write_text(json.dumps(config, indent=2))


MAKES: Mapping[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {
    "awq-gemm": gemm,
    "awq-gemv": gemv,
    "awq-marlin": partial(
        _marlin,
        group_size=GROUP,
        names={"qweight": "qweight", "scales": "scales"},
        describes={"quant_method": "awq", "zero_point": False, "version": "marlin"},
    ),
    "gptq-marlin": partial(
        _marlin,
        group_size=-1,
        names={"qweight": "B", "scales": "s"},
        describes={"quant_method": "gptq", "desc_act": False, "sym": True, "is_marlin_format": True},
    ),
}
