"""Our logits of a checkpoint beside those of its tool's own reading, which lie beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mainspring.core.architectures import read_model_config
from mainspring.core.models import build_model
from mainspring.core.ops import resolve
from mainspring.core.weights import load_weights
from tests.support.model_driver import ModelDriver, Track
from tests.support.reference_device import ReferenceDevice

TOLERANCE = 3e-3
"""Of the largest logit: tools de-quantise in 16 bits. One group's scale taken for its neighbour's is 50 times that."""
TOKENS = [(7 * place * place + 3) % 64 for place in range(1, 25)]


def difference(checkpoint: Path, reference: Path) -> float:
    """The largest, as a part of the largest logit. `checkpoint` is a directory or a GGUF file."""
    config, device = read_model_config(checkpoint), ReferenceDevice()
    model = build_model(config, resolve(device.ops()), device, torch.float32, 64)
    load_weights(model, checkpoint, config, device, torch.float32, None, lambda phase, done, total: None)
    expected = load_file(reference)["logits"]
    ours = ModelDriver(model, config).step([(Track(list(TOKENS)), len(TOKENS))])[0]
    return float((ours - expected).abs().max() / expected.abs().max())
