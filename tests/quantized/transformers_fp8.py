"""Fine-grained FP8, by the conversion of transformers: a scale a block, or a tensor. Its blocks are 128 by 128 in
checkpoints that people publish; here they are 32 by 32, so that a small model has several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import FineGrainedFP8Config, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize


def _make(model: Path, out: Path, *, block: tuple[int, int] | None) -> Mapping[str, Tensor]:
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float16)
    config = FineGrainedFP8Config(weight_block_size=block, modules_to_not_convert=["lm_head"])
    convert = Fp8Quantize(SimpleNamespace(quantization_config=config))
    weights, stored = dict(loaded.state_dict()), dict(loaded.state_dict())
    for name, module in loaded.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        key = f"{name}.weight"
        converted = convert.convert({key: stored.pop(key)})
        stored |= {part: tensor.contiguous() for part, tensor in converted.items()}
        back: Any = Fp8Dequantize(convert.hf_quantizer)
        weights[key] = back._dequantize_one(converted[key], converted[f"{key}_scale_inv"])
    out.mkdir()
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((model / "config.json").read_text()) | {"quantization_config": config.to_dict()}
    (out / "config.json").write_text(json.dumps(described, indent=2))
    return weights


MAKES: Mapping[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {
    "block": partial(_make, block=(32, 32)),
    "tensor": partial(_make, block=None),
}
