"""Activations. The gated ones take gate and up projections packed side by side, gate first."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def silu_mul(x_T2I: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020): silu(gate) * up, [T, 2I] -> [T, I]."""
    gate, up = x_T2I.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_mul(x_T2I: Tensor, tanh: bool) -> Tensor:
    """GeGLU: gelu(gate) * up, [T, 2I] -> [T, I]; `tanh` takes the approximation of Hendrycks & Gimpel 2016."""
    gate, up = x_T2I.chunk(2, dim=-1)
    return gelu(gate, tanh) * up


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """Gaussian error linear unit, exact or by its tanh approximation."""
    return F.gelu(x, approximate="tanh" if tanh else "none")
