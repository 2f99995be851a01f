"""AWQ's scales: input features that are fed much get finer steps, at the cost of those that are fed little.

A linear layer's columns are multiplied and what feeds them divided by the same numbers, which changes nothing before
rounding. The numbers are (mean magnitude of the input) ^ a, with the `a` of a grid whose rounded layer has the least
error on the calibration text; the error of a product needs no text, only the sums x x^T: it is tr(E gram E^T).

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", equation 5.
Its search for clipped ranges is the grid of `rounding`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.ops.quantized import dequantize
from mainspring.core.quantizing.rounding import to_nearest

POWERS = 20
"""Steps of the grid."""
_SMALLEST = 1e-4


def best_scales(weight_NK: Tensor, gram_KK: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> Tensor:
    """[K]: what the columns are to be multiplied by; ones where nothing is gained."""
    magnitudes_K = gram_KK.diagonal().sqrt().clamp(min=_SMALLEST)
    best, least = torch.ones_like(magnitudes_K), _error(weight_NK, gram_KK, scheme, dtype)
    for step in range(1, POWERS):
        scales_K = magnitudes_K.pow(step / POWERS)
        # Around 1, so that numbers keep their size.
        scales_K = (scales_K / (scales_K.max() * scales_K.min()).sqrt()).to(dtype).float().clamp(min=_SMALLEST)
        error = _error(weight_NK * scales_K, gram_KK / scales_K / scales_K[:, None], scheme, dtype)
        if error < least:
            best, least = scales_K, error
    return best


def _error(weight_NK: Tensor, gram_KK: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> float:
    stored = to_nearest(weight_NK, scheme, dtype)
    difference = dequantize(stored.scheme, stored.tensors) - weight_NK
    return float(((difference @ gram_KK) * difference).sum())
