"""GPTQ, by GPTQModel: its own calibration, its own packing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

# Its pool of threads asks for two workers, and gives itself one where there are fewer than three processors.
os.cpu_count = lambda: 4

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from tests.quantized import source  # noqa: E402


def _make(model: Path, out: Path, *, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    config = QuantizeConfig(group_size=32, device="cpu", offload_to_disk=False, **options)
    working = GPTQModel.load(str(model), config)
    rows = [
        {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        for row in source.calibration(model)
    ]
    working.quantize(rows, batch_size=1)
    working.save(str(out))
    loaded: Any = GPTQModel.load(str(out), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    weights = dict(LlamaForCausalLM.from_pretrained(model).state_dict())
    # It saves the rest in bfloat16.
    weights |= {name: tensor for name, tensor in load_file(out / "model.safetensors").items() if name in weights}
    for name, module in loaded.model.named_modules():
        if isinstance(module, TorchLinear):
            module.scales = module.scales.float()  # or the sum is rounded to bfloat16
            weights[f"{name}.weight"] = module.dequantize_weight().t().float()
    return weights


MAKES: Mapping[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {
    "w4": partial(_make, options={"bits": 4, "desc_act": False, "sym": True}),
    "w4-act-order": partial(_make, options={"bits": 4, "desc_act": True, "sym": True}),
    "w4-asymmetric-v2": partial(_make, options={"bits": 4, "desc_act": False, "sym": False, "format": "gptq_v2"}),
    "w8": partial(_make, options={"bits": 8, "desc_act": False, "sym": True}),
    "w2": partial(_make, options={"bits": 2, "desc_act": False, "sym": True}),
    "w3": partial(_make, options={"bits": 3, "desc_act": False, "sym": True}),
}
