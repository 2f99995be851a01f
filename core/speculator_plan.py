"""A speculator in the start-up plan: its weights, its cache beside the target's, and whether it can work here.

No torch, like the plan itself. What a speculator is, is `core/architectures/speculators`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mainspring.core.architectures.speculators import SpeculatorConfig, cached_model
from mainspring.core.backend import KV_DTYPE_BYTES, AttentionFeature, Capabilities, KVSpec
from mainspring.core.config import WEIGHTLESS_SPECULATORS, Dtype, EngineConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class SpeculatorPlan:
    """How a speculator will run. Sizes in bytes; every rank holds all of it."""

    config: SpeculatorConfig
    path: Path
    count: int
    """Tokens that it drafts at once."""
    weight_bytes: int
    kv: KVSpec | None
    """Of its cache, whose blocks have the target's ids; None where it keeps none."""
    scratch_blocks: int
    """Blocks behind those, for drafts at positions that the target has no block for yet."""

    @property
    def block_bytes(self) -> int:
        """What it adds to each of the target's blocks."""
        return 0 if self.kv is None else self.kv.block_bytes()

    @property
    def scratch_bytes(self) -> int:
        """Of the scratch blocks."""
        return self.scratch_blocks * self.block_bytes


def speculator_path(config: EngineConfig) -> Path | None:
    """Where the speculator's checkpoint lies; None when the operator named none, or wants no drafts."""
    if config.speculator is None or config.speculator in WEIGHTLESS_SPECULATORS or config.speculate == 0:
        return None
    return Path(config.speculator)


NGRAM_DRAFTS = 8
"""Tokens that are copied at once where `--speculator ngram` says no more."""


def drafts_at_once(config: EngineConfig, speculator: SpeculatorConfig | None) -> int:
    """Tokens drafted at once for a sequence; 0 where nothing speculates. `speculator` is what the config names."""
    if speculator is not None:
        return config.speculate or speculator.usual_drafts
    if config.speculator == "ngram":
        return config.speculate or NGRAM_DRAFTS
    return 0 if config.speculator == "none" else config.speculate or 0


def plan_speculator(
    config: EngineConfig, speculator: SpeculatorConfig, target: KVSpec, dtype: Dtype
) -> SpeculatorPlan | None:
    """The plan of what `--speculator` names, beside a target with such a cache; None when it names no checkpoint."""
    path, model = speculator_path(config), cached_model(speculator)
    if path is None:
        return None
    count = drafts_at_once(config, speculator)
    spec, scratch = None, 0
    if model is not None:
        spec = replace(target, layers=model.num_layers, heads=model.num_kv_heads, head_dim=model.head_dim)
        # The row of nobody has its own, too.
        scratch = (config.max_sequences + 1) * -(-count // target.block_size)
    return SpeculatorPlan(speculator, path, count, speculator.parameters * KV_DTYPE_BYTES[dtype], spec, scratch)


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a speculator needs, against what there is; the remedy is None where it is met."""

    needed: str
    declared: str
    remedy: str | None


def speculator_needs(plan: SpeculatorPlan, capabilities: Capabilities, max_length: int) -> Iterator[Need]:
    """What must hold beside the target's own requirements."""
    most = plan.config.most_drafts
    shown = f"at most {most} drafted tokens"
    yield Need(f"{plan.count} drafted tokens", shown, _unless(plan.count <= most, f"use --speculate {most} or less"))
    model = cached_model(plan.config)
    if model is None:
        return
    eager = capabilities.shapes == "dynamic"
    remedy = "use --speculator ngram or heads without a cache (Medusa, MLP), which need no steps of their own"
    yield Need("steps of any shape", capabilities.shapes, _unless(eager, remedy))
    if capabilities.head_dims:
        fits = model.head_dim in capabilities.head_dims
        yield Need(
            f"head dimension {model.head_dim}",
            ", ".join(map(str, capabilities.head_dims)),
            _unless(fits, "use another speculator or another backend"),
        )
    for feature in _attention_features(model):
        declared = ", ".join(sorted(capabilities.attention))
        fits = feature in capabilities.attention
        yield Need(f"attention {feature}", declared, _unless(fits, "use another speculator or another backend"))
    fits = model.max_position >= max_length
    yield Need(
        f"{max_length} tokens of context",
        str(model.max_position),
        _unless(fits, f"use --max-total-tokens {model.max_position} or less, or another speculator"),
    )


def _unless(met: bool, remedy: str) -> str | None:
    return None if met else remedy


def _attention_features(model: ModelConfig) -> Iterator[AttentionFeature]:
    if any(window is not None for window in model.windows):
        yield "sliding_window"
    if model.attention_softcap is not None:
        yield "softcap"
