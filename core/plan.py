"""The start-up plan: what a model needs, what a backend declares, and how the device's memory divides.

Everything that cannot work is found here, before a weight is read, and said all at once. `make_plan` is pure: it asks
`Backend.devices` and `Backend.capabilities` and opens nothing, so `mainspring check` gives the same plan as the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from mainspring.core.architectures import linear_shapes, parameter_count
from mainspring.core.architectures.speculators import DraftModelConfig, SpeculatorConfig
from mainspring.core.backend import (
    KV_DTYPE_BYTES,
    AttentionFeature,
    Backend,
    Capabilities,
    DeviceInfo,
    KVSpec,
    WeightScheme,
    unquantized,
)
from mainspring.core.config import Dtype, EngineConfig, KVDtype, ModelConfig
from mainspring.core.errors import StartupError, unknown
from mainspring.core.parallel.shard import obstacles, part_of, worlds
from mainspring.core.parallel.stages import Stage
from mainspring.core.quantization import NO_QUANTIZATION, SCHEMES, stored_scheme
from mainspring.core.speculator_plan import SpeculatorPlan, plan_speculator, speculator_needs

MARGIN = 0.02
"""Share of a device's memory that is never planned with."""

SCORED_ROWS = 128
"""Positions of prompts whose logits are in memory at once: enough rows for a matrix product to be worth its weights."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing the model or the operator needs, against what the backend declares."""

    what: str
    needed: str
    declared: str
    remedy: str | None = None
    """None when it is met; else what would make it work."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the server will run. Sizes in bytes, and of one rank where there are several."""

    dtype: Dtype
    scheme: WeightScheme
    kv: KVSpec
    max_length: int
    num_blocks: int
    """As estimated from the device's total memory; what is free after loading decides."""
    total_bytes: int
    usable_bytes: int
    """The share of it that serving may take."""
    weight_bytes: int
    """A speculator's included."""
    workspace_bytes: int
    sharers: int
    """Ranks that divide the device's memory."""
    speculator: SpeculatorPlan | None
    requirements: tuple[Requirement, ...]
    notes: tuple[str, ...]

    @property
    def reasons(self) -> list[str]:
        """Why it cannot work, one sentence a requirement that is not met."""
        return [
            f"{need.what}: needs {need.needed}, has {need.declared}; {need.remedy}"
            for need in self.requirements
            if need.remedy is not None
        ]

    @property
    def block_bytes(self) -> int:
        """Of a block, a speculator's share included."""
        return self.kv.block_bytes() + (self.speculator.block_bytes if self.speculator else 0)

    @property
    def kv_bytes(self) -> int:
        """Of the KV cache, a speculator's beside it included."""
        return self.num_blocks * self.block_bytes

    @property
    def scratch_bytes(self) -> int:
        """What a speculator's cache needs whatever its size."""
        return self.speculator.scratch_bytes if self.speculator else 0

    @property
    def max_concurrent_tokens(self) -> int:
        """Tokens that all sequences together may hold; block 0 holds none."""
        return (self.num_blocks - 1) * self.kv.block_size


def make_plan(
    config: EngineConfig,
    model: ModelConfig,
    backend: Backend,
    device: DeviceInfo,
    speculator: SpeculatorConfig | None = None,
) -> Plan:
    """The plan for serving `model` on `device`. Raises `StartupError` with every reason why it cannot work."""
    capabilities = backend.capabilities(device)
    plan = draft(config, model, capabilities, device, speculator)
    if plan.reasons:
        raise StartupError([f"{backend.name}: {reason}" for reason in plan.reasons])
    return plan


