"""Which models there are, and how their `config.json` or GGUF metadata reads as a `ModelConfig`. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mainspring.core.config import ModelConfig

NO_PLUGINS: Mapping[str, str] = MappingProxyType({})


def read_model_config(path: Path, plugins: Mapping[str, str] = NO_PLUGINS) -> ModelConfig:
    """The config of the model in a directory (`config.json`) or a `.gguf` file.

    `plugins` is what the `mainspring_models` hooks returned. Raises `ModelError`.
    """
    raise NotImplementedError


def parameter_count(config: ModelConfig) -> int:
    """Weights of the model, tied embeddings counted once."""
    raise NotImplementedError
