"""compressed-tensors, by llm-compressor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compressed_tensors.compressors import ModelCompressor
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.quantized import source

INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FP8: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
TOKEN: dict[str, Any] = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True}
STATIC: dict[str, Any] = {"num_bits": 8, "strategy": "tensor", "symmetric": True, "dynamic": False}


def _make(model: Path, out: Path, *, modifier: Any) -> Mapping[str, Tensor]:
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in source.calibration(model)]
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype="float16")
    oneshot(
        model=loaded,
        tokenizer=str(model),
        dataset=Dataset.from_list(rows),
        recipe=modifier(),
        num_calibration_samples=len(rows),
    )
    loaded.save_pretrained(out, save_compressed=True)
    compressor: Any = ModelCompressor.from_pretrained_model(loaded)
    compressor.decompress_model(loaded)
    plain = set(LlamaForCausalLM.from_pretrained(model).state_dict())
    return {name: tensor for name, tensor in loaded.state_dict().items() if name in plain}


def _modifier(kind: Any, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, **options: Any) -> Any:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": inputs and dict(inputs)}
    return partial(kind, config_groups={"group_0": group}, ignore=["lm_head"], **options)


def _by_scheme(name: str) -> Any:
    return partial(QuantizationModifier, targets="Linear", scheme=name, ignore=["lm_head"])


MODIFIERS: Mapping[str, Any] = {
    "w4a16": _modifier(QuantizationModifier, INT4),
    "w4a16-asymmetric": _modifier(QuantizationModifier, INT4 | {"symmetric": False}),
    "w4a16-gptq": _modifier(GPTQModifier, INT4, actorder="static"),
    "w8a16": _modifier(QuantizationModifier, INT8),
    "w8a8-int8": _modifier(QuantizationModifier, INT8, TOKEN | {"type": "int"}),
    "w8a8-int8-static": _modifier(QuantizationModifier, INT8 | {"strategy": "tensor"}, STATIC | {"type": "int"}),
    "fp8-dynamic": _modifier(QuantizationModifier, FP8 | {"strategy": "channel"}, TOKEN | {"type": "float"}),
    "fp8-static": _modifier(QuantizationModifier, FP8, STATIC | {"type": "float"}),
    "nvfp4a16": _by_scheme("NVFP4A16"),
    "mxfp4a16": _by_scheme("MXFP4A16"),
}

MAKES: Mapping[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {
    name: partial(_make, modifier=modifier) for name, modifier in MODIFIERS.items()
}
