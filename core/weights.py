"""From a checkpoint on disk to packed weights in a built model."""

from __future__ import annotations

from pathlib import Path

import torch

from mainspring.core.backend import Device, ProgressCallback, WeightScheme
from mainspring.core.config import ModelConfig
from mainspring.core.models.causal import CausalLM


def load_weights(
    model: CausalLM,
    path: Path,
    config: ModelConfig,
    device: Device,
    dtype: torch.dtype,
    scheme: WeightScheme | None,
    progress: ProgressCallback,
) -> None:
    """Fills a built model from a directory of safetensors or a `.gguf` file, one layer at a time.

    `scheme` None packs every linear layer as `unquantized(dtype)`. `progress` is called with ("weights", done bytes,
    total bytes). Raises `ModelError` that names all missing, surplus and misshaped tensors at once.
    """
    raise NotImplementedError


def fill_dummy(model: CausalLM, seed: int, device: Device, dtype: torch.dtype, scheme: WeightScheme | None) -> None:
    """Small random weights from a seeded generator, for speed tests of true shapes."""
    raise NotImplementedError
