"""Quantized checkpoints on disk: a file for each block and one for the rest, in the layouts that other servers read.

* `compressed-tensors`: `pack-quantized` integers, `int-quantized` or `float-quantized` bytes.
* `gptq`: the layout of AutoGPTQ, first version: symmetric 4 and 8 bits, in which stored zero points lack 1.

Their readers are `core/prequantized/compressed.py` and `gptq.py`, where the layouts are described.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.layers.weights import Stored

Pack = Callable[[Stored, torch.dtype], dict[str, Tensor]]
"""A weight's tensors by the ends of their names."""


def pack_compressed(stored: Stored, dtype: torch.dtype) -> dict[str, Tensor]:
    """In the layout that `compressed_config` names."""
    scheme, tensors = stored.scheme, stored.tensors
    scales = {"weight_scale": tensors["scales"].to(dtype)}
    if scheme.weight == "float8_e4m3fn" or scheme.activation == "int8":
        return {"weight": tensors["weight"], **scales}
    middle = 1 << (scheme.bits - 1)
    unsigned = tensors["weight"].int() + (middle if scheme.symmetric else 0)
    packed = {
        "weight_packed": pack_words(unsigned, scheme.bits),
        "weight_shape": torch.tensor(unsigned.shape),
        **scales,
    }
    if not scheme.symmetric:
        packed["weight_zero_point"] = pack_words(tensors["zeros"].int().t(), scheme.bits).t().contiguous()
    return packed


def pack_gptq(stored: Stored, dtype: torch.dtype) -> dict[str, Tensor]:
    """AutoGPTQ's; weights are symmetric, so all zero points are the middle."""
    scheme, weight_NK, scales_NG = stored.scheme, stored.tensors["weight"], stored.tensors["scales"]
    middle = 1 << (scheme.bits - 1)
    zeros_GN = torch.full(scales_NG.t().shape, middle - 1, dtype=torch.int32)
    size = scheme.group_size or weight_NK.shape[1]
    return {
        "qweight": pack_words(weight_NK.int() + middle, scheme.bits).t().contiguous(),
        "qzeros": pack_words(zeros_GN, scheme.bits),
        "scales": scales_NG.t().to(torch.float16).contiguous(),
        "g_idx": (torch.arange(weight_NK.shape[1]) // size).to(torch.int32),
    }


def compressed_config(scheme: WeightScheme) -> dict[str, Any]:
    """`quantization_config` of `pack_compressed`."""
    is_float = scheme.weight == "float8_e4m3fn"
    weights = {
        "num_bits": scheme.bits,
        "type": "float" if is_float else "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    inputs = None
    if scheme.activation is not None:
        inputs = {**weights, "strategy": "token", "group_size": None, "dynamic": True}
    layout = "float-quantized" if is_float else "int-quantized" if scheme.activation == "int8" else "pack-quantized"
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def gptq_config(scheme: WeightScheme) -> dict[str, Any]:
    """`quantization_config` of `pack_gptq`."""
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "damp_percent": 0.01,
        "true_sequential": True,
        "lm_head": False,
    }


FORMATS: Mapping[str, tuple[Pack, Callable[[WeightScheme], dict[str, Any]]]] = MappingProxyType(
    {"compressed-tensors": (pack_compressed, compressed_config), "gptq": (pack_gptq, gptq_config)}
)
"""By the name that `--format` takes."""


def pack_words(values: Tensor, bits: int) -> Tensor:
    """Unsigned values [R, C] as int32 words [R, C * bits / 32], lowest bits first; a last word is filled up with 0."""
    per_word = 32 // bits
    missing = -values.shape[1] % per_word
    wide = torch.nn.functional.pad(values.long(), (0, missing)).reshape(len(values), -1, per_word)
    words = (wide << torch.arange(0, 32, bits)).sum(-1)
    return words.to(torch.uint32).view(torch.int32)


class Writer:
    """A checkpoint that is written a file at a time, and only found complete when `finish` has run."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True)
        self._out = out
        self._map: dict[str, str] = {}
        self._total = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """One file."""
        name = f"model-{len(set(self._map.values())) + 1:05d}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, self._out / name, {"format": "pt"})
        self._map |= dict.fromkeys(tensors, name)
        self._total += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, source: Path, quantization: Mapping[str, Any]) -> int:
        """The index, the config, and what else the model's directory has; returns the bytes of all tensors."""
        for file in _companions(source):
            shutil.copyfile(file, self._out / file.name)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = dict(quantization)
        (self._out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        index = {"metadata": {"total_size": self._total}, "weight_map": self._map}
        (self._out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        return self._total


def _companions(source: Path) -> Iterable[Path]:
    """Tokenizer, template, generation defaults, license: all small files but weights and what is written anew."""
    for file in sorted(source.iterdir()):
        weights = file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")
        if file.is_file() and not weights and not file.name.endswith(".index.json") and file.name != "config.json":
            yield file
