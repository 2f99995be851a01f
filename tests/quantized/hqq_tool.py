"""HQQ, by its own layer on the CPU; the checkpoint is that layer's `state_dict`, which is what transformers writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM


def _make(model: Path, out: Path, *, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float16)
    weights, stored = dict(loaded.state_dict()), dict(loaded.state_dict())
    described = BaseQuantizeConfig(**options)
    for name, module in loaded.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        del stored[f"{name}.weight"]
        layer = HQQLinear(module, BaseQuantizeConfig(**options), compute_dtype=torch.float16, device="cpu")
        stored |= {f"{name}.{part}": tensor.contiguous() for part, tensor in layer.state_dict().items()}
        weights[f"{name}.weight"] = layer.dequantize()
    out.mkdir()
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_config": described, "quant_method": "hqq", "skip_modules": ["lm_head"]}
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return weights


MAKES: Mapping[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {
    "w4": partial(_make, options={"nbits": 4, "group_size": 32, "axis": 1}),
    "w8": partial(_make, options={"nbits": 8, "group_size": 64, "axis": 1}),
    "w3": partial(_make, options={"nbits": 3, "group_size": 32, "axis": 1}),
    "w2-as-float": partial(_make, options={"nbits": 2, "group_size": 16, "axis": 1, "view_as_float": True}),
    "w4-across": partial(_make, options={"nbits": 4, "group_size": 32, "axis": 0}),
}
