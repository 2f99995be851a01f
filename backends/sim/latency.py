"""How long a step takes on a machine: the larger of its memory traffic and its arithmetic, and a fixed overhead.

The roofline model (Williams, Waterman, Patterson 2009), with every weight read once a step and every cached key and
value read once. Good for the shape of a load curve; it is no measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mainspring.core.backend import KV_DTYPE_BYTES, KVSpec
from mainspring.core.batch import Batch
from mainspring.core.config import ModelConfig

_BANDWIDTH_REACHED = 0.8
_ARITHMETIC_REACHED = 0.6
"""Shares of the data sheets' peaks that well-written kernels reach; round figures."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Peaks from the vendor's data sheet, for one device and dense 16-bit arithmetic."""

    name: str
    bytes_per_second: float
    operations_per_second: float
    total_bytes: int
    overhead_seconds: float
    """Of a step, whatever its size: launches, sampling, the copy back."""
    bucketed: bool = False
    """Compiles a program per shape, and keeps prefill and decode apart."""


MACHINES: tuple[Machine, ...] = (
    Machine("ideal", math.inf, math.inf, 1 << 40, 0.0),
    Machine("cpu", 0.1e12, 1e12, 64 << 30, 200e-6),
    Machine("h100", 3.35e12, 989e12, 80 << 30, 300e-6),
    Machine("h200", 4.8e12, 989e12, 141 << 30, 300e-6),
    Machine("mi300x", 5.3e12, 1307e12, 192 << 30, 300e-6),
    Machine("gaudi3", 3.7e12, 1835e12, 128 << 30, 500e-6, bucketed=True),
    Machine("trn2", 2.9e12, 667e12, 96 << 30, 500e-6, bucketed=True),
    Machine("tpu-v5e", 0.819e12, 197e12, 16 << 30, 500e-6, bucketed=True),
)


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a model costs on a machine, ready to be applied to batches. Times in seconds."""

    per_step: float
    """Reading all weights."""
    overhead: float
    per_cached_token: float
    """Reading one position's keys and values."""
    per_token: float
    """Multiplying one token with all weights."""
    per_pair: float
    """One query against one position, in all layers."""

    @property
    def free(self) -> bool:
        """Whether every step takes no time at all."""
        return not (self.per_step or self.overhead or self.per_cached_token or self.per_token or self.per_pair)

    def seconds(self, batch: Batch) -> float:
        """How long the step takes."""
        if self.free:
            return 0.0
        cached = pairs = 0
        for start, count in zip(batch.starts, batch.counts, strict=True):
            cached += start + count
            pairs += (start + count) * count
        traffic = self.per_step + cached * self.per_cached_token
        arithmetic = batch.num_tokens * self.per_token + pairs * self.per_pair
        return self.overhead + max(traffic, arithmetic)


def step_cost(model: ModelConfig, kv: KVSpec, machine: Machine, *, speed: float, overhead: float | None) -> StepCost:
    """The cost of `model` on `machine`, `speed` times as fast; with speed 0 nothing takes any time."""
    if speed == 0:
        return StepCost(0.0, 0.0, 0.0, 0.0, 0.0)
    second_per_byte = 1 / (machine.bytes_per_second * _BANDWIDTH_REACHED * speed)
    second_per_operation = 1 / (machine.operations_per_second * _ARITHMETIC_REACHED * speed)
    parameters = _matrix_parameters(model)
    # A multiplication and an addition a weight; queries meet keys, then values.
    pair_operations = 2 * 2 * model.num_layers * model.num_heads * model.head_dim
    return StepCost(
        per_step=parameters * KV_DTYPE_BYTES[model.dtype] * second_per_byte,
        overhead=(machine.overhead_seconds if overhead is None else overhead) / speed,
        per_cached_token=kv.block_bytes() / kv.block_size * second_per_byte,
        per_token=2 * parameters * second_per_operation,
        per_pair=pair_operations * second_per_operation,
    )


def _matrix_parameters(model: ModelConfig) -> int:
    """Weights that every token is multiplied with: projections and the output matrix, not the embedding's rows."""
    attention = model.hidden_size * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
    mlp = 3 * model.hidden_size * model.intermediate_size
    return model.num_layers * (attention + mlp) + model.hidden_size * model.vocab_size
