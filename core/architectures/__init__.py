"""Which models there are, and how their `config.json` or GGUF metadata reads as a `ModelConfig`. No torch here.

A variant is one row of `ARCHITECTURES`: who reads its config, which class builds it, and how its layers are laid out.
What a config key means is in `readers`, rope in `rope`, GGUF's own names in `gguf_metadata`.
"""

from __future__ import annotations

from mainspring.core.architectures.count import linear_shapes, parameter_count
from mainspring.core.architectures.read import read_model_config
from mainspring.core.architectures.table import ARCHITECTURES, NO_PLUGINS, Architecture, model_class

__all__ = [
    "ARCHITECTURES",
    "NO_PLUGINS",
    "Architecture",
    "linear_shapes",
    "model_class",
    "parameter_count",
    "read_model_config",
]
