"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mainspring.core.layers.weights import Packing, Read, Shape, WeightLayer, declared
from mainspring.core.ops import Ops


class RMSNorm(WeightLayer):
    """Zhang & Sennrich 2019. Checkpoints that store w for a factor of 1 + w have it added as they are read."""

    def __init__(self, size: int, epsilon: float, ops: Ops) -> None:
        super().__init__()
        self.weight = declared(size)
        self.epsilon = epsilon
        self._rms_norm, self._add_rms_norm = ops.rms_norm, ops.add_rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension, any leading ones."""
        return self._rms_norm(x, self.weight, self.epsilon)

    def add(self, x_TE: Tensor, residual_TE: Tensor) -> tuple[Tensor, Tensor]:
        """(the normed sum, the sum)."""
        return self._add_rms_norm(x_TE, residual_TE, self.weight, self.epsilon)

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {f"{path}.weight": tuple(self.weight.shape)}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        self.weight = nn.Parameter(packing.place(read(f"{path}.weight")), requires_grad=False)


class LayerNorm(WeightLayer):
    """Ba et al. 2016, with a bias."""

    def __init__(self, size: int, epsilon: float, ops: Ops) -> None:
        super().__init__()
        self.weight, self.bias = declared(size), declared(size)
        self.epsilon = epsilon
        self._layer_norm = ops.layer_norm

    def forward(self, x_TE: Tensor) -> Tensor:
        """Over the last dimension."""
        return self._layer_norm(x_TE, self.weight, self.bias, self.epsilon)

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {f"{path}.{kind}": tuple(self.weight.shape) for kind in ("weight", "bias")}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        self.weight = nn.Parameter(packing.place(read(f"{path}.weight")), requires_grad=False)
        self.bias = nn.Parameter(packing.place(read(f"{path}.bias")), requires_grad=False)
