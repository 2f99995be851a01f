"""Puts a drafter together: its weights, its cache beside the target's, and what it shares with the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mainspring.core.architectures import NO_PLUGINS
from mainspring.core.architectures.speculators import (
    DraftModelConfig,
    MedusaConfig,
    MLPSpeculatorConfig,
    SpeculatorConfig,
)
from mainspring.core.architectures.speculators.reading import head_files
from mainspring.core.backend import Device, ProgressCallback
from mainspring.core.execution.drafters.contract import Beside, Drafter
from mainspring.core.execution.drafters.eagle import EagleDrafter
from mainspring.core.execution.drafters.model import ModelDrafter
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models import CausalLM, build_model
from mainspring.core.models.drafts.building import build_heads, build_recurrent
from mainspring.core.models.drafts.contract import Heads, Recurrent
from mainspring.core.ops import Ops
from mainspring.core.weights import load_heads, load_weights

Module = CausalLM | Heads | Recurrent


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a drafter runs in: the target's device, ops and sizes."""

    device: Device
    ops: Ops
    dtype: torch.dtype
    max_length: int


def load_module(
    config: SpeculatorConfig,
    path: Path,
    target: CausalLM,
    around: Surroundings,
    progress: ProgressCallback,
    *,
    plugins: Mapping[str, str] = NO_PLUGINS,
) -> Module:
    """The speculator's modules with their weights, whole and unquantized, on every rank alike."""
    device, dtype = around.device, around.dtype
    if isinstance(config, DraftModelConfig):
        model = build_model(config.model, around.ops, device, dtype, around.max_length, plugins=plugins)
        load_weights(model, path, config.model, device, dtype, None, progress)
        return model
    make = LayerFactory(around.ops, device, around.max_length)
    module: Heads | Recurrent
    if isinstance(config, MedusaConfig | MLPSpeculatorConfig):
        module = build_heads(config, make, target, dtype)
    else:
        module = build_recurrent(config, make, target, dtype)
    load_heads(module, head_files(path), module.convention, device, dtype, progress)
    return module


def build_drafter(module: Recurrent | CausalLM, beside: Beside, num_blocks: int, max_tokens: int) -> Drafter:
    """The drafter of modules with a cache. A draft model reads at most `max_tokens` behind one step."""
    if isinstance(module, CausalLM):
        return ModelDrafter(module, beside, num_blocks, max_tokens)
    return EagleDrafter(module, beside)
