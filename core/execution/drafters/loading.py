"""Puts a drafter together: its weights, its cache beside the target's, and what it shares with the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mainspring.core.architectures import NO_PLUGINS
from mainspring.core.architectures.speculators import (
    DraftModelConfig,
    MedusaConfig,
    MLPSpeculatorConfig,
    taps_of,
)
from mainspring.core.architectures.speculators.reading import head_files
from mainspring.core.backend import Device, KVCache, ProgressCallback
from mainspring.core.batch import Buckets
from mainspring.core.execution.drafters.choosing import Drawing
from mainspring.core.execution.drafters.contract import Beside, Drafter
from mainspring.core.execution.drafters.eagle import EagleDrafter
from mainspring.core.execution.drafters.heads import HeadsDrafter
from mainspring.core.execution.drafters.model import ModelDrafter
from mainspring.core.execution.drafters.places import Scratch
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.upload import uploading
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models import CausalLM, build_model
from mainspring.core.models.drafts.building import build_heads, build_recurrent
from mainspring.core.models.drafts.contract import Heads, Recurrent
from mainspring.core.models.drafts.tapping import Tapped
from mainspring.core.ops import Ops
from mainspring.core.speculator_plan import SpeculatorPlan
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
    plan: SpeculatorPlan,
    target: CausalLM,
    around: Surroundings,
    progress: ProgressCallback,
    plugins: Mapping[str, str] = NO_PLUGINS,
) -> Module:
    """The speculator's modules with their weights, whole and unquantized, on every rank alike."""
    config, device, dtype = plan.config, around.device, around.dtype
    if isinstance(config, DraftModelConfig):
        model = build_model(config.model, around.ops, device, dtype, around.max_length, plugins=plugins)
        load_weights(model, plan.path, config.model, device, dtype, None, progress)
        return model
    make = LayerFactory(around.ops, device, around.max_length)
    module: Heads | Recurrent
    if isinstance(config, MedusaConfig | MLPSpeculatorConfig):
        module = build_heads(config, make, target, dtype)
    else:
        module = build_recurrent(config, make, target, dtype)
    load_heads(module, head_files(plan.path), module.convention, device, dtype, progress)
    return module


def tapped(target: CausalLM, plan: SpeculatorPlan, hidden_size: int) -> CausalLM:
    """The target, giving the speculator all that it reads; itself where that is its final states."""
    taps = taps_of(plan.config)
    return Tapped(target, taps, hidden_size) if taps else target


@dataclass(frozen=True, slots=True)
class Room:
    """What a drafter shares with the executor of its target."""

    table: StateTable
    num_blocks: int
    """Of the target's cache."""
    kv: KVCache | None
    """The drafter's own: as many blocks, and the plan's scratch."""
    buckets: Buckets | None
    max_tokens: int
    """What a draft model reads behind one step, at most."""
    static: bool = False
    """Whether all that runs must have the shape of one of the buckets."""


def build_drafter(module: Module, plan: SpeculatorPlan, around: Surroundings, room: Room) -> Drafter:
    """The drafter of loaded modules."""
    upload = uploading(around.device)
    drawing = Drawing(room.table.sampling, around.ops, upload, partition=not room.static)
    if isinstance(module, Heads):
        flush = around.device.flush
        return HeadsDrafter(module, room.table, drawing, plan.count, flush=flush, static=room.static)
    if plan.kv is None or room.kv is None:
        raise ValueError(f"{type(module).__name__} needs a cache of its own")
    beside = Beside(
        device=around.device,
        table=room.table,
        drawing=drawing,
        upload=upload,
        kv=room.kv,
        scratch=Scratch.behind(room.num_blocks, plan.count, plan.kv.block_size),
        count=plan.count,
        buckets=room.buckets,
    )
    if isinstance(module, CausalLM):
        return ModelDrafter(module, beside, room.num_blocks, room.max_tokens)
    return EagleDrafter(module, beside)
