"""One architecture a file, built from `core.layers`; the table of architectures is in `core.architectures`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from mainspring.core.backend import Device
from mainspring.core.config import ModelConfig
from mainspring.core.models.causal import CausalLM
from mainspring.core.ops import Ops

__all__ = ["CausalLM", "build_model"]

NO_PLUGINS: Mapping[str, str] = MappingProxyType({})


def build_model(
    config: ModelConfig,
    ops: Ops,
    device: Device,
    dtype: torch.dtype,
    max_length: int,
    *,
    plugins: Mapping[str, str] = NO_PLUGINS,
) -> CausalLM:
    """The model's graph with weights on the meta device; `core.weights` fills them.

    `max_length` is the longest sequence served: rope tables have that many rows. `plugins` is what the
    `mainspring_models` hooks returned. Raises `ModelError` for an unknown architecture.
    """
    raise NotImplementedError
