"""bitsandbytes, by transformers' integration of it, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def _make(model: Path, out: Path, *, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    config = BitsAndBytesConfig(**options)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, quantization_config=config, dtype=torch.float16)
    loaded.save_pretrained(out)
    weights = dict(AutoModelForCausalLM.from_pretrained(model).state_dict())
    for name, module in loaded.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weights[f"{name}.weight"] = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            state: Any = module.weight
            weights[f"{name}.weight"] = state.data.float() * (state.SCB.float() / 127).unsqueeze(1)
    return weights


MAKES: Mapping[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {
    "nf4": partial(_make, options={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "nf4-double": partial(
        _make, options={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    ),
    "fp4": partial(_make, options={"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "int8": partial(_make, options={"load_in_8bit": True}),
}
