"""Linear layers. Their weights belong to the backend, which packs them at load and multiplies by them; unquantized too.

Whether a weight is quantized is thus no question here: it is answered by what `fill` packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mainspring.core.backend import PackedLinear
from mainspring.core.layers.weights import Packing, Read, Shape, WeightLayer, declared

Matmul = Callable[[Tensor, PackedLinear], Tensor]
"""`Device.quantized_linear`."""


class Linear(WeightLayer):
    """y = x W^T + b, W [out_features, in_features]."""

    packed: PackedLinear
    """Set by `fill`."""

    def __init__(self, in_features: int, out_features: int, bias: bool, matmul: Matmul) -> None:
        super().__init__()
        self.weight = declared(out_features, in_features)
        self.bias = declared(out_features) if bias else None
        self._matmul = matmul

    def forward(self, x: Tensor) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        return self._matmul(x, self.packed)

    def sources(self, path: str) -> Mapping[str, Shape]:
        in_features = self.weight.shape[1]
        shapes: dict[str, Shape] = {}
        for part, out_features in self._parts(path).items():
            shapes[f"{part}.weight"] = (out_features, in_features)
            if self.bias is not None:
                shapes[f"{part}.bias"] = (out_features,)
        return shapes

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        kinds = ("weight",) if self.bias is None else ("weight", "bias")
        parts = list(self._parts(path))
        tensors = {kind: _joined([read(f"{part}.{kind}") for part in parts]) for kind in kinds}
        self.packed = packing.pack(packing.linear, tensors)

    def _parts(self, path: str) -> Mapping[str, int]:
        """The checkpoint's linear layers that make this one up: path and out_features."""
        return {path: self.weight.shape[0]}


class MergedLinear(Linear):
    """Several linear layers of the checkpoint that read the same input, as one product.

    `parts` gives their names, siblings of this layer's own, and their out_features, in the order of the output.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int], bias: bool, matmul: Matmul) -> None:
        super().__init__(in_features, sum(parts.values()), bias, matmul)
        self.parts = dict(parts)

    def _parts(self, path: str) -> Mapping[str, int]:
        parent = path.rpartition(".")[0]
        return {f"{parent}.{name}": out_features for name, out_features in self.parts.items()}


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