def draft(
    config: EngineConfig,
    model: ModelConfig,
    capabilities: Capabilities,
    device: DeviceInfo,
    speculator: SpeculatorConfig | None = None,
) -> Plan:
    """The plan whether or not it can work: unmet requirements are in it."""
    dtype, dtype_note = _compute_dtype(config, model, capabilities)
    scheme, unknown_scheme, scheme_note = _weight_scheme(config, model, dtype, capabilities)
    world, stages = config.num_shard or 1, config.num_stages
    held = part_of(model, world)
    sharers = world * stages if capabilities.ranks_share_device else 1
    spec = KVSpec(
        layers=Stage(0, stages).part_of(model).num_layers,  # the most that any stage has
        heads=held.num_kv_heads,
        head_dim=model.head_dim,
        dtype=_kv_dtype(config, dtype, capabilities),
        block_size=config.block_size or capabilities.block_sizes[0],
    )
    max_length = min(config.max_length or model.max_position, model.max_position)
    beside = None if speculator is None else plan_speculator(config, speculator, spec, dtype)
    weights = heaviest_stage(held, stages, scheme, dtype)
    weights -= saved_bytes(config, model, capabilities, dtype) // (world * stages)
    weights += beside.weight_bytes if beside else 0
    workspace = workspace_bytes(config, msgspec.structs.replace(held, vocab_size=model.vocab_size), max_length)
    fixed = weights + workspace + (beside.scratch_bytes if beside else 0)
    block = spec.block_bytes() + (beside.block_bytes if beside else 0)
    usable = int(device.total_bytes * (config.memory_fraction or capabilities.default_memory_fraction)) // sharers
    wanted = config.num_blocks or blocks_wanted(config, spec, max_length)
    num_blocks = config.num_blocks or max(0, min(wanted, (usable - fixed) // block))
    fitting, length_note = _fitting_length(config, max_length, num_blocks, spec)
    needs = [*unknown_scheme, *_capability_needs(config, model, capabilities, scheme, dtype, spec)]
    needs += _rank_needs(model, capabilities, scheme, config)
    needs += _stage_needs(model, capabilities, config, beside)
    needs += _speculator_needs(beside, capabilities, fitting)
    needs += _memory_needs(usable, fixed + 2 * block, (num_blocks - 1) * spec.block_size, fitting)
    return Plan(
        dtype=dtype,
        scheme=scheme,
        kv=spec,
        max_length=fitting,
        num_blocks=num_blocks,
        total_bytes=device.total_bytes,
        usable_bytes=usable,
        weight_bytes=weights,
        workspace_bytes=workspace,
        sharers=sharers,
        speculator=beside,
        requirements=tuple(needs),
        notes=tuple(note for note in (dtype_note, scheme_note, length_note) if note),
    )


def weight_bytes(model: ModelConfig, scheme: WeightScheme, dtype: Dtype) -> int:
    """Of all parameters, with linear layers stored by `scheme` and the rest in the compute dtype."""
    dense = parameter_count(model)
    shapes = linear_shapes(model).values()
    linear = model.num_layers * sum(i * o for i, o in shapes) if scheme.bits < 16 else 0
    scales = linear // scheme.group_size if scheme.group_size else 0
    return (
        (dense - linear) * KV_DTYPE_BYTES[dtype] + linear * scheme.bits // 8 + scales * (2 if scheme.symmetric else 4)
    )


def heaviest_stage(model: ModelConfig, count: int, scheme: WeightScheme, dtype: Dtype) -> int:
    """`weight_bytes` of the stage, of so many, that has most: tables of the two ends that it has not are taken off."""
    table = model.vocab_size * model.hidden_size * KV_DTYPE_BYTES[dtype]
    stages = [Stage(index, count) for index in range(count)]
    return max(
        weight_bytes(stage.part_of(model), scheme, dtype) - table * _tables_elsewhere(stage, tied=model.tied_embeddings)
        for stage in stages
    )


def _tables_elsewhere(stage: Stage, *, tied: bool) -> int:
    """Of the embedding's and the head's. One that is both is on the first stage and on the last."""
    if tied:
        return int(not (stage.first or stage.last))
    return (not stage.first) + (not stage.last)


def saved_bytes(config: EngineConfig, model: ModelConfig, capabilities: Capabilities, dtype: Dtype) -> int:
    """What weights take less because they stay as the checkpoint has them."""
    if config.quantize is not None:
        return 0
    taken = {scheme.packing for scheme in capabilities.weight_schemes}
    kept = [stored for stored in model.stored if stored.packing in taken]
    return sum(stored.num_values * KV_DTYPE_BYTES[dtype] - stored.num_bytes for stored in kept)


def workspace_bytes(config: EngineConfig, model: ModelConfig, max_length: int) -> int:
    """Memory that a step needs besides weights and cache, from above, counted in float32.

    Activations of the widest layer for a full token budget; logits of all rows three times over (raw, processed,
    sorted), of those that choose or of a part of a prompt that is scored; the token table.
    """
    mlp, experts = 3 * model.intermediate_size, model.experts
    if experts is not None:
        mlp = max(mlp, experts.chosen * (experts.size + model.hidden_size))
    widest = max(mlp, 3 * model.num_heads * model.head_dim) + 4 * model.hidden_size
    activations = 4 * config.max_batch_tokens * widest
    rows = min(max(config.max_sequences, SCORED_ROWS), config.max_batch_tokens)
    logits = 3 * 4 * rows * model.vocab_size
    return activations + logits + 4 * config.max_sequences * max_length


def blocks_wanted(config: EngineConfig, spec: KVSpec, max_length: int) -> int:
    """Blocks past which more would never be used: every sequence at full length, or what the operator allows."""
    blocks = config.max_sequences * -(-max_length // spec.block_size)
    if config.max_cache_tokens is not None:
        blocks = min(blocks, -(-config.max_cache_tokens // spec.block_size))
    return 1 + blocks  # block 0 holds nothing


def blocks_that_fit(plan: Plan, config: EngineConfig, free: int, total: int) -> int:
    """KV blocks for a device on which the weights already lie and `free` of `total` bytes remain.

    The share that `memory_fraction` gives is this server's own, whatever others on the device use; and what they use is
    left to them, with a margin for how that may grow.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    share = int(total * plan.usable_bytes / plan.total_bytes) - plan.weight_bytes
    room = min(share, (free - int(total * MARGIN)) // plan.sharers) - plan.workspace_bytes - plan.scratch_bytes
    return max(0, min(room // plan.block_bytes, blocks_wanted(config, plan.kv, plan.max_length)))


def _compute_dtype(config: EngineConfig, model: ModelConfig, capabilities: Capabilities) -> tuple[Dtype, str]:
    """What to compute in. `auto` keeps a 16-bit checkpoint's dtype where the backend prefers 16 bits."""
    if config.dtype != "auto":
        return config.dtype, ""
    preferred = capabilities.compute_dtypes[0]
    both_short = preferred != "float32" and model.dtype != "float32"
    if both_short and model.dtype in capabilities.compute_dtypes:
        preferred = model.dtype
    note = f"computing in {preferred}; the checkpoint is {model.dtype}" if preferred != model.dtype else ""
    return preferred, note


def _weight_scheme(
    config: EngineConfig, model: ModelConfig, dtype: Dtype, capabilities: Capabilities
) -> tuple[WeightScheme, list[Requirement], str]:
    """How linear layers are stored; what is wrong with the name, if it names no scheme; a note."""
    if config.quantize is None:
        scheme, note = stored_scheme(model, capabilities, unquantized(dtype))
        return scheme, [], note
    if config.quantize == NO_QUANTIZATION:
        return unquantized(dtype), [], ""
    if config.quantize not in SCHEMES:
        remedy = unknown("quantization", config.quantize, SCHEMES)
        return unquantized(dtype), [Requirement("weights", config.quantize, ", ".join(SCHEMES), remedy)], ""
    return SCHEMES[config.quantize], [], ""


def _kv_dtype(config: EngineConfig, dtype: Dtype, capabilities: Capabilities) -> KVDtype:
    if config.kv_dtype != "auto":
        return config.kv_dtype
    declared = capabilities.kv_dtypes
    return dtype if dtype in declared or not declared else declared[0]


def _fitting_length(config: EngineConfig, max_length: int, num_blocks: int, spec: KVSpec) -> tuple[int, str]:
    """The longest sequence that the cache holds; a note when that is less than the model's context."""
    room = max(0, num_blocks - 1) * spec.block_size
    if room >= max_length or config.max_length is not None or room == 0:
        return max_length, ""
    return room, f"sequences are limited to {room} of the model's {max_length} tokens by the size of the KV cache"


def _capability_needs(
    config: EngineConfig,
    model: ModelConfig,
    capabilities: Capabilities,
    scheme: WeightScheme,
    dtype: Dtype,
    spec: KVSpec,
) -> Iterator[Requirement]:
    def need(what: str, needed: str, declared: tuple[str, ...], remedy: str) -> Requirement:
        met = needed in declared
        return Requirement(what, needed, ", ".join(declared), None if met else remedy)

    dtypes = capabilities.compute_dtypes
    yield need("compute dtype", dtype, dtypes, f"use --dtype {dtypes[0]}")
    kv_dtypes = capabilities.kv_dtypes or dtypes
    yield need("KV cache dtype", spec.dtype, kv_dtypes, f"use --kv-cache-dtype {kv_dtypes[0]}")
    sizes = tuple(map(str, capabilities.block_sizes))
    yield need("KV block size", str(spec.block_size), sizes, f"use --block-size {sizes[0]}")
    if capabilities.head_dims:
        dims = tuple(map(str, capabilities.head_dims))
        yield need("head dimension", str(model.head_dim), dims, "use another backend for this model")
    for feature in _attention_features(model):
        declared = tuple(sorted(capabilities.attention))
        yield need("attention", feature, declared, "use another backend for this model")
    if config.quantize in SCHEMES:
        offered = tuple(map(str, capabilities.weight_schemes)) or ("no quantized weights",)
        remedy = None if str(scheme) in offered else "leave --quantize out or use another backend"
        yield Requirement("weights", str(scheme), "; ".join(offered), remedy)  # their names have commas
    if config.max_length is not None and config.max_length > model.max_position:
        what, remedy = "context", f"use --max-total-tokens {model.max_position} or less"
        yield Requirement(what, str(config.max_length), str(model.max_position), remedy)


def _rank_needs(
    model: ModelConfig, capabilities: Capabilities, scheme: WeightScheme, config: EngineConfig
) -> Iterator[Requirement]:
    world, whole_experts = config.num_shard or 1, config.expert_parallel
    if whole_experts and (model.experts is None or world == 1):
        offered = "none" if model.experts is None else "one device, which holds all of them"
        yield Requirement("--enable-expert-parallel", "experts to deal out", offered, "leave it out")
    if world == 1:
        return
    what = f"--num-shard {world}"
    remedy = None if capabilities.collectives else "leave it out or use another backend"
    yield Requirement(what, "collectives among ranks", capabilities.collectives or "none", remedy)
    group_size = scheme.group_size or 1
    found = obstacles(model, world, group_size, whole_experts=whole_experts)
    fitting = ", ".join(map(str, worlds(model, group_size, whole_experts=whole_experts)))
    remedy = f"this model takes --num-shard {fitting}" if found else None
    yield Requirement(what, "equal parts for all ranks", ", ".join(found) or "them", remedy)


def _stage_needs(
    model: ModelConfig, capabilities: Capabilities, config: EngineConfig, beside: SpeculatorPlan | None
) -> Iterator[Requirement]:
    if config.num_stages == 1:
        return
    what = f"--pipeline-parallel-size {config.num_stages}"
    remedy = None if capabilities.collectives else "leave it out or use another backend"
    yield Requirement(what, "messages between ranks", capabilities.collectives or "none", remedy)
    enough = model.num_layers >= config.num_stages
    fewer = f"use --pipeline-parallel-size {model.num_layers} or less"
    yield Requirement(what, "a layer for each stage", f"{model.num_layers} layers", None if enough else fewer)
    if beside is not None:
        alone = isinstance(beside.config, DraftModelConfig)
        shown, remedy = "a draft model" if alone else "heads that read them", "use --speculator ngram or a draft model"
        yield Requirement(what, "guesses without the model's hidden states", shown, None if alone else remedy)


def _attention_features(model: ModelConfig) -> Iterator[AttentionFeature]:
    if any(window is not None for window in model.windows):
        yield "sliding_window"
    if model.attention_softcap is not None:
        yield "softcap"


def _speculator_needs(
    beside: SpeculatorPlan | None, capabilities: Capabilities, max_length: int
) -> Iterator[Requirement]:
    for need in () if beside is None else speculator_needs(beside, capabilities, max_length):
        yield Requirement("speculator", need.needed, need.declared, need.remedy)


def _memory_needs(usable: int, needed: int, room: int, max_length: int) -> Iterator[Requirement]:
    """`room`: tokens that the cache holds."""
    remedy = "use a smaller --dtype or --quantize, lower --max-batch-prefill-tokens, or raise --memory-fraction"
    yield Requirement("memory", f"{needed:,} bytes", f"{usable:,} bytes", None if needed <= usable else remedy)
    room = max(0, room)
    if needed <= usable:
        remedy = f"use --max-total-tokens {room} or give the KV cache more memory"
        met = room >= max_length
        yield Requirement("longest sequence", f"{max_length} tokens", f"{room} tokens", None if met else remedy)
