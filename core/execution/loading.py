"""Puts an executor together: weights, a KV cache of the memory that is left, a warm-up. What it does is `runner.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mainspring.core.architectures import NO_PLUGINS
from mainspring.core.backend import (
    Capabilities,
    Communicator,
    Device,
    DeviceInfo,
    KVCache,
    KVSpec,
    ProgressCallback,
    ShapeLimits,
)
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.errors import BackendError, StartupError
from mainspring.core.execution.drafters.loading import Room, Surroundings, build_drafter, load_module, tapped
from mainspring.core.execution.memory import is_out_of_memory
from mainspring.core.execution.relay import ONE_STAGE, Relay
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.grammar.guides import GuidedElsewhere, Guides, Guiding
from mainspring.core.grammar.store import Grammars
from mainspring.core.models import CausalLM, build_model
from mainspring.core.ops import Ops, resolve
from mainspring.core.parallel.groups import Groups, make_groups
from mainspring.core.parallel.shard import part_of
from mainspring.core.parallel.stages import EVERYTHING, Place
from mainspring.core.plan import Plan, blocks_that_fit
from mainspring.core.processors.forms import ProcessorForms
from mainspring.core.processors.loading import forms_of, load_processors
from mainspring.core.quantization import NO_QUANTIZATION, unsupported
from mainspring.core.speculator_plan import drafts_at_once
from mainspring.core.weights import fill_dummy, load_weights


def build_executor(
    config: EngineConfig,
    model: ModelConfig,
    plan: Plan,
    device: Device,
    *,
    info: DeviceInfo,
    capabilities: Capabilities,
    progress: ProgressCallback,
    model_plugins: Mapping[str, str] = NO_PLUGINS,
    place: Place = EVERYTHING,
    grammars: Grammars | None = None,
    processor_plugins: Mapping[str, str] = NO_PLUGINS,
    forms: ProcessorForms | None = None,
) -> GraphExecutor:
    """Loads the model, sizes the KV cache by what memory is left, and warms up.

    A rank among several has its `place`. All have met and do this at once: they agree on the cache's size, and warm
    up together.

    Raises `StartupError` when the device cannot run the model's shapes or its memory is too small. The device stays the
    caller's to close until this returns.
    """
    processors = load_processors(processor_plugins, model.vocab_size)
    groups, arrivals = make_groups(device, place), _arrivals(config, model, plan, device, place)
    built, ops = _load_model(
        config, model, plan, device,
        progress=progress, model_plugins=model_plugins, place=place, groups=groups, arrivals=arrivals,
    )  # fmt: skip
    around = Surroundings(device, ops, getattr(torch, plan.dtype), plan.max_length)
    speculator = plan.speculator
    module = None if speculator is None else load_module(speculator, built, around, progress, model_plugins)
    num_blocks = _agreed(_num_blocks(config, plan, device, groups.everyone), device, groups.everyone)
    max_length = min(plan.max_length, (num_blocks - 1) * plan.kv.block_size)
    blocks = -(-max_length // plan.kv.block_size)
    guesses = drafts_at_once(config, None if speculator is None else speculator.config)
    choices = min(config.max_sequences * (1 + guesses), config.max_batch_tokens) if guesses else 0
    buckets = device.buckets(ShapeLimits(config.max_batch_tokens, config.max_sequences, blocks, choices))
    if buckets is not None and (problems := buckets.check()):
        raise BackendError([f"{info.name}: {problem}" for problem in problems])
    table = StateTable(
        config.max_sequences,
        max_length,
        plan.kv.block_size,
        sampling=SamplingTable(config.max_sequences + 1, model.vocab_size, model.eos_token_ids, processors=processors),
        torch_device=device.torch_device,
    )
    spec = replace(plan.kv, layers=place.stage.part_of(model).num_layers)
    kv, drafter = _allocate(device, spec, num_blocks), None
    if speculator is not None and module is not None:
        own = (
            None if speculator.kv is None else _allocate(device, speculator.kv, num_blocks + speculator.scratch_blocks)
        )
        room = Room(table, num_blocks, own, buckets, config.max_batch_tokens, static=capabilities.shapes == "bucketed")
        built, drafter = tapped(built, speculator, model.hidden_size), build_drafter(module, speculator, around, room)
    staged = place.stage.count > 1
    executor = GraphExecutor(
        built,
        device,
        table,
        capabilities=replace(capabilities, samples_in_program=False) if staged else capabilities,
        ops=ops,
        spec=spec,
        num_blocks=num_blocks,
        kv=kv,
        buckets=buckets,
        name=info.name,
        guides=_guides(grammars, model, place),
        share_masks=None if groups.everyone is None else partial(groups.everyone.broadcast, source=0),
        drafter=drafter,
        speculates=guesses > 0,
        relay=Relay(place, groups.everyone, arrivals) if staged else ONE_STAGE,
    )
    executor.warmup(progress, config.max_batch_tokens)
    if forms is not None:
        forms.offered = forms_of(processors)
    return executor


def _guides(grammars: Grammars | None, model: ModelConfig, place: Place) -> Guiding | None:
    """Rank 0 follows the grammars and tells the others."""
    if place.rank > 0:
        return GuidedElsewhere(model.vocab_size)
    return None if grammars is None else Guides(grammars)


def _load_model(
    config: EngineConfig,
    model: ModelConfig,
    plan: Plan,
    device: Device,
    *,
    progress: ProgressCallback,
    model_plugins: Mapping[str, str],
    place: Place,
    groups: Groups,
    arrivals: Tensor | None,
) -> tuple[CausalLM, Ops]:
    scheme = None if config.quantize in (None, NO_QUANTIZATION) else plan.scheme
    if scheme is not None and (reasons := unsupported(part_of(model, place.shard.world), scheme, device)):
        raise StartupError([f"--quantize {config.quantize}: {reason}" for reason in reasons])
    dtype: torch.dtype = getattr(torch, plan.dtype)
    ops = resolve(device.ops())
    build = partial(build_model, model, ops, device, dtype, plan.max_length, plugins=model_plugins)
    built = build(shard=place.shard, group=groups.sharing, stage=place.stage, arrivals=arrivals)
    if config.load_format == "dummy":
        fill_dummy(built, config.seed, device, dtype, scheme)
    else:
        keeps, path = config.quantize is None, Path(config.model)
        whole = build() if place.stage.count > 1 else None
        load_weights(built, path, model, device, dtype, scheme, progress, keeps_quantized=keeps, whole=whole)
    return built, ops


def _arrivals(config: EngineConfig, model: ModelConfig, plan: Plan, device: Device, place: Place) -> Tensor | None:
    """Where hidden states of the largest step come in, [tokens, hidden size]; None where tokens come in."""
    if place.stage.first:
        return None
    most = max(config.max_batch_tokens, config.max_sequences)
    return torch.zeros((most, model.hidden_size), dtype=getattr(torch, plan.dtype), device=device.torch_device)


def _num_blocks(config: EngineConfig, plan: Plan, device: Device, group: Communicator | None) -> int:
    """KV blocks for the memory that is left beside the weights. Block 0 is nobody's, so one alone serves nothing."""
    _agreed(0, device, group)  # ranks may share memory, so all weights must be there
    free, total = device.memory()
    num_blocks = blocks_that_fit(plan, config, free, total)
    if num_blocks < 2:
        raise StartupError(
            f"no memory is left for the KV cache: {free:,} of {total:,} bytes are free after loading, a step needs "
            f"{plan.workspace_bytes:,} and a block {plan.block_bytes:,}; raise --memory-fraction, lower "
            "--max-batch-prefill-tokens or use --quantize"
        )
    return num_blocks


def _agreed(number: int, device: Device, group: Communicator | None) -> int:
    """The smallest that any rank gives. The first call is also where a device's collectives load what they need."""
    if group is None:
        return number
    return int(group.all_gather(torch.tensor([number], device=device.torch_device), dim=0).min())


def _allocate(device: Device, spec: KVSpec, num_blocks: int) -> KVCache:
    try:
        return device.allocate_kv(spec, num_blocks)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = num_blocks * spec.block_bytes()
        raise StartupError(
            f"the KV cache of {num_blocks} blocks ({size:,} bytes) did not fit: {error}; lower --memory-fraction"
        ) from error
