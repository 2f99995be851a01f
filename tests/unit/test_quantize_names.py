"""Every method that TGI's `--quantize` named, on a checkpoint that is not quantized and on one that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mainspring.core.architectures import read_model_config
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.quantization import resolve_name
from tests.unit.test_architectures import LLAMA_32_1B

TGI = (
    "awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", "bitsandbytes", "bitsandbytes-nf4",
    "bitsandbytes-fp4", "fp8",
)  # fmt: skip
"""`text-generation-launcher --help`, 3.3."""

ROUNDED = {
    "eetq": "int8", "bitsandbytes": "int8", "bitsandbytes-nf4": "nf4", "bitsandbytes-fp4": "fp4", "fp8": "fp8",
}  # fmt: skip
"""What rounds the original while it loads."""

EXPLAINED = {
    "exl2": "EXL2 has no maintained writer",
    **{
        name: f"--quantize {name} reads a checkpoint of that format, and this one is not quantized; leave the flag out"
        for name in ("awq", "gptq", "marlin", "compressed-tensors")
    },
}

GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
CHECKPOINTS: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, ("gptq", "marlin")),
    "awq": ({"quant_method": "awq", "bits": 4}, ("awq", "gptq", "marlin")),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": GROUP}},
        ("compressed-tensors", "fp8"),
    ),
    "fp8": ({"quant_method": "fp8"}, ("fp8",)),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4"),
    ),
}
"""A config by its method, and the names that fit it."""


def model(directory: Path, quantization: dict[str, Any] | None = None) -> ModelConfig:
    values = LLAMA_32_1B | ({} if quantization is None else {"quantization_config": quantization})
    (directory / "config.json").write_text(json.dumps(values))
    return read_model_config(directory)


def test_every_name_rounds_or_explains() -> None:
    assert set(TGI) == {*ROUNDED, *EXPLAINED}


@pytest.mark.parametrize("name", ROUNDED)
def test_an_original_is_rounded_while_it_loads(tmp_path: Path, name: str) -> None:
    assert resolve_name(name, model(tmp_path)) == ROUNDED[name]


@pytest.mark.parametrize("name", EXPLAINED)
def test_names_of_formats_are_explained_where_there_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError) as raised:
        resolve_name(name, model(tmp_path))
    assert EXPLAINED[name] in str(raised.value)


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method, (_, names) in CHECKPOINTS.items() for name in names]
)
def test_the_name_of_a_checkpoints_own_format_changes_nothing(tmp_path: Path, method: str, name: str) -> None:
    assert resolve_name(name, model(tmp_path, CHECKPOINTS[method][0])) is None


def test_the_name_of_another_format_says_which_it_is(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="--quantize awq reads a checkpoint of that format, and this one is quantized by 'gptq'"
    ):
        resolve_name("awq", model(tmp_path, CHECKPOINTS["gptq"][0]))
