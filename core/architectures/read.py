"""From a path to a `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from mainspring.core.architectures.fields import Fields
from mainspring.core.architectures.table import NO_PLUGINS, find
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.prequantized.recognize import recognize

OLDER_FILES: Mapping[str, str] = MappingProxyType({"quantize_config.json": "gptq", "quant_config.json": "awq"})
"""Where AutoGPTQ and AutoAWQ described weights before `config.json` had a place for it, and their `quant_method`."""


def read_model_config(path: Path, plugins: Mapping[str, str] = NO_PLUGINS) -> ModelConfig:
    """The config of the model in a directory (`config.json`) or a `.gguf` file.

    `plugins` is what the `mainspring_models` hooks returned. Raises `ModelError` for an architecture, a rope type or a
    value that cannot be used; it names the file.
    """
    if path.is_dir():
        values, source = _with_quantization(path, read_json(path / "config.json")), str(path / "config.json")
        ending = path / "generation_config.json"
        generation = read_json(ending) if ending.exists() else {}
    elif path.suffix == ".gguf":
        # Imported here, for it brings numpy: `mainspring check` of a directory answers without.
        from mainspring.core.architectures.gguf_metadata import gguf_config, stored_weights
        from mainspring.core.gguf_file import GGUFFile

        file = GGUFFile.open(path)
        config = _read(Fields(gguf_config(file), str(path)), {}, plugins)
        return msgspec.structs.replace(config, stored=stored_weights(file))
    else:
        raise ModelError(f"{path} is neither a directory with a config.json nor a .gguf file")
    return _read(Fields(values, source), generation, plugins)


def _read(fields: Fields, generation: Mapping[str, Any], plugins: Mapping[str, str]) -> ModelConfig:
    quantization = dict(fields.table("quantization_config").values) if fields.has("quantization_config") else {}
    if quantization:
        recognize(quantization, fields.source)  # refuses what none reads, before anything else is done
    names = fields.texts("architectures")
    if len(names) != 1:
        raise fields.unusable("architectures", "exactly one name is needed, such as LlamaForCausalLM")
    config = find(names[0], fields.source, plugins).read(fields)
    eos = _token_ids(generation.get("eos_token_id")) or _token_ids(fields.values.get("eos_token_id"))
    return msgspec.structs.replace(config, architecture=names[0], eos_token_ids=eos, quantization=quantization)


def _with_quantization(directory: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The config, with what older tools said of quantized weights elsewhere in the place that it has today."""
    if values.get("quantization_config"):
        return values
    if values.get("compression_config"):
        return values | {"quantization_config": {"quant_method": "compressed-tensors", **values["compression_config"]}}
    for name, method in OLDER_FILES.items():
        if (directory / name).exists():
            return values | {"quantization_config": {"quant_method": method, **read_json(directory / name)}}
    return values


def _token_ids(value: object) -> tuple[int, ...]:
    """One id, a list of them, or nothing: configs have all three."""
    if isinstance(value, int):
        return (value,)
    return tuple(value) if isinstance(value, list) else ()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object beside a checkpoint. Raises `ModelError` that names the file."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ModelError(f"{file.parent} has no {file.name}; give the directory of a Hugging Face checkpoint") from None
    except msgspec.MsgspecError as error:
        raise ModelError(f"{file} is not a JSON object: {error}") from error
