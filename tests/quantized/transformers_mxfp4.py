"""MXFP4 of linear layers in gpt-oss' blocks. transformers reads such blocks and writes them on a GPU alone, so they are
rounded here, by the published format, and de-quantised by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors


def make(model: Path, out: Path) -> Mapping[str, Tensor]:
    """A checkpoint, and its weights by transformers."""
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    weights, stored = dict(loaded.state_dict()), {key: value.half() for key, value in loaded.state_dict().items()}
    for name, module in loaded.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        key = f"{name}.weight"
        del stored[key]
        blocks, scales = _rounded(weights[key])
        stored |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
        # It takes experts, and gives them transposed.
        whole = convert_moe_packed_tensors(blocks.unsqueeze(0), scales.unsqueeze(0), dtype=torch.float32)
        weights[key] = whole[0].t().contiguous()
    out.mkdir()
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return weights


def _rounded(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [N, G, 16] and scales [N, G]: the largest power of two that leaves no value past 6 by more than rounding
    would, as the format's section 6.3 has it.
    """
    groups = weight_NK.unflatten(1, (-1, 32))
    exponents = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    scaled = groups / torch.exp2(exponents).unsqueeze(-1)
    codes = (scaled.unsqueeze(-1) - torch.tensor(FP4_VALUES)).abs().argmin(-1)
    blocks = (codes[..., 1::2] << 4) | codes[..., ::2]
    return blocks.to(torch.uint8), (exponents + 127).to(torch.uint8)
