"""Linear layers. Their weights belong to the backend, which packs them at load and multiplies by them; unquantized too.

Whether a weight is quantized is thus no question here: it is answered by what `fill` packed. Where a model is dealt out
to several ranks, a layer computes some of its output features (`spans`), or takes in some of its input features and
adds over ranks (`RowLinear`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mainspring.core.backend import Communicator, PackedLinear
from mainspring.core.layers.weights import WHOLE, Cut, Packing, Read, Shape, WeightLayer, declared
from mainspring.core.parallel.shard import Shard, Span

Matmul = Callable[[Tensor, PackedLinear], Tensor]
"""`Device.quantized_linear`."""


class Linear(WeightLayer):
    """y = x W^T + b, W [out_features, in_features] in the checkpoint; of y only `spans`, all when there are none."""

    packed: PackedLinear
    """Set by `fill`."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, matmul: Matmul, *, spans: Sequence[Span] = ()
    ) -> None:
        super().__init__()
        self._cut = Cut(tuple(spans))
        self._out_features = out_features
        held = self._cut.num_rows or out_features
        self.weight = declared(held, in_features)
        self.bias = declared(held) if bias else None
        self._matmul = matmul

    def forward(self, x: Tensor) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        return self._matmul(x, self.packed)

    def sources(self, path: str) -> Mapping[str, Shape]:
        in_features = self.weight.shape[1]
        shapes: dict[str, Shape] = {}
        for part, (out_features, _) in self._parts(path).items():
            shapes[f"{part}.weight"] = (out_features, in_features)
            if self.bias is not None:
                shapes[f"{part}.bias"] = (out_features,)
        return shapes

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        kinds = ("weight",) if self.bias is None else ("weight", "bias")
        parts = self._parts(path)
        tensors = {kind: _joined([read(f"{part}.{kind}", cut) for part, (_, cut) in parts.items()]) for kind in kinds}
        self.packed = packing.pack(packing.linear, tensors)

    def _parts(self, path: str) -> Mapping[str, tuple[int, Cut]]:
        """The checkpoint's linear layers that make this one up: path, out_features there, and what is held of them."""
        return {path: (self._out_features, self._cut)}


class MergedLinear(Linear):
    """Several linear layers of the checkpoint that read the same input, as one product.

    `parts` gives their names, siblings of this layer's own, and their out_features, in the order of the output. `spans`
    has the one of each that is held, where not all are held whole.
    """

    def __init__(
        self,
        in_features: int,
        parts: Mapping[str, int],
        bias: bool,
        matmul: Matmul,
        *,
        spans: Mapping[str, Span] | None = None,
    ) -> None:
        held = dict(spans or {})
        super().__init__(
            in_features,
            sum(held[name][1] - held[name][0] if name in held else size for name, size in parts.items()),
            bias,
            matmul,
        )
        self.parts = dict(parts)
        self._cuts = {name: Cut((held[name],)) if name in held else WHOLE for name in parts}

    def _parts(self, path: str) -> Mapping[str, tuple[int, Cut]]:
        parent = path.rpartition(".")[0]
        return {f"{parent}.{name}": (size, self._cuts[name]) for name, size in self.parts.items()}


class RowLinear(Linear):
    """A linear layer whose input features are dealt out: each rank multiplies by its columns of W, and ranks add up.

    Without a `group` the sum is left to the norm behind it, and the result is this rank's part.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        matmul: Matmul,
        *,
        shard: Shard,
        group: Communicator | None,
    ) -> None:
        columns = shard.share(in_features)
        super().__init__(columns[1] - columns[0], out_features, bias, matmul)
        self._in_features = in_features
        self._columns = Cut(columns=columns)
        self._adds_bias = shard.rank == 0
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """[T, this rank's in_features] -> [T, out_features], the same on all ranks where they add up here."""
        part = self._matmul(x, self.packed)
        return part if self._group is None else self._group.all_reduce(part)

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {**super().sources(path), f"{path}.weight": (self._out_features, self._in_features)}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        tensors = {"weight": read(f"{path}.weight", self._columns)}
        if self.bias is not None and self._adds_bias:
            tensors["bias"] = read(f"{path}.bias")
        self.packed = packing.pack(packing.linear, tensors)


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
