"""Weights to codes: to the nearest, or by GPTQ, which lets later inputs make up for the error of earlier ones.

Sources: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
algorithm 1; its act-order with groups that stay where they are, so that every reader takes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.layers.weights import Stored

DAMPING = 0.01
"""Share of the mean square that is added to each input's, so that the sums can be inverted."""
BLOCK = 128
"""Columns whose error reaches the rest of the matrix at once."""
SHRINKS: Sequence[float] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of a group's range, tried for the least squared error: a few clipped values may cost less than coarse steps."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that codes of each group stand for."""

    scheme: WeightScheme
    scales_NG: Tensor
    zeros_NG: Tensor
    """Whole numbers; 0 where symmetric."""

    def codes(self, weight: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """The nearest, as whole numbers in float32."""
        low, high = _range(self.scheme)
        return (weight / scales + zeros).round_().clamp_(low, high)

    def stored(self, codes_NK: Tensor) -> Stored:
        """Codes in the neutral form."""
        dtype = torch.int8 if self.scheme.symmetric else torch.uint8
        tensors = {"weight": codes_NK.to(dtype), "scales": self.scales_NG}
        if not self.scheme.symmetric:
            tensors["zeros"] = self.zeros_NG
        return Stored(self.scheme, tensors)


def grid_of(weight_NK: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> Grid:
    """The grid with the least squared error of those tried. Scales are rounded to `dtype`, as they will be stored."""
    groups_NGk = weight_NK.reshape(len(weight_NK), -1, scheme.group_size or weight_NK.shape[1])
    best = None
    for shrink in SHRINKS:
        scales, zeros = _fitted(groups_NGk, scheme, shrink, dtype)
        low, high = _range(scheme)
        codes = (groups_NGk / scales + zeros).round_().clamp_(low, high)
        error = ((codes - zeros) * scales - groups_NGk).square_().sum(-1, keepdim=True)
        if best is None:
            best = scales, zeros, error
        else:
            better = error < best[2]
            best = (
                torch.where(better, scales, best[0]),
                torch.where(better, zeros, best[1]),
                torch.where(better, error, best[2]),
            )
    if best is None:
        raise ValueError("no range was tried")
    return Grid(scheme, best[0].squeeze(-1), best[1].squeeze(-1))


def to_nearest(weight_NK: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> Stored:
    """Each value by itself."""
    if scheme.weight == "float8_e4m3fn":
        scales_N1 = (weight_NK.abs().amax(1, keepdim=True) / 448).to(dtype).float().clamp_(min=1e-12)
        codes_NK = (weight_NK / scales_N1).clamp_(-448, 448).to(torch.float8_e4m3fn)
        return Stored(scheme, {"weight": codes_NK, "scales": scales_N1})
    grid = grid_of(weight_NK, scheme, dtype)
    size = scheme.group_size or weight_NK.shape[1]
    scales, zeros = (x_NG.repeat_interleave(size, 1) for x_NG in (grid.scales_NG, grid.zeros_NG))
    return grid.stored(grid.codes(weight_NK, scales, zeros))


def gptq(weight_NK: Tensor, gram_KK: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> Stored:
    """Input by input, the heaviest first; `gram_KK` sums x x^T over the calibration's inputs."""
    grid = grid_of(weight_NK, scheme, dtype)
    features, size = weight_NK.shape[1], scheme.group_size or weight_NK.shape[1]
    order = gram_KK.diagonal().argsort(descending=True)
    upper_KK = _inverse_factor(gram_KK[order][:, order])
    left_NK = weight_NK[:, order].clone()
    codes_NK = torch.empty_like(left_NK)
    for start in range(0, features, BLOCK):
        end = min(start + BLOCK, features)
        errors = torch.empty(len(left_NK), end - start)
        for column in range(start, end):
            group = int(order[column]) // size
            scales, zeros = grid.scales_NG[:, group], grid.zeros_NG[:, group]
            codes = grid.codes(left_NK[:, column], scales, zeros)
            error = (left_NK[:, column] - (codes - zeros) * scales) / upper_KK[column, column]
            left_NK[:, column + 1 : end] -= error[:, None] * upper_KK[column, column + 1 : end]
            codes_NK[:, column], errors[:, column - start] = codes, error
        left_NK[:, end:] -= errors @ upper_KK[start:end, end:]
    return grid.stored(codes_NK[:, order.argsort()])


def _inverse_factor(gram_KK: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped sums' inverse; inputs that were never fed count for one another alone."""
    damped = gram_KK.clone()
    mean = float(damped.diagonal().mean()) or 1.0
    damped.diagonal().add_(DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _range(scheme: WeightScheme) -> tuple[int, int]:
    levels = 1 << scheme.bits
    return (-levels // 2, levels // 2 - 1) if scheme.symmetric else (0, levels - 1)


def _fitted(groups: Tensor, scheme: WeightScheme, shrink: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    low, high = _range(scheme)
    if scheme.symmetric:
        # Half a step more than the highest code: the range of codes reaches one further below 0.
        scales = groups.abs().amax(-1, keepdim=True) * shrink / (high + 0.5)
        scales = scales.to(dtype).float().clamp_(min=1e-7)
        return scales, torch.zeros_like(scales)
    least = groups.amin(-1, keepdim=True).clamp(max=0) * shrink
    most = groups.amax(-1, keepdim=True).clamp(min=0) * shrink
    scales = ((most - least) / high).to(dtype).float().clamp_(min=1e-7)
    return scales, (-least / scales).round_().clamp_(low, high)
