"""From a path to a `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mainspring.core.architectures.fields import Fields
from mainspring.core.architectures.table import NO_PLUGINS, find
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError


def read_model_config(path: Path, plugins: Mapping[str, str] = NO_PLUGINS) -> ModelConfig:
    """The config of the model in a directory (`config.json`) or a `.gguf` file.

    `plugins` is what the `mainspring_models` hooks returned. Raises `ModelError` for an architecture, a rope type or a
    value that cannot be used; it names the file.
    """
    if path.is_dir():
        values, source = _json(path / "config.json"), str(path / "config.json")
        ending = path / "generation_config.json"
        generation = _json(ending) if ending.exists() else {}
    elif path.suffix == ".gguf":
        values, source, generation = _gguf(path), str(path), {}
    else:
        raise ModelError(f"{path} is neither a directory with a config.json nor a .gguf file")
    return _read(Fields(values, source), generation, plugins)


def _read(fields: Fields, generation: Mapping[str, Any], plugins: Mapping[str, str]) -> ModelConfig:
    if fields.has("quantization_config"):
        method = fields.table("quantization_config").text("quant_method", "unnamed")
        raise ModelError(
            f"{fields.source} describes weights quantized by {method!r}, which is not supported; "
            "use the model's unquantized checkpoint or a GGUF file of it"
        )
    names = fields.texts("architectures")
    if len(names) != 1:
        raise fields.unusable("architectures", "exactly one name is needed, such as LlamaForCausalLM")
    config = find(names[0], fields.source, plugins).read(fields)
    eos = _token_ids(generation.get("eos_token_id")) or _token_ids(fields.values.get("eos_token_id"))
    return msgspec.structs.replace(config, architecture=names[0], eos_token_ids=eos)


def _token_ids(value: object) -> tuple[int, ...]:
    """One id, a list of them, or nothing: configs have all three."""
    if isinstance(value, int):
        return (value,)
    return tuple(value) if isinstance(value, list) else ()


def _gguf(file: Path) -> dict[str, Any]:
    # Imported here, for it brings numpy: `mainspring check` of a directory answers without.
    from mainspring.core.architectures.gguf_metadata import gguf_config
    from mainspring.core.gguf_file import GGUFFile

    return gguf_config(GGUFFile.open(file))


def _json(file: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ModelError(f"{file.parent} has no {file.name}; give the directory of a Hugging Face checkpoint") from None
    except msgspec.MsgspecError as error:
        raise ModelError(f"{file} is not a JSON object: {error}") from error
