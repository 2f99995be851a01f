"""AWQ in the `gemm` layout, packed by AutoAWQ. Its search for scales needs a transformers of its time, so weights are
rounded by its `pseudo_quantize_tensor` as they are; the layout does not depend on that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

GROUP = 32


class _Rounding(AwqQuantizer):  # type: ignore[misc]
    """What the rounding looks at."""

    def __init__(self) -> None:
        self.group_size, self.zero_point, self.w_bit = GROUP, True, 4


def make(model: Path, out: Path) -> Mapping[str, Tensor]:
    """A checkpoint, and its weights by AutoAWQ's own unpacking."""
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float16)
    weights, stored = dict(loaded.state_dict()), dict(loaded.state_dict())
    for name, module in loaded.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        module.float()
        module.weight.data, scales, zeros = _Rounding().pseudo_quantize_tensor(module.weight.data)
        packed = WQLinear_GEMM.from_linear(
            module, 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
        )
        del stored[f"{name}.weight"]
        stored |= {f"{name}.{part}": tensor.contiguous() for part, tensor in packed.state_dict().items()}
        whole = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, GROUP)
        weights[f"{name}.weight"] = whole.t()
    out.mkdir()
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": None,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return weights
