"""What a `quantization_config` is taken for, and what is said of one that none reads. No weights here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mainspring.core.architectures import read_model_config
from mainspring.core.errors import ModelError
from mainspring.core.prequantized.recognize import recognize
from mainspring.core.prequantized.torchao_config import activation_of
from tests.unit.test_architectures import LLAMA_32_1B

HQQ = {"nbits": 4, "channel_wise": True, "group_size": 64, "optimize": True, "round_zero": True, "axis": 1}
GROUPS = {"_type": "PerGroup", "_data": {"group_size": 32}}


def torchao(kind: str, **fields: object) -> dict[str, Any]:
    """As transformers writes one of torchao's configurations."""
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_version": 2, "_data": fields}}}


def hqq(**changes: object) -> dict[str, Any]:
    return {"quant_method": "hqq", "quant_config": {"weight_quant_params": {**HQQ, **changes}}, "skip_modules": []}


@pytest.mark.parametrize(
    ("config", "reader", "scheme"),
    [
        ({"quant_method": "gptq", "bits": 2, "group_size": 64, "sym": True}, "gptq", "int4 in groups of 64"),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1, "sym": False}, "gptq", "int4, asymmetric"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "marlin", "int4 in groups of 128"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin", "group_size": -1}, "marlin", "int4"),
        ({"quant_method": "awq", "w_bit": 4, "version": "marlin"}, "marlin", "int4 in groups of 128"),
        ({"quant_method": "awq", "w_bit": 4, "version": "GEMV", "q_group_size": 64}, "awq-gemv",
         "int4 in groups of 64, asymmetric"),
        ({"quant_method": "mxfp4"}, "mxfp4", "mxfp4 in groups of 32"),
        (hqq(), "hqq", "int4 in groups of 64, asymmetric"),
        (hqq(nbits=8, group_size=None), "hqq", "int8, asymmetric"),
        (hqq(axis=0), "hqq", "float32"),
        (
            {"quant_method": "hqq", "quant_config": {"mlp.down_proj": {"weight_quant_params": {**HQQ, "nbits": 3}}}},
            "hqq", "int4 in groups of 64, asymmetric",
        ),
        (torchao("Int8WeightOnlyConfig", granularity={"_type": "PerRow", "_data": {"dim": -1}}), "torchao", "int8"),
        (torchao("Int8DynamicActivationInt8WeightConfig"), "torchao", "int8, int8 activations"),
        (
            torchao("Int8DynamicActivationInt8WeightConfig", act_mapping_type={"_type": "M", "_data": "ASYMMETRIC"}),
            "torchao", "int8",
        ),
        (torchao("Float8WeightOnlyConfig"), "torchao", "float8_e4m3fn"),
        (
            torchao("Float8DynamicActivationFloat8WeightConfig", granularity=[{"_type": "PerTensor", "_data": {}}] * 2),
            "torchao", "float8_e4m3fn, float8_e4m3fn activations",
        ),
        (torchao("Int4WeightOnlyConfig", group_size=64), "torchao", "int4 in groups of 64, asymmetric"),
        (
            torchao("IntxWeightOnlyConfig", weight_dtype={"_type": "torch.dtype", "_data": "int3"}, granularity=GROUPS),
            "torchao", "int4 in groups of 32",
        ),
        (
            torchao("ModuleFqnToConfig", module_fqn_to_config={
                "model.layers.0.mlp.up_proj": None,
                "_default": {"_type": "Int8WeightOnlyConfig", "_data": {"granularity": GROUPS}},
            }),
            "torchao", "int8 in groups of 32",
        ),
    ],
)  # fmt: skip
def test_layouts(config: dict[str, Any], reader: str, scheme: str) -> None:
    layout = recognize(config, "config.json")
    assert (layout.reader, str(layout.scheme)) == (reader, scheme)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, (None, None)),
        ({"granularity": {"_type": "PerRow", "_data": {"dim": -1}}}, ("float8_e4m3fn", "token")),
        ({"granularity": {"_type": "PerTensor", "_data": {}}}, ("float8_e4m3fn", "tensor")),
        ({"granularity": {"_type": "PerBlock", "_data": {"block_size": [1, 128]}}}, ("float8_e4m3fn", "block")),
        ({"mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"}}, (None, None)),
    ],
)
def test_activations_of_torchaos_weights(
    options: dict[str, Any] | None, expected: tuple[str | None, str | None]
) -> None:
    wrapped = None if options is None else {"_type": "QuantizeTensorToFloat8Kwargs", "_data": options}
    assert activation_of(wrapped, "float8_e4m3fn") == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 5}, r"'gptq' \(bits 5\), which is not supported; read are gptq, marlin, awq"),
        ({"quant_method": "gptq", "bits": 8, "is_marlin_format": True}, r"Marlin's order of 8 bits.*save it as gptq"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"}, "save it as gptq, from which kernels"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv_fast"}, r"'awq' \(version gemv_fast\)"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "of older versions, whose weights are pickles"),
        (torchao("Int4WeightOnlyConfig", int4_packing_format="preshuffled"), "int4_packing_format preshuffled"),
        (torchao("UIntXWeightOnlyConfig"), r"'torchao' \(UIntXWeightOnlyConfig\)"),
        (torchao("FqnToConfig"), "names no configuration"),
        ({"quant_method": "hqq"}, "quant_config without weight_quant_params"),
        ({"quant_method": "aqlm"}, "'aqlm', which is not supported"),
    ],
)
def test_what_none_reads(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        recognize(config, "config.json")


@pytest.mark.parametrize(
    ("file", "said", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}, "gptq"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}, "awq"),
    ],
)
def test_older_tools_described_weights_beside_the_config(
    tmp_path: Path, file: str, said: dict[str, Any], method: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_32_1B))
    (tmp_path / file).write_text(json.dumps(said))
    assert read_model_config(tmp_path).quantization == {"quant_method": method, **said}


def test_an_older_name_of_compressed_tensors(tmp_path: Path) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    said = {"format": "float-quantized", "config_groups": {"group_0": group}}
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_32_1B, "compression_config": said}))
    assert read_model_config(tmp_path).quantization["quant_method"] == "compressed-tensors"
