"""Tables of rotary position embeddings, for each way of stretching them to longer contexts.

Two of them choose by length: transformers recomputes their frequencies as a sequence grows, which turns keys that are
in the cache already into keys of another model. Here the longest length served decides once: `dynamic` scales for it,
and `longrope` takes its long factors when it exceeds the original context. Frequencies and angles are float32, as in
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mainspring.core.config import RopeConfig


class Rotary(nn.Module):
    """Rotates q and k by their positions; one table serves all layers that share a rope."""

    table: Tensor

    def __init__(
        self, table_PR: Tensor, rope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.register_buffer("table", table_PR, persistent=False)
        self._rope = rope

    def forward(self, q_THD: Tensor, k_TKD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Both rotated; positions are below the length that the table was made for."""
        return self._rope(q_THD, k_TKD, positions_T, self.table)


def rope_table(rope: RopeConfig, max_length: int) -> Tensor:
    """[max_length, rotary_dim] float32: half cosines, half sines, attention scaling included."""
    frequencies, scale = FREQUENCIES[rope.scaling](rope, max_length)
    angles = torch.arange(max_length, dtype=torch.float32)[:, None] * frequencies[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * scale


def _plain(theta: float, rotary_dim: int) -> Tensor:
    """theta ** (-2i / rotary_dim) for each pair of dimensions."""
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


def _none(rope: RopeConfig, max_length: int) -> tuple[Tensor, float]:
    return _plain(rope.theta, rope.rotary_dim), 1.0


def _linear(rope: RopeConfig, max_length: int) -> tuple[Tensor, float]:
    """Positions divided by the factor (Chen et al. 2023)."""
    return _plain(rope.theta, rope.rotary_dim) / rope.factor, 1.0


def _dynamic(rope: RopeConfig, max_length: int) -> tuple[Tensor, float]:
    """NTK-aware: theta grows with the length beyond the original context."""
    length = max(max_length, rope.original_max_position)
    stretch = rope.factor * length / rope.original_max_position - (rope.factor - 1)
    return _plain(rope.theta * stretch ** (rope.rotary_dim / (rope.rotary_dim - 2)), rope.rotary_dim), 1.0


def _llama3(rope: RopeConfig, max_length: int) -> tuple[Tensor, float]:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    frequencies = _plain(rope.theta, rope.rotary_dim)
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / rope.factor + kept * frequencies, 1.0


def _yarn(rope: RopeConfig, max_length: int) -> tuple[Tensor, float]:
    """Peng et al. 2023: fast dimensions extrapolate, slow ones interpolate, a ramp between; scores are sharpened."""
    frequencies = _plain(rope.theta, rope.rotary_dim)
    low, high = (_yarn_dimension(rope, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    # A range of no width would divide by zero.
    width = high - low or 0.001
    interpolated = ((torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / rope.factor * interpolated + frequencies * (1 - interpolated), _yarn_scale(rope)


def _yarn_dimension(rope: RopeConfig, turns: float) -> float:
    """The pair of dimensions that turns so many times over the original context."""
    ratio = math.log(rope.original_max_position / (turns * 2 * math.pi))
    return rope.rotary_dim * ratio / (2 * math.log(rope.theta))


def _yarn_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _longrope(rope: RopeConfig, max_length: int) -> tuple[Tensor, float]:
    """Ding et al. 2024: a searched divisor for each pair of dimensions, one set for short contexts and one for long."""
    factors = rope.long_factors if max_length > rope.original_max_position else rope.short_factors
    frequencies = _plain(rope.theta, rope.rotary_dim) / torch.tensor(factors, dtype=torch.float32)
    if rope.attention_factor is not None:
        return frequencies, rope.attention_factor
    if rope.factor <= 1:
        return frequencies, 1.0
    return frequencies, math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position))


FREQUENCIES: Mapping[str, Callable[[RopeConfig, int], tuple[Tensor, float]]] = MappingProxyType({
    "none": _none, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
})  # fmt: skip
"""For each scaling: rope and longest length served -> frequency of each pair of dimensions, factor of cos and sin."""
